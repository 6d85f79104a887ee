//! Checks of what clients of a sandbox expect: editors and other clients of ssh, terminals, and users of docker.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("clients of ssh that take no descriptor work, and names in any case", without_descriptor),
    ("editors find each sandbox, and sessions are in its workspace", hosts),
    ("ports are published with a sandbox or nothing is created, and loopback gets a note", ports),
    ("a terminal that the image does not know works in a guest", terminals),
];

fn without_descriptor(host: &Host) -> Result<()> {
    let script = script!("level4/clients/without_descriptor.sh" uses "level4/ssh/tools.sh");
    expect_lines(
        &run_as(host, "alice", &script)?,
        &["by bytes: web", "any case: web web", "the same bytes", "end of input: 200000", "status 7"],
    )
}

fn hosts(host: &Host) -> Result<()> {
    let script = script!("level4/clients/hosts.sh" uses "level4/ssh/tools.sh");
    expect_lines(
        &run_as(host, "alice", &script)?,
        &[
            "listed: one two ",
            "renamed: two uno ",
            "deleted: ",
            "vm ssh: /root/repo, hello there",
            "ssh: /root, hello there",
            "login: 1",
            "key in the file: work",
            "nothing evil",
        ],
    )
}

fn ports(host: &Host) -> Result<()> {
    let script = script!("level4/clients/ports.sh" uses "wait.sh" + "level4/ssh/tools.sh");
    expect_lines(
        &run_as(host, "alice", &script)?,
        &[
            "chosen",
            "127.0.0.1:8031->22/tcp",
            "127.0.0.1:8031",
            "taken: 1 1",
            "privileged: 1",
            "nothing created",
            "listens on port 8080/tcp of its loopback only",
            "1",
            "forwarding ended",
            "a quiet run is quiet",
            "notes of a run: 1",
        ],
    )
}

fn terminals(host: &Host) -> Result<()> {
    let script = script!("level4/clients/terminals.sh" uses "level4/ssh/tools.sh");
    expect_lines(
        &run_as(host, "alice", &script)?,
        &[
            "described: xterm-newest is described ",
            "unheard: xterm-256color is described ",
            "known: xterm is described ",
            "ssh: xterm-newer is described ",
        ],
    )
}

fn expect_lines(out: &str, lines: &[&str]) -> Result<()> {
    for line in lines {
        ensure!(out.lines().any(|seen| seen == *line), "no {line:?} in {out:?}");
    }
    Ok(())
}
