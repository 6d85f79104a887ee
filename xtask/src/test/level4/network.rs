//! Checks of the network: which guests and user processes reach each other, and the internet behind the host.

use anyhow::{Context, Result, ensure};

use super::{Check, as_user, expect, run_as, run_as_root, sh};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("guests reach those of their owner, and processes those of their user", owners),
    ("a guest reaches the internet while it has NAT, and no longer", nat),
    ("VMMs and services that are killed leave nothing and are reported", kills),
];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] =
    &[("a published port reaches a guest, and from the network only if an administrator allows it", ports)];

/// Functions of the shells of users. `knocks` prints `open`, `refused` or `silent`.
const TOOLS: &str = concat!(script_text!("wait.sh"), script_text!("level4/network/tools.sh"));

/// Runs a check while there is a network behind the host.
pub(super) fn with_internet(host: &Host, check: impl FnOnce() -> Result<()>) -> Result<()> {
    run_as_root(host, &script!("level4/network/internet.sh" uses "wait.sh"))?;
    let checked = check();
    run_as_root(host, &script!("level4/network/no_internet.sh"))?;
    checked
}

fn user(host: &Host, user: &str, lines: &str) -> Result<String> {
    expect(&as_user(host, user, &["bash", "-euc", &format!("{TOOLS}\n{lines}")])?, 0)
}

fn owners(host: &Host) -> Result<()> {
    let addresses = user(host, "alice", "create a1; create a2; serve a1; serve a2; address a1; address a2")?;
    let [a1, a2] = two(&addresses)?;
    let b1 = user(host, "bob", "create b1; serve b1; address b1")?
        .lines()
        .last()
        .context("no address")?
        .to_owned();
    let tries = script!(
        "level4/network/owner.sh" uses "wait.sh" + "level4/network/tools.sh",
        a1 = a1,
        a2 = a2,
        b1 = b1
    );
    let said = run_as(host, "alice", &tries)?;
    let hers =
        user(host, "bob", &format!("echo bob to b1: $(knocks {b1} 22); echo bob to a1: $(knocks {a1} 22)"))?;
    let roots = user(host, "root", &format!("echo root: $(knocks {a1} 22) $(knocks {b1} 22)"))?;
    sh(host, "alice", "banger vm delete --force a1 a2")?;
    sh(host, "bob", "banger vm delete --force b1")?;
    let said = format!("{said}\n{hers}\n{roots}");
    for expected in [
        "alice: open",
        "a1 to a2: open",
        "a1 to b1: refused",
        // The exit status of curl after a timeout.
        "a1 in another name: 28",
        "bob to b1: open",
        "bob to a1: refused",
        "root: open open",
    ] {
        ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
    }
    Ok(())
}

fn two(lines: &str) -> Result<[String; 2]> {
    let mut last: Vec<String> = lines.lines().rev().take(2).map(str::to_owned).collect();
    last.reverse();
    last.try_into().map_err(|lines| anyhow::anyhow!("not two addresses: {lines:?}"))
}

fn nat(host: &Host) -> Result<()> {
    with_internet(host, || {
        let said = run_as(
            host,
            "alice",
            &script!("level4/network/nat.sh" uses "wait.sh" + "level4/network/tools.sh"),
        )?;
        for expected in [
            "without: nothing",
            "with: internet",
            "host by its name outside: refused",
            "host as gateway: refused",
            "again without: nothing",
            "after a start: internet",
        ] {
            ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
        }
        Ok(())
    })
}

fn ports(host: &Host) -> Result<()> {
    with_internet(host, || {
        user(host, "alice", "create web; await_ssh $(address web)")?;
        let hers = run_as(
            host,
            "alice",
            &script!("level4/network/publish.sh" uses "wait.sh" + "level4/network/tools.sh"),
        )?;
        let held = run_as_root(host, &script!("level4/network/held.sh" uses "wait.sh"))?;
        let carols = user(host, "carol", "echo carol: $(head -c 4 < /dev/tcp/127.0.0.1/8022)")?;
        let roots = run_as_root(host, &script!("level4/network/outside.sh"))?;
        let after = run_as(
            host,
            "alice",
            &script!("level4/network/unpublish.sh" uses "wait.sh" + "level4/network/tools.sh"),
        )?;
        let said = [hers, held, carols, roots, after].join("\n");
        for expected in [
            "loopback: 127.0.0.1:8022",
            "a service at 127.0.1.1: internet",
            "killed: SSH- 0",
            "stopped: closed taken",
            "taken: internet 1",
            "published again: SSH- 0",
            "taken: 1 1",
            "public: 1",
            "carol: SSH-",
            "outside on loopback: no",
            "outside: SSH-",
            "taken back: refused",
            "deleted: refused",
        ] {
            ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
        }
        Ok(())
    })
}

fn kills(host: &Host) -> Result<()> {
    user(host, "alice", "create one; create two; create three")?;
    let said = run_as_root(host, &script!("level4/network/kills.sh" uses "wait.sh"))?;
    for (what, state, taps) in
        [("monitor", "failed", 2), ("service", "running", 2), ("both", "stopped", 0), ("again", "running", 1)]
    {
        let (begin, end) = (format!("{what}: {state}"), format!("taps {taps}"));
        let is_it = |line: &str| line.starts_with(&begin) && line.ends_with(&end);
        ensure!(said.lines().any(is_it), "no {begin:?} with {end:?} in {said:?}");
    }
    Ok(())
}
