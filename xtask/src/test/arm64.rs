//! A check of level 5 that needs no test host: an arm64 guest boots under QEMU's emulation, on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

use crate::{
    cross,
    dist::platform,
    image::kernel,
    packages,
    run::{cache, command, run},
    test::level5::{ADAPTERS, test_program},
};

/// The name of the check.
pub const NAME: &str = "an arm64 guest boots under emulation until its agent answers";
/// The adapter tests of this, by the beginning of their names.
const TESTS: &str = "arm64::";
/// Environment variable with the directory of the kernel and the agent.
const FILES: &str = "BANGER_TEST_ARM64";

/// Runs the check. Returns why it cannot run on this machine.
pub fn check() -> Result<Option<String>> {
    if let Some(why) = cross::missing(platform::of("aarch64")?.rust)? {
        return Ok(Some(why));
    }
    let files = match kernel_package() {
        Ok(files) => files,
        Err(error) => return Ok(Some(format!("no kernel for arm64: {error:#}"))),
    };
    fs::copy(cross::agent()?, files.join("banger-agent"))?;
    let (program, skips) = (test_program(ADAPTERS)?, cache().join("skips-arm64"));
    fs::write(&skips, "")?;
    let mut test = command(&program.display().to_string(), [TESTS, "--nocapture"]);
    run(test.env(FILES, &files).env("BANGER_TEST_SKIPS", &skips))?;
    let skipped = fs::read_to_string(&skips)?;
    ensure!(skipped.is_empty(), "{skipped}");
    Ok(None)
}

/// Downloads Debian's kernel for arm64 unless it is cached, and returns the unpacked package. apt gets lists and a status of
/// its own, so that this machine does not become one with foreign packages.
fn kernel_package() -> Result<PathBuf> {
    let directory = cache().join("kernel-arm64");
    let root = directory.join("root");
    if root.join("boot").is_dir() {
        return Ok(root);
    }
    let apt = directory.join("apt");
    for below in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(below))?;
    }
    fs::write(apt.join("status"), "")?;
    let config = apt.join("apt.conf");
    fs::write(&config, apt_config(&apt))?;
    packages::apt_of(&config, &["update", "-qq"])?;
    let newest = kernel::newest(platform::of("aarch64")?.deb, Some(&config))?;
    let unfinished = directory.join("unfinished");
    packages::unpack_of(&newest, &directory, &unfinished, Some(&config))?;
    fs::rename(&unfinished, &root)?;
    Ok(root)
}

fn apt_config(apt: &Path) -> String {
    let path = |below: &str| apt.join(below).display().to_string();
    [
        ("Dir::State", path("")),
        ("Dir::State::lists", path("lists")),
        ("Dir::State::status", path("status")),
        ("Dir::Cache", path("cache")),
        ("APT::Architecture", "arm64".to_owned()),
        ("APT::Sandbox::User", "root".to_owned()),
    ]
    .map(|(key, value)| format!("{key} \"{value}\";\n"))
    .concat()
        + "APT::Architectures { \"arm64\"; };\n"
}
