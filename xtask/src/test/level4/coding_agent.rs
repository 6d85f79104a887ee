//! Checks of coding agents: a made-up one works in a repository, with an image that is built once and an internet with
//! two servers.

use anyhow::{Result, ensure};

use super::{Check, network::with_internet, recipe::with_registry, run_as, run_as_root};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a coding agent works with what its preset gives it, and its changes come back", agent),
    ("a client of registries gets credentials of the host in a guest", registry),
];

fn agent(host: &Host) -> Result<()> {
    with_registry(host, |host| {
        with_internet(host, || {
            run_as_root(host, &script!("level4/egress/names.sh" uses "wait.sh"))?;
            let said = run_as(host, "alice", &script!("level4/coding_agent/work.sh"));
            run_as_root(host, &script!("level4/egress/no_names.sh"))?;
            let said = said?;
            for expected in [
                "status 7",
                "args: fix it",
                "key: hidden",
                "settings: mine",
                "login: none",
                "allowed: internet",
                "not allowed: nothing",
                "built one time",
                "login now: secret 600",
                "made by the agent",
                "the other version is noted",
                "nothing is left",
                "from alice: made-up",
            ] {
                ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
            }
            Ok(())
        })
    })
}

fn registry(host: &Host) -> Result<()> {
    let said = run_as(host, "alice", &script!("level4/coding_agent/registry.sh" uses "wait.sh"))?;
    for expected in [
        "the password: ok",
        "credentials not found in native keychain",
        "note: registries uses your credentials for one.test.",
        "note: registries asked for credentials for two.test, which is not shared.",
        "the user: ok",
        "of the guest: kept",
        "nothing is left",
    ] {
        ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
    }
    Ok(())
}
