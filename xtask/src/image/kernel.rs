//! Downloads a distribution's kernel package, for `banger kernel import`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};

use crate::{
    dist::platform,
    packages,
    run::{cache, command, output, run},
};

/// A kernel from an unpacked package.
#[derive(Debug, Clone)]
pub struct DistributionKernel {
    /// The directory into which the package was unpacked.
    pub root: PathBuf,
    /// The compressed kernel.
    pub vmlinuz: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

/// Downloads the kernel, unless it is cached.
pub fn ensure() -> Result<DistributionKernel> {
    static FETCHING: Mutex<()> = Mutex::new(());
    let _alone = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = cache().join("kernel");
    if let Some(kernel) = find(&directory) {
        return Ok(kernel);
    }
    packages::ensure()?;
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let architecture = platform::here()?.deb;
    let package = match newest(architecture, None) {
        Ok(package) => package,
        Err(_) => {
            run(&mut command("apt-get", ["update", "-qq"]))?;
            newest(architecture, None)?
        }
    };
    packages::unpack(&package, &directory, &directory.join("root"))?;
    find(&directory).context("the package has no kernel")
}

/// Returns the package of the newest kernel for virtual machines, by Debian's name of the architecture. apt may have
/// another configuration.
pub fn newest(architecture: &str, config: Option<&Path>) -> Result<String> {
    // This package depends on it.
    let mut depends = command("apt-cache", ["depends", &format!("linux-image-cloud-{architecture}")]);
    depends.envs(config.map(|config| ("APT_CONFIG", config)));
    let depends = output(&mut depends)?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    ensure!(package.is_some(), "apt knows of no kernel; run apt-get update");
    Ok(format!("linux-image-{}", package.unwrap_or_default()))
}

fn find(directory: &Path) -> Option<DistributionKernel> {
    let only = |directory: PathBuf, prefix: &str| {
        let entries = fs::read_dir(directory).ok()?;
        entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
    };
    let vmlinuz = only(directory.join("root/boot"), "vmlinuz-")?;
    let modules = only(directory.join("root/lib/modules"), "")?;
    Some(DistributionKernel { root: directory.join("root"), vmlinuz, modules })
}
