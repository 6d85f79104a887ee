//! Checks of workspaces, from the host into a sandbox and back, and of large transfers by commands, copies and ports.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::{Check, as_user, expect, run_as};
use crate::{
    host::Host,
    run::{command, repository},
};

/// Environment variable with the MiB to transfer. A gibibyte was tested by hand, and takes minutes under emulation.
const FLOOD: &str = "BANGER_TEST_FLOOD_MIB";
const FLOOD_MIB: u32 = 64;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a repository goes into a sandbox, is worked on, and comes back byte for byte", there_and_back),
    ("a repository needs no git in the image", without_git),
    ("data through commands, copies and forwarded ports is unchanged", much_data),
    ("a flood through a command, a forwarded port and a socket keeps its digest", flood),
    ("a devcontainer's image, user, folder, variables, ports and command are applied", devcontainer),
    ("a full disk and an interrupted copy are reported and leave nothing on the host", broken_copies),
];

/// Clones this project into alice's home directory. It is sent as an archive: the private host has its own `/tmp`, and
/// may not see the directory of the project.
fn clone(host: &Host) -> Result<()> {
    let pack = script!("level4/workspace/pack.sh");
    let unpack = script!("level4/workspace/unpack.sh");
    let mut packing = command(&pack[0], &pack[1..])
        .current_dir(repository())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot pack the project")?;
    let archive = packing.stdout.take().context("there is no archive")?;
    let unpacked = host.enter(&unpack).stdin(archive).output().context("cannot unpack")?;
    ensure!(packing.wait()?.success(), "cannot pack the project");
    expect(&unpacked, 0).map(drop)
}

fn there_and_back(host: &Host) -> Result<()> {
    clone(host)?;
    let digest = script_text!("level4/workspace/digest.sh");
    let out = run_as(host, "alice", &script!("level4/workspace/there_and_back.sh", digest = digest))?;
    for line in
        ["clean", "/root/repo", "patch applies", "untouched", "same", "drift", "more", "settled", "status 42"]
    {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn without_git(host: &Host) -> Result<()> {
    clone(host)?;
    let output = as_user(host, "alice", &script!("level4/workspace/without_git.sh"))?;
    let out = expect(&output, 0)?;
    ensure!(out.contains("M README.md") && out.contains("D deny.toml"), "{out:?}");
    Ok(())
}

fn much_data(host: &Host) -> Result<()> {
    // A gibibyte takes minutes under emulation, and this much already covers all states of the protocol.
    let out = run_as(host, "alice", &script!("level4/workspace/much_data.sh" uses "wait.sh"))?;
    for line in ["piped", "copied", "listed", "forwarded", "led out"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn flood(host: &Host) -> Result<()> {
    let mib = match std::env::var(FLOOD) {
        Ok(text) => text.parse().with_context(|| format!("{FLOOD} is not a number"))?,
        Err(_) => FLOOD_MIB,
    };
    let session = script!(
        "level4/workspace/flood.sh" uses "wait.sh",
        mib = mib,
        echo = script_text!("level4/workspace/echo.py"),
        send = script_text!("level4/workspace/send.py"),
    );
    let out = run_as(host, "alice", &session)?;
    for line in ["through a command", "listed", "through 18080", "through 18081"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn devcontainer(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/workspace/devcontainer.sh" uses "wait.sh"))?;
    for line in [
        "daemon",
        "/workspaces/shop",
        "shop",
        "?? stage",
        "?? who",
        "fetched shop",
        "later shop",
        "\"path\": \"mine\"",
        "note: ignored in .devcontainer/devcontainer.json: initializeCommand (it would run on the host).",
    ] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn broken_copies(host: &Host) -> Result<()> {
    clone(host)?;
    let out = run_as(host, "alice", &script!("level4/workspace/broken_copies.sh" uses "wait.sh"))?;
    for line in ["full 1", "full too 1", "usable", "cleared", "lost 1", "nothing here"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}
