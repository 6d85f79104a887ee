//! `cargo xtask dist deb`: builds a Debian package from the files that [`install`] installs.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{
    build::{self, Programs, install},
    run::{cache, command, hex, repository, run},
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
    let package = directory.join(FILE);
    let compression = match compression {
        Compression::None => "-Znone",
        Compression::Xz => "-Zxz",
    };
    let mut build = command("dpkg-deb", ["--root-owner-group", compression, "--build"]);
    run(build.arg(&tree).arg(&package))?;
    Ok(Package { digest })
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
