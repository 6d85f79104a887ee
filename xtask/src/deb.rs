//! `cargo xtask dist deb`: banger as a Debian package, of the files that [`install`] puts in place.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{
    build::{self, Programs},
    install,
    run::{cache, command, hex, repository, run},
};

/// The name of the package's file.
pub const FILE: &str = "banger.deb";
/// What its programs need at run time. dmsetup has the rules by which udev leaves our disks alone.
const DEPENDS: &str = "dbus, polkitd, systemd (>= 252), qemu-system-x86, nftables, dmsetup";

/// What `banger vm ssh` runs, and nothing else needs.
const RECOMMENDS: &str = "ca-certificates, openssh-client (>= 1:8.5)";

/// How the package's content is packed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all, for a test.
    None,
    /// As Debian does.
    Xz,
}

/// A package.
pub struct Package {
    /// The digest of all that is in it.
    pub digest: String,
}

/// Builds the programs as they are shipped and makes the package. Returns its path.
pub fn dist() -> Result<PathBuf> {
    let directory = cache().join("dist");
    make(&build::release()?, &directory, Compression::Xz)?;
    Ok(directory.join(FILE))
}

/// Makes the package in a directory.
pub fn make(programs: &Programs, directory: &Path, compression: Compression) -> Result<Package> {
    let tree = directory.join("banger.tree");
    install::into(&tree, programs)?;
    let control = tree.join("DEBIAN");
    fs::create_dir_all(&control).with_context(|| format!("cannot make {}", control.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    fs::write(
        control.join("control"),
        format!(
            "Package: banger\nVersion: {version}\nArchitecture: amd64\nMaintainer: the banger maintainers\n\
             Section: admin\nPriority: optional\nDepends: {DEPENDS}\n\
             Recommends: {RECOMMENDS}\n\
             Description: one-command development sandboxes on microVMs\n \
             A service that owns virtual machines, and a command for its users.\n"
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

/// The digest of every file below a directory, with its name.
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
