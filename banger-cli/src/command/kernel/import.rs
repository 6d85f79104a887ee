//! `banger kernel import`.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use banger_image::installed::{InstalledKernel, find, modules, releases};
use banger_proto::bus::option::import;
use clap::Args;
use zbus::Fd;

use crate::{
    client::{bus::Bus, service::Kind},
    command::add::{AddArgs, open_file},
    error::{Error, Result},
};

/// Import a kernel and its modules
///
/// The service extracts what a sandbox needs and copies it, so you can delete the files afterwards. A kernel
/// with all drivers built in needs no modules.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger kernel import --name mine --host
  banger kernel import --name next --vmlinuz ./vmlinuz-6.12 --modules ./lib/modules/6.12
  dpkg -x linux-image-*.deb unpacked && banger kernel import --name cloud --from unpacked

Next: `banger vm run --kernel mine`.")]
pub struct Import {
    /// Name for the kernel
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Kernel: a vmlinuz or an ELF vmlinux
    #[arg(long, value_name = "FILE", required_unless_present_any = ["host", "from"])]
    vmlinuz: Option<PathBuf>,
    /// Directory of its modules, as in /lib/modules
    #[arg(long, value_name = "DIRECTORY")]
    modules: Option<PathBuf>,
    /// Take the kernel that this host runs, with its modules
    #[arg(long, conflicts_with_all = ["vmlinuz", "modules"])]
    host: bool,
    /// Take the kernel and its modules from a directory laid out like the root of Debian, Ubuntu, Fedora or
    /// Arch, such as an unpacked package
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["vmlinuz", "modules", "host"])]
    from: Option<PathBuf>,
    /// Take the kernel of this release, such as 6.12.1-1-amd64, if --from has several
    #[arg(long, value_name = "RELEASE", requires = "from")]
    release: Option<String>,
    #[command(flatten)]
    add: AddArgs,
}

impl Import {
    pub async fn run(&self) -> Result<u8> {
        let (vmlinuz, modules) = match (&self.vmlinuz, &self.from) {
            (Some(vmlinuz), _) => (vmlinuz.clone(), self.modules.clone()),
            (None, Some(root)) => of_root(root, self.release.as_deref())?,
            (None, None) => of_host(Path::new("/"), &release())?,
        };
        if self.vmlinuz.is_none() && modules.is_none() {
            self.add.progress().note(&without_modules(&vmlinuz));
        }
        let files = Files::open(&vmlinuz, modules.as_deref())?;
        let bus = Bus::connect().await?;
        let (files, options) = (files.borrowed(), self.add.options());
        let begin = bus.import_kernel(&self.name, &files, &options);
        self.add.run(&bus, Kind::Kernel, &self.name, begin).await
    }
}

/// Returns the note about a kernel of a distribution that was found without its modules. The service refuses one whose
/// root disk or agent would not work; others may lack anything else.
fn without_modules(vmlinuz: &Path) -> String {
    let release = vmlinuz.file_name().unwrap_or_default().to_string_lossy().replace("vmlinuz-", "");
    format!(
        "note: there are no modules for {release}, so its sandboxes have only the drivers that are built into it; \
         `--vmlinuz FILE --modules DIRECTORY` imports both"
    )
}

/// The files of a kernel, as the service gets them.
#[derive(Debug)]
pub struct Files {
    kernel: File,
    modules: Option<File>,
}

impl Files {
    /// Opens a kernel and packs the directory of its modules.
    pub fn open(vmlinuz: &Path, modules: Option<&Path>) -> Result<Self> {
        Ok(Self { kernel: open_file(vmlinuz)?, modules: modules.map(packed).transpose()? })
    }

    /// Returns the files under their names in the call.
    pub fn borrowed(&self) -> HashMap<&'static str, Fd<'_>> {
        let kernel = (import::FILE_KERNEL, Fd::from(self.kernel.as_fd()));
        let modules = self.modules.iter().map(|modules| (import::FILE_MODULES, Fd::from(modules.as_fd())));
        modules.chain([kernel]).collect()
    }
}

/// Returns the release of the running kernel.
fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Returns the files of an installed kernel.
fn files_of(kernel: InstalledKernel) -> (PathBuf, Option<PathBuf>) {
    (kernel.vmlinuz, kernel.modules)
}

/// Packs the directory of a kernel's modules into a temporary file.
fn packed(directory: &Path) -> Result<File> {
    let file = tempfile::tempfile().map_err(|source| Error::io("create a temporary file", source))?;
    modules::archive(directory, file).map_err(|error| match error {
        modules::Error::Io { doing, source } => Error::io(doing, source),
        modules::Error::Empty { .. } => Error::Refused(error.to_string()),
    })
}

fn of_host(root: &Path, release: &str) -> Result<(PathBuf, Option<PathBuf>)> {
    let missing = || {
        let boot = root.join(format!("boot/vmlinuz-{release}"));
        Error::Refused(format!(
            "cannot find the kernel {release} that this host runs: there is no {}",
            boot.display()
        ))
        .with_hint("`--vmlinuz FILE --modules DIRECTORY` imports another kernel.")
    };
    find(root, release).map(files_of).ok_or_else(missing)
}

/// Finds the kernel below a directory: the one with this release, or the only one.
fn of_root(root: &Path, release: Option<&str>) -> Result<(PathBuf, Option<PathBuf>)> {
    let there = releases(root);
    let refuse = |why: String| Error::Refused(format!("{} {why}", root.display()));
    match (release, there.as_slice()) {
        (Some(release), _) if there.iter().any(|there| there == release) => find(root, release),
        (Some(release), _) => return Err(refuse(format!("has no kernel {release}"))),
        (None, [only]) => find(root, only),
        (None, []) => return Err(refuse("has no kernel in boot, lib/modules or usr/lib/modules".to_owned())),
        (None, several) => {
            let several = refuse(format!("has several kernels: {}", several.join(", ")));
            return Err(several.with_hint("`--release RELEASE` chooses one of them."));
        }
    }
    .map(files_of)
    .ok_or_else(|| refuse("no longer has the kernel".to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn the_kernel_of_the_host_is_found() {
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
        assert!(without_modules(&at("boot/vmlinuz-6.2")).starts_with("note: there are no modules for 6.2,"));
    }

    /// Creates the files of a distribution's package, and checks which kernel and modules are found.
    fn check(files: &[&str], release: Option<&str>, expect: Result<(&str, &str), &str>) {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        match (of_root(root.path(), release), expect) {
            (Ok((vmlinuz, modules)), Ok(expect)) => {
                let below =
                    |path: &Path| path.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned();
                assert_eq!((below(&vmlinuz).as_str(), below(&modules.unwrap()).as_str()), expect);
            }
            (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{error}"),
            (found, expect) => panic!("{found:?} instead of {expect:?}"),
        }
    }

    #[test]
    fn the_kernels_of_distribution_packages_are_found() {
        // Debian 12, whose modules are not compressed.
        let debian = [
            "boot/vmlinuz-6.1.0-41-cloud-amd64",
            "boot/System.map-6.1.0-41-cloud-amd64",
            "boot/config-6.1.0-41-cloud-amd64",
            "lib/modules/6.1.0-41-cloud-amd64/kernel/drivers/block/virtio_blk.ko",
            "lib/modules/6.1.0-41-cloud-amd64/modules.builtin",
        ];
        check(&debian, None, Ok((debian[0], "lib/modules/6.1.0-41-cloud-amd64")));
        // Ubuntu 24.04, with separate packages for kernel and modules.
        let ubuntu = [
            "boot/vmlinuz-6.8.0-60-generic",
            "lib/modules/6.8.0-60-generic/kernel/drivers/block/virtio_blk.ko.zst",
            "usr/share/doc/linux-image-6.8.0-60-generic/copyright",
        ];
        check(&ubuntu, None, Ok((ubuntu[0], "lib/modules/6.8.0-60-generic")));
        // Fedora 41: the kernel is in the modules directory, and a script copies it to /boot.
        let fedora = [
            "lib/modules/6.13.5-200.fc41.x86_64/vmlinuz",
            "lib/modules/6.13.5-200.fc41.x86_64/.vmlinuz.hmac",
            "lib/modules/6.13.5-200.fc41.x86_64/kernel/drivers/block/virtio_blk.ko.xz",
        ];
        check(&fedora, None, Ok((fedora[0], "lib/modules/6.13.5-200.fc41.x86_64")));
        // Arch.
        let arch = [
            "usr/lib/modules/6.13.6-arch1-1/vmlinuz",
            "usr/lib/modules/6.13.6-arch1-1/pkgbase",
            "usr/lib/modules/6.13.6-arch1-1/kernel/drivers/block/virtio_blk.ko.zst",
        ];
        check(&arch, None, Ok((arch[0], "usr/lib/modules/6.13.6-arch1-1")));
    }

    #[test]
    fn of_several_kernels_one_is_chosen() {
        let two = ["boot/vmlinuz-6.1", "boot/vmlinuz-6.2", "lib/modules/6.1/x.ko", "lib/modules/6.2/x.ko"];
        check(&two, None, Err("has several kernels: 6.1, 6.2"));
        check(&two, Some("6.2"), Ok(("boot/vmlinuz-6.2", "lib/modules/6.2")));
        check(&two, Some("6.3"), Err("has no kernel 6.3"));
        check(&two, Some("../../etc"), Err("has no kernel ../../etc"));
        // Headers, and modules without their kernel.
        check(&["lib/modules/6.1/x.ko", "usr/src/linux/Makefile"], None, Err("has no kernel in boot"));
    }
}
