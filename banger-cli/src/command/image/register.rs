//! `banger image register`.

use std::{collections::HashMap, os::fd::AsFd, path::PathBuf};

use banger_proto::bus::{ErrorName, option::import};
use clap::Args;
use zbus::{Fd, Variant};

use crate::{
    client::{bus::Bus, service::Kind},
    command::{
        add::{self, AddArgs},
        image::oci_layout::{self, Image},
        kernel,
    },
    error::{Error, Result},
};

/// Create an image from files: a root file system or an OCI image layout
///
/// A root file system is a tar archive, plain or compressed with gzip or zstd, or a raw ext4 file system
/// without partitions. An OCI image layout is what `skopeo copy`, `buildah push` or `docker save` write: a
/// directory, or a tar archive of one, plain or compressed with gzip or zstd. A bundle is such an archive
/// with a name for the image and the name of a kernel. The service copies everything, so you can delete the
/// files afterwards.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image register --name debian --rootfs ./debian.ext4
  docker export CONTAINER | zstd > mine.tar.zst
  banger image register --name mine --rootfs ./mine.tar.zst
  docker save mine | gzip > mine.tar.gz && banger image register --name mine --oci ./mine.tar.gz
  banger image register --name next --rootfs next.tar --vmlinuz vmlinuz-6.12 --modules modules/6.12
  banger image register --oci ./debian-bookworm-x86_64-0123456789ab.tar.zst

Next: `banger vm run --image debian`.")]
pub struct Register {
    /// Name for the image; a bundle needs none
    #[arg(long, value_name = "NAME", required_unless_present = "oci")]
    name: Option<String>,
    /// Root file system: a tar archive or a raw ext4 file system
    #[arg(long, value_name = "FILE", required_unless_present = "oci")]
    rootfs: Option<PathBuf>,
    /// OCI image layout: a directory or a tar archive
    #[arg(long, value_name = "PATH", conflicts_with = "rootfs")]
    oci: Option<PathBuf>,
    /// Kernel that sandboxes of this image boot [default: the one that a bundle names, else the service's]
    #[arg(long, visible_alias = "kernel-ref", value_name = "KERNEL")]
    kernel: Option<String>,
    /// Import this kernel (a vmlinuz or an ELF vmlinux) under the name of the image, and boot it
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    vmlinuz: Option<PathBuf>,
    /// Directory of that kernel's modules, as in /lib/modules
    #[arg(long, value_name = "DIRECTORY", requires = "vmlinuz")]
    modules: Option<PathBuf>,
    #[command(flatten)]
    add: AddArgs,
}

impl Register {
    pub async fn run(&self) -> Result<u8> {
        let mut options = self.add.options();
        let (file_key, file, name, wanted) = match (&self.oci, &self.rootfs) {
            (Some(layout), _) => {
                let Image { file, parts, name, kernel } = oci_layout::read(layout)?;
                options.insert(import::PARTS, Variant::from(parts));
                (import::FILE_LAYOUT, file, name, kernel)
            }
            (None, Some(rootfs)) => (import::FILE_ROOTFS, add::open_file(rootfs)?, None, None),
            (None, None) => {
                return Err(Error::Usage(
                    "cannot create an image: neither --rootfs nor --oci is given".to_owned(),
                ));
            }
        };
        let name = self.name.clone().or(name).ok_or_else(|| {
            Error::Usage("the image has no name".to_owned()).with_hint("`--name NAME` gives it one.")
        })?;
        let modules = self.modules.as_deref();
        let own = self.vmlinuz.as_deref().map(|vmlinuz| kernel::Files::open(vmlinuz, modules)).transpose()?;
        let bus = Bus::connect().await?;
        let kernel = match (&self.kernel, &own, wanted) {
            (Some(kernel), _, _) => Some(kernel.clone()),
            (None, Some(_), _) => Some(name.clone()),
            (None, None, Some(wanted)) => self.known(&bus, wanted).await?,
            (None, None, None) => None,
        };
        if let Some(kernel) = kernel {
            options.insert(import::KERNEL_REF, Variant::from(kernel));
        }
        let files = HashMap::from([(file_key, Fd::from(file.as_fd()))]);
        let begin_image = bus.import_image(&name, &files, &options);
        let Some(own) = own else {
            return self.add.run(&bus, Kind::Image, &name, begin_image).await;
        };
        let (of_kernel, shared) = (own.borrowed(), self.add.options());
        let begin = bus.import_kernel(&name, &of_kernel, &shared);
        let kernel = self.add.make(&bus, Kind::Kernel, &name, begin).await?;
        let made = self.add.run(&bus, Kind::Image, &name, begin_image).await;
        if made.as_ref().is_err_and(|error| !error.is_detached()) {
            // It was imported for an image that does not exist. If this fails, the kernel stays, which is the smaller
            // problem; a detached import still needs it.
            let _ = bus.delete(Kind::Kernel, &kernel).await;
        }
        made
    }

    /// Returns the kernel that a bundle names, if it exists.
    async fn known(&self, bus: &Bus, wanted: String) -> Result<Option<String>> {
        match bus.find(Kind::Kernel, &wanted).await {
            Ok(_) => Ok(Some(wanted)),
            Err(error) if error.name() == Some(ErrorName::NoSuchKernel) => {
                self.add.progress().note(&format!(
                    "the image names the kernel {wanted:?}, which is not on this host; its sandboxes boot \
                     the default kernel"
                ));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
