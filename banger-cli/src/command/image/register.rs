//! `banger image register`.

use std::{collections::HashMap, os::fd::AsFd, path::PathBuf};

use banger_proto::bus::{option::import, proxy::Options};
use clap::Args;
use zbus::{Fd, Variant};

use crate::{
    bus::Bus,
    command::import::{self as importing, ImportArgs},
    error::{Error, Result},
    oci_layout::{self, Image},
    service::Kind,
};

/// Make an image of a file with a root file system, or of an OCI image in files
///
/// The file is a tar archive of the root file system, plain or packed by gzip or zstd, or a raw ext4 file system
/// without partitions. Of an archive, the service makes a file system; an ext4 it copies, at once where the file
/// system of the host can. An OCI image is an image layout, as `skopeo copy`, `buildah push` or `docker save` write it:
/// a directory, or a tar archive of one that is not packed. The files are not needed any more afterwards.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image register --name debian --rootfs ./debian.ext4
  docker export CONTAINER | zstd > mine.tar.zst
  banger image register --name mine --rootfs ./mine.tar.zst
  docker save mine -o mine.tar && banger image register --name mine --oci ./mine.tar

Next: `banger vm run --image debian`.")]
pub struct Register {
    /// The file with the root file system
    #[arg(long, value_name = "FILE", required_unless_present = "oci")]
    rootfs: Option<PathBuf>,
    /// The image layout, a directory or a tar archive
    #[arg(long, value_name = "PATH", conflicts_with = "rootfs")]
    oci: Option<PathBuf>,
    /// The kernel that sandboxes of this image boot [default: the service's]
    #[arg(long, visible_alias = "kernel-ref", value_name = "KERNEL")]
    kernel: Option<String>,
    #[command(flatten)]
    import: ImportArgs,
}

impl Register {
    pub async fn run(&self) -> Result<u8> {
        let mut options = self.import.options();
        let (name, file) = match (&self.oci, &self.rootfs) {
            (Some(layout), _) => {
                let Image { file, parts } = oci_layout::read(layout)?;
                options.insert(import::PARTS, Variant::from(parts));
                (import::FILE_LAYOUT, file)
            }
            (None, Some(rootfs)) => (import::FILE_ROOTFS, importing::open_file(rootfs)?),
            (None, None) => return Err(Error::Usage("--rootfs or --oci names what to take".to_owned())),
        };
        let files = HashMap::from([(name, Fd::from(file.as_fd()))]);
        if let Some(kernel) = &self.kernel {
            options.insert(import::KERNEL_REF, Variant::from(kernel.as_str()));
        }
        let bus = Bus::connect().await?;
        let begin = async |bus: &Bus, options: &Options<'_>| {
            bus.import_image(&self.import.name, &files, options).await
        };
        self.import.run(&bus, Kind::Image, begin(&bus, &options)).await
    }
}
