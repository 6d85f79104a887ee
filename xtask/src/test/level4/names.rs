//! Checks of sandbox names, as guests, users and systemd-resolved resolve them.

use anyhow::{Result, ensure};

use super::{Check, run_as, run_as_root, sh, sh_as_root};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("guests of one user and the host resolve names of sandboxes, and nobody else does", names),
    ("a sandbox that dies loses its name, and resolved gets all names again when it restarts", churn),
    ("without resolved, dnsmasq or a line in resolv.conf lets the host resolve names of sandboxes", recipes),
];

/// Functions of a shell that wait until a name resolves, or no longer does.
const TOOLS: &str = concat!(script_text!("wait.sh"), script_text!("level4/names/tools.sh"));

fn names(host: &Host) -> Result<()> {
    let bobs = "banger vm create --vcpu 1 --name theirs";
    sh(host, "bob", bobs)?;
    let address = run_as(host, "alice", &script!("level4/names/owner.sh" uses "wait.sh"))?;
    let address = address.lines().last().unwrap_or_default();
    run_as(host, "bob", &script!("level4/names/stranger.sh", address = address))?;
    run_as(host, "alice", &script!("level4/names/deleted.sh" uses "wait.sh" + "level4/names/tools.sh"))?;
    let doctor = sh(host, "alice", "banger doctor")?;
    ensure!(doctor.contains("systemd-resolved asks banger"), "{doctor:?}");
    Ok(())
}

fn churn(host: &Host) -> Result<()> {
    let root = |commands: &str| sh_as_root(host, &format!("{TOOLS}{commands}"));
    sh(host, "alice", "banger vm create --vcpu 1 --name brief; banger vm create --vcpu 1 --name steady")?;
    root("until_known steady.vm; systemctl restart systemd-resolved.service; until_known steady.vm")?;
    run_as_root(host, &script!("level4/names/restarted.sh" uses "wait.sh" + "level4/names/tools.sh"))?;
    let domains = root("resolvectl domain banger0")?;
    ensure!(!domains.contains("vm"), "resolved asks a service that has ended: {domains:?}");
    root("systemctl start banger-system.service; until_known steady.vm; until_known brief.vm")?;
    sh(host, "alice", "banger vm kill brief --signal KILL")?;
    root("until_gone brief.vm; until_known steady.vm")?;
    sh(host, "alice", "banger vm delete brief; banger vm delete --force steady").map(drop)
}

/// Checks the recipes of docs/network.md for hosts without systemd-resolved.
fn recipes(host: &Host) -> Result<()> {
    sh(host, "alice", "banger vm create --quiet --vcpu 1 --name asked")?;
    let address = sh(
        host,
        "alice",
        "banger vm show asked --json | grep -o '\"address\": *\"[^\"]*' | cut -d '\"' -f 4",
    )?;
    let recipes = script!("level4/names/recipes.sh" uses "wait.sh", address = address.trim());
    let out = run_as_root(host, &recipes)?;
    for line in ["knows the name", "knows the address", "knows no other"] {
        ensure!(out.contains(&format!("dnsmasq {line}")), "{out:?}");
    }
    ensure!(out.contains("resolv.conf knows the name") && out.contains("resolv.conf goes on"), "{out:?}");
    sh(host, "alice", "banger vm delete --force --quiet asked").map(drop)
}
