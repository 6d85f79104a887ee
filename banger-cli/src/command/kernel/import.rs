//! `banger kernel import`.

use std::{collections::HashMap, os::fd::AsFd, path::PathBuf};

use banger_proto::bus::option::import;
use clap::Args;
use zbus::Fd;

use super::modules;
use crate::{
    bus::Bus,
    command::import::{ImportArgs, open_file},
    error::Result,
    service::Kind,
};

/// Make a kernel of a distribution's kernel and its modules
///
/// The service takes out what a sandbox needs and copies it; the files are not needed any more afterwards. A
/// kernel that has all drivers built in needs no modules.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger kernel import --name host --vmlinuz /boot/vmlinuz-$(uname -r) \\
      --modules /lib/modules/$(uname -r)

Next: `banger vm run --kernel host`.")]
pub struct Import {
    /// The kernel, a vmlinuz or an ELF vmlinux
    #[arg(long, value_name = "FILE")]
    vmlinuz: PathBuf,
    /// The directory of its modules, as in /lib/modules
    #[arg(long, value_name = "DIRECTORY")]
    modules: Option<PathBuf>,
    #[command(flatten)]
    import: ImportArgs,
}

impl Import {
    pub async fn run(&self) -> Result<u8> {
        let kernel = open_file(&self.vmlinuz)?;
        let modules = self.modules.as_deref().map(modules::archive).transpose()?;
        let mut files = HashMap::from([(import::FILE_KERNEL, Fd::from(kernel.as_fd()))]);
        if let Some(modules) = &modules {
            files.insert(import::FILE_MODULES, Fd::from(modules.as_fd()));
        }
        let bus = Bus::connect().await?;
        let options = self.import.options();
        let begin = bus.import_kernel(&self.import.name, &files, &options);
        self.import.run(&bus, Kind::Kernel, begin).await
    }
}
