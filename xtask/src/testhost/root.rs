//! Builds the file system of the test host from Debian's packages, without mounting anything.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::machine;
use crate::{
    image::{
        self,
        kernel::{self, DistributionKernel},
    },
    packages,
    run::{command, hex, output, repository, run, say},
};

/// Version of the recipe. Raise it for a change that the other inputs of the digest do not show.
const RECIPE: u32 = 1;
const SETUP: &str = script_text!("testhost/setup.sh");
/// The size of the root disk. Unused blocks take no space.
const SIZE: u64 = 16 << 30;
const PACKAGES: &str = "xtask/images/testhost.packages";

/// The files of a test host, before or after its first boot.
pub struct Root {
    /// The directory of all its files, named by the digest of its inputs.
    pub directory: PathBuf,
}

impl Root {
    /// Returns the path of the root file system.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.ext4")
    }

    /// Returns the path of the kernel from its packages.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// Returns the path of the initramfs from its packages.
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initrd.img")
    }

    /// Returns the path of the private key for root's ssh login.
    pub fn key(&self) -> PathBuf {
        self.directory.join("key")
    }

    /// Returns the path of the host's public key, in the format of `known_hosts`.
    pub fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }

    /// Returns the path of the memory saved after the first boot. It is missing before.
    pub fn memory(&self) -> PathBuf {
        self.directory.join("memory")
    }
}

/// Returns the file system, and builds it below `parent` if it is missing. It may not have been booted yet.
pub fn ensure(parent: &Path) -> Result<Root> {
    let list = repository().join(PACKAGES);
    let included = image::packages_in(&list)?;
    // For sandboxes: a small image, and the kernel with the fewest modules.
    let provisions = Provisions { image: image::ensure("minimal")?, kernel: kernel::ensure()? };
    let inputs = format!(
        "{RECIPE}\n{SIZE}\n{}\n{SETUP}\n{:?}\n{:?}\n{}\n{}",
        included.join("\n"),
        provisions.image.file_name(),
        provisions.kernel.vmlinuz.file_name(),
        machine::recipe(),
        qemu_version()?
    );
    let digest = hex(&Sha256::digest(inputs));
    let root = Root { directory: parent.join(format!("root-{}", &digest[..12])) };
    if root.directory.is_dir() {
        return Ok(root);
    }
    packages::ensure()?;
    ensure!(rustix::process::geteuid().is_root(), "building the test host's file system needs root");
    say("building the file system of the test host");
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let scratch = tempfile::tempdir_in(parent).context("cannot create a temporary directory")?;
    let unfinished = Root { directory: scratch.path().join("new") };
    fs::create_dir(&unfinished.directory)?;
    make(&unfinished, &scratch.path().join("root"), &included, &provisions, &digest)?;
    remove_others(parent)?;
    fs::rename(&unfinished.directory, &root.directory).context("cannot rename the file system")?;
    Ok(root)
}

fn make(root: &Root, tree: &Path, included: &[String], provisions: &Provisions, digest: &str) -> Result<()> {
    image::bootstrap(tree, image::SUITE, included)?;
    let key = root.key();
    run(command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "xtask", "-f"]).arg(&key))?;
    let public = key.with_extension("pub");
    let setup = script!("testhost/setup.sh", root = tree.display(), key = public.display());
    run(&mut command(&setup[0], &setup[1..]))?;
    let host_key = fs::read_to_string(tree.join("etc/ssh/ssh_host_ed25519_key.pub"))?;
    fs::write(root.known_hosts(), format!("test-host {host_key}"))?;
    provisions.copy(&tree.join("srv"))?;
    // The links in the root directory point to the newest kernel.
    fs::copy(tree.join("vmlinuz"), root.kernel()).context("the host has no kernel")?;
    fs::copy(tree.join("initrd.img"), root.initramfs()).context("the host has no initramfs")?;
    image::write_ext4(tree, &root.disk(), SIZE, digest)
}

/// The files in `/srv` of the host.
struct Provisions {
    image: PathBuf,
    kernel: DistributionKernel,
}

impl Provisions {
    fn copy(&self, directory: &Path) -> Result<()> {
        let sparse = ["--archive", "--sparse=always", "--reflink=auto"];
        run(command("cp", sparse).arg(&self.image).arg(directory.join("minimal.ext4")))?;
        run(command("cp", sparse).arg(&self.kernel.vmlinuz).arg(directory.join("vmlinuz")))?;
        let modules = directory.join("modules");
        fs::create_dir(&modules)?;
        // The path contains the kernel's release.
        run(command("cp", sparse).arg(&self.kernel.modules).arg(modules))
    }
}

/// Removes hosts that were built from other inputs; each takes more than a gigabyte.
fn remove_others(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("root-") {
            fs::remove_dir_all(entry.path()).context("cannot remove an older test host")?;
        }
    }
    Ok(())
}

/// Returns the version of QEMU: only the version that saved a memory can restore it.
fn qemu_version() -> Result<String> {
    packages::ensure()?;
    output(&mut command(machine::QEMU, ["--version"]))
}
