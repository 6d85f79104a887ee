//! Checks of ssh and the tools that use it, as a user calls them: no options, no prompts, no trust on first use.

use anyhow::{Result, ensure};

use super::{Check, as_user, expect, run_as, run_as_root, sh, sh_as_root, text};
use crate::{
    host::{self, Host},
    image,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("ssh, scp, rsync and forwarded ports work without a prompt", session),
    ("vm ssh needs no configuration and its status is the command's", without_configuration),
    ("a guest presents no host key of its image and accepts keys that its user adds", keys_of_the_guest),
    ("other users reach a guest neither by ssh nor by its proxy", others),
];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] = &[
    ("a guest that presents another host key is refused", wrong_key),
    ("systemd-networkd leaves the interface of a guest alone", keep_networkd_out),
    ("NetworkManager, ifupdown and dhcpcd leave the interface of a guest alone", keep_others_out),
];

/// The functions of the scripts.
const TOOLS: &str = script_text!("level4/ssh/tools.sh");

fn session(host: &Host) -> Result<()> {
    let session = script!("level4/ssh/session.sh" uses "wait.sh" + "level4/ssh/tools.sh");
    let out = run_as(host, "alice", &session)?;
    for line in ["web", "status 42", "leaf", "fetched leaf", "trusts nothing", "advised", "one port", "clean"]
    {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn without_configuration(host: &Host) -> Result<()> {
    let session = script!("level4/ssh/without_configuration.sh" uses "level4/ssh/tools.sh");
    let out = run_as(host, "alice", &session)?;
    for line in ["hello", "status 7", "untouched", "status 255", "known again"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn wrong_key(host: &Host) -> Result<()> {
    let output = as_user(host, "alice", &script!("level4/ssh/wrong_key.sh"))?;
    let (out, errors) = (expect(&output, 0)?, text(&output.stderr));
    ensure!(!out.contains("reached") && out.contains("status 255"), "{out:?}");
    ensure!(out.contains("mended"), "the next boot does not repair it: {out:?}");
    ensure!(errors.contains("Host key verification failed"), "{errors:?}");
    Ok(())
}

fn keys_of_the_guest(host: &Host) -> Result<()> {
    let session = script!("level4/ssh/keys_of_the_guest.sh" uses "level4/ssh/tools.sh");
    let out = run_as(host, "alice", &session)?;
    for part in ["ssh-ed25519 as told", "own key"] {
        ensure!(out.contains(part), "no {part:?} in {out:?}");
    }
    ensure!(!out.contains("rsa") && !out.contains("ecdsa"), "{out:?}");
    Ok(())
}

fn keep_networkd_out(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/ssh/keep_networkd_out.sh"))?;
    let has = |words: &[&str]| out.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(has(&["eth0", "unmanaged"]), "networkd manages the interface: {out:?}");
    ensure!(has(&["nameserver", "172."]), "there is no name server: {out:?}");
    ensure!(has(&["wired.vm", "wired"]) && has(&["active"]), "{out:?}");
    Ok(())
}

/// Checks three tools that would get no answer on the link and then remove the address or assign another one.
fn keep_others_out(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("network-programs")?)?;
    let register = format!("banger image register --shared --name programs --rootfs {}", tar.display());
    sh_as_root(host, &register)?;
    let out = run_as(host, "alice", &script!("level4/ssh/keep_others_out.sh"))?;
    run_as_root(host, &["banger", "image", "delete", "programs"])?;
    let count = |line: &str| out.lines().filter(|seen| seen.contains(line)).count();
    for line in ["eth0:unmanaged", "eth0=eth0", "no valid interfaces found", "the same address"] {
        ensure!(count(line) > 0, "no {line:?} in {out:?}");
    }
    let programs = out.lines().filter(|line| *line == "active").count();
    ensure!(programs == 3 && count("inet ") == 1 && count("dhclient") == 0, "{out:?}");
    Ok(())
}

fn others(host: &Host) -> Result<()> {
    sh(host, "alice", &format!("{TOOLS}\nbanger vm create --quiet --vcpu 1 --name secret; serve secret"))?;
    let addresses = sh(
        host,
        "alice",
        "banger vm show --json secret | grep -o '\"address\": *\"[^\"]*' | cut -d '\"' -f 4",
    );
    let address = addresses?;
    let output = as_user(host, "bob", &script!("level4/ssh/others.sh", address = address));
    sh(host, "alice", "banger vm delete --force secret")?;
    let output = output?;
    let (out, errors) = (expect(&output, 0)?, text(&output.stderr));
    ensure!(out.is_empty(), "bob gets {out:?}");
    ensure!(!address.is_empty() && errors.contains("error: "), "{address:?}: {errors:?}");
    Ok(())
}
