//! `banger image register`.

use std::{collections::HashMap, os::fd::AsFd, path::PathBuf};

use banger_proto::bus::{option::import, proxy::Options};
use clap::Args;
use zbus::{Fd, Variant};

use crate::{
    bus::Bus,
    command::import::{self as importing, ImportArgs},
    error::Result,
    service::Kind,
};

/// Make an image of a file with a root file system
///
/// The file is a tar archive of the root file system, plain or packed by gzip or zstd, or a raw ext4 file system
/// without partitions. Of an archive, the service makes a file system; an ext4 it copies, at once where the file
/// system of the host can. The file itself is not needed any more afterwards.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image register --name debian --rootfs ./debian.ext4
  docker export CONTAINER | zstd > mine.tar.zst
  banger image register --name mine --rootfs ./mine.tar.zst

Next: `banger vm run --image debian`.")]
pub struct Register {
    /// The file
    #[arg(long, value_name = "FILE")]
    rootfs: PathBuf,
    /// The kernel that sandboxes of this image boot [default: the service's]
    #[arg(long, visible_alias = "kernel-ref", value_name = "KERNEL")]
    kernel: Option<String>,
    #[command(flatten)]
    import: ImportArgs,
}

impl Register {
    pub async fn run(&self) -> Result<u8> {
        let rootfs = importing::open_file(&self.rootfs)?;
        let files = HashMap::from([(import::FILE_ROOTFS, Fd::from(rootfs.as_fd()))]);
        let mut options = self.import.options();
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
