//! Level 5: the Debian package on a Debian system with device-mapper and virtualisation.

mod packages;

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    run::{cargo, repository, say},
    test::{Tally, arm64, is_wanted},
    testhost::{self, TestHost},
};

type Check = fn(&TestHost) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("snapshots of sandboxes are right on a kernel that has device-mapper", adapter),
    ("doctor finds snapshots and virtualisation", doctor),
    ("a command runs in a sandbox under KVM", command_under_kvm),
    ("two sandboxes share their image, and nothing looks into it", shared_image),
    ("a system disk grows behind its snapshot", grown_disk),
    ("a system disk on device-mapper becomes an image", committed),
    ("a fork on device-mapper has disks of its own", forked),
    ("a reboot leaks nothing, and sandboxes start again", reboot),
    ("nothing is left behind", nothing_left),
    ("an upgrade of the packages keeps a guest and its command running", packages::upgrade),
    ("older packages refuse a newer database and leave it as it is", packages::downgrade),
    // After it, nothing of banger is there.
    ("packages that are purged leave nothing", packages::purge),
    ("a first run needs the packages only", packages::first_run),
];
/// The check of Firecracker, which Debian does not package.
const UNDER_FIRECRACKER: (&str, Check) =
    ("a command runs in a sandbox under Firecracker, on a snapshot and in the network", firecracker);
/// How many checks come before it.
const BEFORE_FIRECRACKER: usize = 7;
/// Environment variable with the path of a Firecracker binary. Without it, the check is skipped.
const FIRECRACKER: &str = "BANGER_TEST_FIRECRACKER";
/// The program of the adapter tests.
pub const ADAPTERS: &str = "adapters";
/// The adapter tests that need device-mapper, which the developer's kernel may lack.
pub const MAPPER: &str = "mapper::";

/// Runs the checks whose names contain `only`, one after the other: in a fresh test host, but for that of arm64.
pub fn run(only: &str) -> Result<Tally> {
    let mut tally = Tally::default();
    if is_wanted(arm64::NAME, only) {
        check_arm64(&mut tally);
    }
    let names = CHECKS.iter().chain([&UNDER_FIRECRACKER]).map(|(name, _)| name);
    if names.into_iter().any(|name| is_wanted(name, only)) {
        let there = run_there(only)?;
        tally.passed += there.passed;
        tally.failed.extend(there.failed);
        tally.skipped.extend(there.skipped);
    }
    Ok(tally)
}

fn check_arm64(tally: &mut Tally) {
    let begin = Instant::now();
    match arm64::check() {
        Ok(None) => {
            say(&format!("PASS {} ({:.0} s)", arm64::NAME, begin.elapsed().as_secs_f64()));
            tally.passed += 1;
        }
        Ok(Some(why)) => tally.skipped.push(format!("{}: {why}", arm64::NAME)),
        Err(error) => {
            say(&format!("FAIL {} ({:.0} s): {error:#}", arm64::NAME, begin.elapsed().as_secs_f64()));
            tally.failed.push(format!("{}: {error:#}", arm64::NAME));
        }
    }
}

fn run_there(only: &str) -> Result<Tally> {
    let attempt = || check_all(&testhost::up(&testhost::Up { fresh: true, bare: false })?, only);
    let tally = attempt().or_else(|error| match testhost::stands_still() {
        true => {
            say(&format!("AGAIN level 5: the kernel of the emulated test host stood still ({error:#})"));
            attempt()
        }
        false => Err(error),
    });
    testhost::down()?;
    tally
}

fn check_all(host: &TestHost, only: &str) -> Result<Tally> {
    host.provide()?;
    let mut tally = Tally::default();
    let mut checks = CHECKS.to_vec();
    match std::env::var_os(FIRECRACKER) {
        Some(_) => checks.insert(BEFORE_FIRECRACKER, UNDER_FIRECRACKER),
        None => tally.skipped.push(format!("{}: {FIRECRACKER} is not set", UNDER_FIRECRACKER.0)),
    }
    for (name, check) in checks.into_iter().filter(|(name, _)| is_wanted(name, only)) {
        let begin = Instant::now();
        match check(host) {
            Ok(()) => {
                say(&format!("PASS {name} ({:.0} s)", begin.elapsed().as_secs_f64()));
                tally.passed += 1;
            }
            Err(error) if testhost::stands_still() => return Err(error.context(name)),
            Err(error) => {
                say(&format!("FAIL {name} ({:.0} s): {error:#}", begin.elapsed().as_secs_f64()));
                tally.failed.push(format!("{name}: {error:#}"));
                // The next check must not see what this one left.
                let clear = "banger vm list --quiet | xargs --no-run-if-empty banger vm delete --force";
                run_quietly(host.session("alice", &["sh", "-c", clear]))?;
            }
        }
    }
    Ok(tally)
}

fn adapter(host: &TestHost) -> Result<()> {
    let program = host.share(&test_program(ADAPTERS)?, ADAPTERS)?;
    let skips = "/tmp/skips";
    let script =
        format!("BANGER_TEST_SKIPS={skips} {program} {MAPPER} --test-threads=1 2>&1 && ! test -s {skips}");
    expect(host.enter(&["sh", "-c", &script])).map(drop)
}

/// Builds the integration test of this name and returns its program.
pub fn test_program(name: &str) -> Result<PathBuf> {
    let mut build = cargo(["test", "--quiet", "--no-run", "--message-format=json", "--workspace"]);
    let built = build.args(["--test", name]).current_dir(repository()).stderr(Stdio::inherit()).output()?;
    ensure!(built.status.success(), "cannot build the tests {name}");
    let text = String::from_utf8_lossy(&built.stdout);
    let programs = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = programs
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.with_context(|| format!("cargo does not report the program of {name}"))
}

fn doctor(host: &TestHost) -> Result<()> {
    let said = expect(host.session("alice", &["banger", "doctor"]))?;
    for line in ["PASS  kvm", "PASS  disks"] {
        ensure!(said.contains(line), "{said}");
    }
    Ok(())
}

fn command_under_kvm(host: &TestHost) -> Result<()> {
    let script = "cat /proc/cmdline; cat /sys/devices/virtual/dmi/id/sys_vendor; exit 42";
    let output =
        run_quietly(host.session("alice", &["banger", "vm", "run", "--rm", "--", "sh", "-c", script]))?;
    ensure!(output.status.code() == Some(42), "{}: {}", output.status, text(&output.stderr));
    let said = text(&output.stdout);
    ensure!(said.contains("console=ttyS0"), "{said:?}");
    Ok(())
}

fn shared_image(host: &TestHost) -> Result<()> {
    for name in ["one", "two"] {
        // Two of the usual size are more than a user may have on this host.
        expect(host.session("alice", &["banger", "vm", "create", "--name", name, "--memory", "512M"]))?;
    }
    let table = expect(host.enter(&["dmsetup", "table", "--target", "snapshot"]))?;
    let origins: Vec<&str> = table.lines().filter_map(|line| line.split_whitespace().nth(4)).collect();
    ensure!(origins.len() == 2 && origins[0] == origins[1], "{table}");
    let found = "udevadm settle; readlink -f /dev/disk/by-label/* /dev/disk/by-uuid/* | grep -E '/(dm-|loop)' || true";
    let found = expect(host.enter(&["sh", "-c", found]))?;
    ensure!(found.is_empty(), "the host looked into {found}");
    // What is written in one sandbox survives a restart, and the other does not see it.
    let sh = |name: &str, script: &str| {
        expect(host.session("alice", &["banger", "vm", "exec", name, "--", "sh", "-c", script]))
    };
    sh("one", "echo kept > /mark && sync")?;
    expect(host.session("alice", &["banger", "vm", "stop", "one"]))?;
    let table = expect(host.enter(&["dmsetup", "table", "--target", "snapshot"]))?;
    ensure!(table.lines().count() == 1, "{table}");
    expect(host.session("alice", &["banger", "vm", "start", "one"]))?;
    ensure!(sh("one", "cat /mark")? == "kept", "the system disk lost what was written");
    ensure!(sh("two", "ls /mark 2>&1 || true")?.contains("No such file"), "two sandboxes share a disk");
    for name in ["one", "two"] {
        expect(host.session("alice", &["banger", "vm", "delete", "--force", name]))?;
    }
    Ok(())
}

/// Checks that a system disk grows beyond its image, which has 512 MiB.
fn grown_disk(host: &TestHost) -> Result<()> {
    let said = expect(host.session("alice", &script!("level5/grown_disk.sh")))?;
    for expected in ["made: 1", "grown: 12", "kept"] {
        ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
    }
    let table = expect(host.enter(&["sh", "-c", "dmsetup table | grep ^banger-"]))?;
    let targets: Vec<&str> = table.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    ensure!(targets == ["snapshot", "linear"], "{table}");
    expect(host.session("alice", &["banger", "vm", "delete", "--force", "big"])).map(drop)
}

/// A system disk on device-mapper becomes an image.
fn committed(host: &TestHost) -> Result<()> {
    let create = ["banger", "vm", "create", "--quiet", "--memory", "512M", "--name", "one"];
    expect(host.session("alice", &create))?;
    expect(
        host.session(
            "alice",
            &["banger", "vm", "exec", "one", "--", "sh", "-c", "printf kept > /mark; sync"],
        ),
    )?;
    // An image of a snapshot has what was written, and its device is gone afterwards.
    expect(host.session("alice", &["banger", "vm", "stop", "one"]))?;
    expect(host.session("alice", &["banger", "vm", "commit", "--quiet", "one", "committed"]))?;
    let table = expect(host.enter(&["dmsetup", "table", "--target", "snapshot"]))?;
    ensure!(table.lines().count() == 1, "{table}");
    let run = ["banger", "vm", "run", "--rm", "--quiet", "--memory", "512M", "--image", "committed"];
    let said = expect(host.session("alice", &[&run[..], &["--", "cat", "/mark"]].concat()))?;
    ensure!(said == "kept", "the image lacks what was written: {said:?}");
    expect(host.session("alice", &["banger", "image", "delete", "committed"]))?;
    expect(host.session("alice", &["banger", "vm", "delete", "--force", "one"])).map(drop)
}

/// A fork of a stopped sandbox has a copy of its overlay.
fn forked(host: &TestHost) -> Result<()> {
    let sh = |script: &str| expect(host.session("alice", &["sh", "-euc", script]));
    sh("banger vm create --quiet --memory 512M --name one
        banger vm exec one -- sh -c 'printf kept > /mark; printf kept > /root/mark; sync'
        banger vm stop --quiet one
        banger vm fork --quiet one
        banger vm exec one-1 -- sh -c 'printf changed > /mark; sync'
        banger vm start --quiet one")?;
    let said = sh("banger vm exec one -- cat /mark /root/mark
        banger vm exec one-1 -- cat /mark /root/mark")?;
    ensure!(said == "keptkeptchangedkept", "{said:?}");
    sh("banger vm delete --quiet --force one one-1").map(drop)
}

fn reboot(host: &TestHost) -> Result<()> {
    for name in ["one", "two"] {
        expect(host.session("alice", &["banger", "vm", "create", "--name", name, "--memory", "512M"]))?;
    }
    let sh = |script: &str| expect(host.session("alice", &["sh", "-c", script]));
    sh("banger vm exec one -- sh -c 'echo kept > mark && sync'")?;
    host.reboot()?;
    let states = sh("banger vm list --json | grep -o '\"state\": *\"[a-z]*\"' | sort -u")?;
    ensure!(states.ends_with("\"stopped\"") && states.lines().count() == 1, "{states:?}");
    let left = expect(host.enter(&[
        "sh",
        "-c",
        "dmsetup ls | grep banger-; losetup -nl; ip -o link | grep bgr-; true",
    ]))?;
    ensure!(left.is_empty() || left == "No devices found", "{left:?}");
    sh("banger vm start one two")?;
    ensure!(sh("banger vm exec one -- cat mark")? == "kept", "the reboot lost what was written");
    sh("banger vm delete --force one two").map(drop)
}

fn firecracker(host: &TestHost) -> Result<()> {
    let binary = std::env::var_os(FIRECRACKER).context("no Firecracker")?;
    let shared = host.share(&PathBuf::from(binary), "firecracker")?;
    expect(host.enter(&["install", "-m", "755", &shared, "/usr/bin/firecracker"]))?;
    // The running service looked for Firecracker when it started.
    expect(host.enter(&["systemctl", "restart", "banger-system.service"]))?;
    let said = expect(host.session("alice", &script!("level5/firecracker.sh")))?;
    // Firecracker's own addition to the command line.
    ensure!(said.contains("pci=off") && said.contains("172.") && said.contains("again"), "{said:?}");
    ensure!(said.contains("virtio_rng") && said.contains("\nvirtio"), "the guest lacks devices: {said:?}");
    let table = expect(host.enter(&["dmsetup", "table", "--target", "snapshot"]))?;
    ensure!(table.lines().filter(|line| line.starts_with("banger-")).count() == 1, "{table}");
    let vmms = expect(host.enter(&["pgrep", "-c", "firecracker"]))?;
    ensure!(vmms == "1", "{vmms} processes of Firecracker");
    expect(host.session("alice", &["banger", "vm", "delete", "--force", "fire"])).map(drop)
}

/// Checks that the host has nothing left of any sandbox.
fn nothing_left(host: &TestHost) -> Result<()> {
    let left = expect(host.enter(&script!("level5/nothing_left.sh")))?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn run_quietly(mut command: Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().context("cannot run ssh")
}

/// Runs a command that must succeed, and returns its output.
fn expect(command: Command) -> Result<String> {
    let output = run_quietly(command)?;
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{}, with output {out:?} and errors {err:?}", output.status);
    Ok(out)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}
