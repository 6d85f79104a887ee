//! `banger image register`.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use banger_image::{archive::Image, rootfs::error::Shown};
use banger_proto::bus::{ErrorName, option::import};
use clap::Args;
use zbus::{Fd, Variant};

use crate::{
    client::{bus::Bus, service::Kind},
    command::{
        add::{self, AddArgs},
        image::saved,
        kernel,
    },
    error::{Error, Result},
};

/// Create an image from files: a root file system, or an image that another program saved
///
/// A root file system is a tar archive, plain or compressed with gzip or zstd, or a raw ext4 file system
/// without partitions. An image is an OCI layout or a Docker archive, as `docker save`, `podman save`,
/// `skopeo copy`, `buildah push`, nix and crane write them, as a directory or a tar archive, plain or
/// compressed with gzip or zstd. A bundle is such an archive with a name for the image and the name of a
/// kernel. FILE may be any of these. The service copies everything, so you can delete the files afterwards.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image register --name debian ./debian.ext4       a root file system
  docker save app > app.tar
  banger image register --name app ./app.tar              an image of docker
  docker export CONTAINER > files.tar
  banger image register --name files ./files.tar          the files of a container
  banger image register --name edge --tag edge ./alpine   one of the images in a directory
  banger image register ./debian-bookworm.tar.zst         a bundle, which has a name

Next: `banger vm run --image debian`.")]
pub struct Register {
    /// Root file system or image; banger recognises which
    #[arg(value_name = "FILE", conflicts_with_all = ["rootfs", "oci"], required_unless_present_any = ["rootfs", "oci"])]
    file: Option<PathBuf>,
    /// Name for the image; a bundle needs none
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Root file system: a tar archive or a raw ext4 file system
    #[arg(long, value_name = "FILE")]
    rootfs: Option<PathBuf>,
    /// Image: an OCI layout or a Docker archive, as a directory or a tar archive
    #[arg(long, value_name = "PATH", conflicts_with = "rootfs")]
    oci: Option<PathBuf>,
    /// Tag, reference or digest of the image, if the files have several
    #[arg(long, value_name = "TAG", conflicts_with = "rootfs")]
    tag: Option<String>,
    /// Platform of the image, such as linux/amd64/v3 [default: the host's]
    #[arg(long, value_name = "PLATFORM", conflicts_with = "rootfs")]
    platform: Option<String>,
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

/// What an image is made of.
enum Content<'a> {
    Image(&'a Path),
    Rootfs(File),
}

impl Register {
    pub async fn run(&self) -> Result<u8> {
        let mut options = self.add.options();
        let content = self.content()?;
        let bus = Bus::connect().await?;
        let (file_key, file, name, wanted) = match content {
            Content::Image(path) => {
                let platform = saved::platform(self.platform.as_deref(), bus.architecture())?;
                let Image { file, parts, name, kernel } =
                    saved::find(path, &platform, self.tag.as_deref(), self.name.as_deref())?;
                options.insert(import::PARTS, Variant::from(parts));
                if self.platform.is_some() {
                    options.insert(import::PLATFORM, Variant::from(platform.to_string()));
                }
                (import::FILE_LAYOUT, file, name, kernel)
            }
            Content::Rootfs(file) => {
                (import::FILE_ROOTFS, file, self.name.clone().ok_or_else(saved::unnamed)?, None)
            }
        };
        let modules = self.modules.as_deref();
        let own = self.vmlinuz.as_deref().map(|vmlinuz| kernel::Files::open(vmlinuz, modules)).transpose()?;
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

    /// Returns what to make the image of.
    fn content(&self) -> Result<Content<'_>> {
        match (&self.oci, &self.rootfs, &self.file) {
            (Some(path), _, _) => Ok(Content::Image(path)),
            (None, Some(path), _) => {
                let file = add::open_file(path)?;
                if !saved::is_archive(&file) {
                    return Ok(Content::Rootfs(file));
                }
                let message = format!("{} is an image and not a root file system", path.display());
                let command = format!("`banger image register --oci {}` takes it.", path.display());
                Err(Error::Refused(message).with_hint(command))
            }
            (None, None, Some(path)) if self.tag.is_some() || self.platform.is_some() => {
                Ok(Content::Image(path))
            }
            (None, None, Some(path)) if saved::is_image(path)? => Ok(Content::Image(path)),
            (None, None, Some(path)) => Ok(Content::Rootfs(add::open_file(path)?)),
            (None, None, None) => Err(Error::Usage("cannot create an image: no file is given".to_owned())),
        }
    }

    /// Returns the kernel that a bundle names, if it exists.
    async fn known(&self, bus: &Bus, wanted: String) -> Result<Option<String>> {
        match bus.find(Kind::Kernel, &wanted).await {
            Ok(_) => Ok(Some(wanted)),
            Err(error) if error.name() == Some(ErrorName::NoSuchKernel) => {
                self.add.progress().note(&format!(
                    "note: the image names the kernel \"{}\", which is not on this host; its sandboxes boot \
                     the default kernel.",
                    Shown::of(wanted.as_bytes())
                ));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
