//! Checks of what protects the host: limits of slices, confinement of units, and the restart of the service.

use anyhow::{Result, ensure};

use super::{Check, as_user, run_as_root, sh, sh_as_root, text};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("slices of users have limits and share what there is", slices),
    ("the unit of a sandbox is as confined as its design says", exposure),
    ("a sandbox that ran out of memory starts again at once", out_of_memory),
    ("a service that is killed again and again comes back", killed_often),
    ("killed imports leave no unit", killed_import),
    ("a user who is not in the group cannot export a shared image", export),
];

/// Runs a script as root while alice has a running sandbox of this name. The script gets the name of its unit.
fn with_sandbox(host: &Host, name: &str, script: impl Fn(&str) -> Vec<String>) -> Result<String> {
    sh(host, "alice", &format!("banger vm create --quiet --name {name}"))?;
    let unit = format!("banger vm show --json alice/{name} | grep -o 'banger-vm-[0-9a-f]*.service'");
    let done = sh_as_root(host, &unit).and_then(|unit| run_as_root(host, &script(&unit)));
    sh(host, "alice", &format!("banger vm delete --force {name}"))?;
    done
}

fn slices(host: &Host) -> Result<()> {
    let said = with_sandbox(host, "limited", |unit| script!("level4/limits/slices.sh", unit = unit))?;
    let words: Vec<&str> = said.split_whitespace().collect();
    ensure!(words.len() == 12, "{said}");
    ensure!(words[0].starts_with("banger-u"), "{said}");
    ensure!(words.iter().all(|word| !["infinity", "[not", "18446744073709551615"].contains(word)), "{said}");
    Ok(())
}

/// Checks the exposure of a sandbox's unit. Settings that the shim's filter replaces count if the shim proves, in a
/// unit with the same settings, that they hold.
fn exposure(host: &Host) -> Result<()> {
    let said = with_sandbox(host, "closed", |unit| script!("level4/limits/exposure.sh", unit = unit))?;
    println!(
        "{}",
        said.lines().filter(|line| line.contains("exposure level")).collect::<Vec<_>>().join("\n")
    );
    Ok(())
}

/// Has the kernel kill the VMM if the host has a memory controller, and otherwise sends SIGKILL as the kernel would.
fn out_of_memory(host: &Host) -> Result<()> {
    let kill = |unit: &str| script!("level4/limits/out_of_memory.sh" uses "wait.sh", unit = unit);
    let said = with_sandbox(host, "hungry", kill)?;
    ensure!(said.matches("running").count() == 2, "{said}");
    Ok(())
}

/// Kills the service more often than systemd's default start limit would allow.
fn killed_often(host: &Host) -> Result<()> {
    let said = run_as_root(host, &script!("level4/limits/killed_often.sh" uses "wait.sh"))?;
    ensure!(said.starts_with("active"), "{said}");
    Ok(())
}

fn killed_import(host: &Host) -> Result<()> {
    for service in ["", "banger-system.service"] {
        let kill = script!(
            "level4/limits/killed_import.sh" uses "wait.sh" + "level4/images/long.sh",
            service = service
        );
        let left = run_as_root(host, &kill)?;
        ensure!(left.is_empty(), "{left}");
    }
    Ok(())
}

fn export(host: &Host) -> Result<()> {
    let refused =
        as_user(host, "carol", &["sh", "-c", "banger image export debian-bookworm --oci ~/stolen.tar"])?;
    let message = text(&refused.stderr);
    ensure!(!refused.status.success() && message.contains("group banger"), "{message:?}");
    sh(host, "carol", "test ! -s ~/stolen.tar").map(drop)
}
