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
    run::{cache, command, output, run},
    test::level5::{ADAPTERS, test_program},
};

/// The name of the check.
pub const NAME: &str = "an arm64 guest boots under emulation until its agent answers";
/// The adapter test that does it.
const TEST: &str = "arm64::an_arm64_guest_boots_until_its_agent_answers_and_another_continues_from_it";
/// Environment variable with the directory of the kernel and the agent.
const FILES: &str = "BANGER_TEST_ARM64";

/// Runs the check. Returns why it cannot run on this machine.
pub fn check() -> Result<Option<String>> {
    if let Some(why) = cross::missing(platform::of("aarch64")?.rust)? {
        return Ok(Some(why));
    }
    if let Err(error) = packages::ensure_arm64_emulator() {
        return Ok(Some(format!("no qemu-system-arm: {error:#}")));
    }
    if !rustix::process::geteuid().is_root() {
        return Ok(Some("it needs root".to_owned()));
    }
    let files = match kernel_package() {
        Ok(files) => files,
        Err(error) => return Ok(Some(format!("no kernel for arm64: {error:#}"))),
    };
    fs::copy(cross::agent()?, files.join("banger-agent"))?;
    let (program, skips) = (test_program(ADAPTERS)?, cache().join("skips-arm64"));
    fs::write(&skips, "")?;
    let program = program.display().to_string();
    // libtest is content with a name that no test has.
    let list = output(&mut command(&program, ["--exact", TEST, "--list"]))?;
    ensure!(has_test(&list), "the adapter tests have no {TEST}");
    let mut test = command(&program, ["--exact", TEST, "--nocapture"]);
    run(test.env(FILES, &files).env("BANGER_TEST_SKIPS", &skips))?;
    let skipped = fs::read_to_string(&skips)?;
    ensure!(skipped.is_empty(), "{skipped}");
    Ok(None)
}

/// Returns whether the test is in a list of libtest.
fn has_test(list: &str) -> bool {
    list.lines().any(|line| line.strip_suffix(": test") == Some(TEST))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::run::repository;

    #[test]
    fn the_adapter_tests_have_the_test_that_the_check_runs() {
        let (module, name) = TEST.split_once("::").unwrap();
        let file = repository().join(format!("banger-system/tests/adapters/{module}.rs"));
        assert!(fs::read_to_string(file).unwrap().contains(&format!("async fn {name}()")));
    }

    #[test]
    fn a_list_without_the_test_is_noticed() {
        assert!(has_test(&format!("{TEST}: test\n\n1 test, 0 benchmarks\n")));
        assert!(!has_test("0 tests, 0 benchmarks\n"));
        assert!(!has_test(&format!("{TEST}_twice: test\n")));
    }
}
