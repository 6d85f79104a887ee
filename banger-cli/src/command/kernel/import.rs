//! `banger kernel import`.

use std::{
    collections::HashMap,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use banger_proto::bus::option::import;
use clap::Args;
use zbus::Fd;

use super::modules;
use crate::{
    bus::Bus,
    command::import::{ImportArgs, open_file},
    error::{Error, Result},
    service::Kind,
};

/// Make a kernel of a distribution's kernel and its modules
///
/// The service takes out what a sandbox needs and copies it; the files are not needed any more afterwards. A
/// kernel that has all drivers built in needs no modules.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger kernel import --name host --host
  banger kernel import --name next --vmlinuz ./vmlinuz-6.12 --modules ./lib/modules/6.12

Next: `banger vm run --kernel host`.")]
pub struct Import {
    /// The kernel, a vmlinuz or an ELF vmlinux
    #[arg(long, value_name = "FILE", required_unless_present = "host")]
    vmlinuz: Option<PathBuf>,
    /// The directory of its modules, as in /lib/modules
    #[arg(long, value_name = "DIRECTORY")]
    modules: Option<PathBuf>,
    /// The kernel that this host runs, with its modules
    #[arg(long, conflicts_with_all = ["vmlinuz", "modules"])]
    host: bool,
    #[command(flatten)]
    import: ImportArgs,
}

impl Import {
    pub async fn run(&self) -> Result<u8> {
        let (vmlinuz, modules) = match &self.vmlinuz {
            Some(vmlinuz) => (vmlinuz.clone(), self.modules.clone()),
            None => of_host(Path::new("/"), &release())?,
        };
        let kernel = open_file(&vmlinuz)?;
        let modules = modules.as_deref().map(modules::archive).transpose()?;
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

/// What `uname -r` prints.
fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The kernel of this release and its modules, where distributions have them: Debian and its kin below `/boot`,
/// Fedora there and with the modules, Arch with the modules alone.
fn of_host(root: &Path, release: &str) -> Result<(PathBuf, Option<PathBuf>)> {
    let modules = root.join("lib/modules").join(release);
    let places = [root.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
    let vmlinuz = places.iter().find(|place| place.is_file()).cloned();
    let missing = || {
        let [boot, _] = &places;
        Error::Usage(format!("this host runs the kernel {release}, and {} is not there", boot.display()))
            .advise("`--vmlinuz FILE --modules DIRECTORY` names another kernel.")
    };
    Ok((vmlinuz.ok_or_else(missing)?, Some(modules).filter(|modules| modules.is_dir())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn the_kernel_of_the_host_is_where_its_distribution_puts_it() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        assert!(of_host(root.path(), "6.1").unwrap_err().to_string().contains("the kernel 6.1"));
        fs::create_dir_all(at("lib/modules/6.1")).unwrap();
        fs::create_dir_all(at("boot")).unwrap();
        fs::write(at("lib/modules/6.1/vmlinuz"), "arch").unwrap();
        let modules = Some(at("lib/modules/6.1"));
        assert_eq!(of_host(root.path(), "6.1").unwrap(), (at("lib/modules/6.1/vmlinuz"), modules.clone()));
        fs::write(at("boot/vmlinuz-6.1"), "debian").unwrap();
        assert_eq!(of_host(root.path(), "6.1").unwrap(), (at("boot/vmlinuz-6.1"), modules));
        fs::write(at("boot/vmlinuz-6.2"), "without modules").unwrap();
        assert_eq!(of_host(root.path(), "6.2").unwrap(), (at("boot/vmlinuz-6.2"), None));
    }
}
