//! `cargo xtask dist deb`: builds a Debian package from the files that [`install`] installs. The same files give the
//! same bytes: times are those of the last commit, or of `SOURCE_DATE_EPOCH`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{
    build::{self, Programs, install},
    run::{cache, command, hex, output, repository, run},
};

/// The file name of the package.
pub const FILE: &str = "banger.deb";
/// Runtime dependencies. dmsetup contains the udev rules that our disks rely on.
const DEPENDS: &str = "dbus, polkitd, systemd (>= 252), qemu-system-x86, dmsetup";

/// Needed for `banger vm ssh` and for registries, and optional otherwise.
const RECOMMENDS: &str = "ca-certificates, openssh-client (>= 1:8.5)";

/// How the content of the package is compressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all, for tests.
    None,
    /// As Debian does.
    Xz,
}

/// A built package.
pub struct Package {
    /// The digest of its contents.
    pub digest: String,
}

/// Builds the package from release builds and returns its path.
pub fn dist() -> Result<PathBuf> {
    let directory = cache().join("dist");
    make(&build::release()?, &directory, Compression::Xz)?;
    Ok(directory.join(FILE))
}

/// Builds the package in a directory.
pub fn make(programs: &Programs, directory: &Path, compression: Compression) -> Result<Package> {
    let tree = directory.join("banger.tree");
    // An earlier build may have installed other files.
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    install::into(&tree, programs)?;
    let control = tree.join("DEBIAN");
    fs::create_dir_all(&control).with_context(|| format!("cannot create {}", control.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    fs::write(
        control.join("control"),
        format!(
            "Package: banger\nVersion: {version}\nArchitecture: amd64\nMaintainer: the banger maintainers\n\
             Section: admin\nPriority: optional\nDepends: {DEPENDS}\n\
             Recommends: {RECOMMENDS}\n\
             Description: one-command development sandboxes on microVMs\n \
             A service that runs sandboxes as virtual machines, and a command for its users.\n"
        ),
    )?;
    for script in ["postinst", "prerm", "postrm"] {
        let from = repository().join("packaging/deb").join(script);
        let to = control.join(script);
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let digest = digest(&tree)?;
    pack(&tree, &directory.join(FILE), compression, &source_date()?)?;
    Ok(Package { digest })
}

/// Packs a tree with times not later than `epoch`, in seconds.
fn pack(tree: &Path, package: &Path, compression: Compression, epoch: &str) -> Result<()> {
    let compression = match compression {
        Compression::None => "-Znone",
        Compression::Xz => "-Zxz",
    };
    let mut build = command("dpkg-deb", ["--root-owner-group", compression, "--build"]);
    // Threads divide the content by their number.
    build.arg("--threads-max=1").env("SOURCE_DATE_EPOCH", epoch);
    run(build.arg(tree).arg(package))
}

/// Returns the time of the sources in seconds (<https://reproducible-builds.org/specs/source-date-epoch/>).
fn source_date() -> Result<String> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(epoch) => Ok(epoch),
        Err(_) => {
            let time = output(command("git", ["log", "-1", "--format=%ct"]).current_dir(repository()))?;
            Ok(time.trim().to_owned())
        }
    }
}

/// Returns a digest of the names and contents of all files below a directory.
fn digest(tree: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect(tree, &mut files)?;
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(file.strip_prefix(tree)?.as_os_str().as_encoded_bytes());
        io::copy(&mut File::open(&file)?, &mut hasher)?;
    }
    Ok(hex(&hasher.finalize()))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_same_files_give_the_same_package() {
        let build = |age: u64, names: [&str; 3], directory: &Path| {
            let tree = directory.join("tree");
            for name in names {
                let path = tree.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(
                    &path,
                    "Package: banger\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n",
                )
                .unwrap();
                let time = SystemTime::now() - Duration::from_secs(age);
                File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            }
            let package = directory.join(FILE);
            pack(&tree, &package, Compression::Xz, "1700000000").unwrap();
            fs::read(package).unwrap()
        };
        let directory = || tempfile::tempdir().unwrap();
        let names = ["DEBIAN/control", "usr/bin/a", "usr/share/b"];
        let first = build(10, names, directory().path());
        assert_eq!(first, build(5000, [names[2], names[1], names[0]], directory().path()));
        assert_ne!(first, build(10, [names[0], names[1], "usr/share/c"], directory().path()));
    }
}
