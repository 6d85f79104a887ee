//! Kills of the service at random moments. Like every check, they must leave nothing on the host.

use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};

use super::{Check, nothing_left, prepare, run_as_root};
use crate::{
    host::{self, Host},
    run::say,
    try_it::{self, QUICK},
};

/// How many kills are made among the other checks.
const FEW: u32 = 12;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a service that is killed at random moments recovers, and leaves nothing", few)];

fn few(host: &Host) -> Result<()> {
    kill(host, FEW).map(drop)
}

/// Kills the service this often in a fresh private host, and returns how often it was hit.
pub fn random(runs: u32) -> Result<u32> {
    let host = host::up(&host::Up { fresh: true, ..host::Up::default() })?;
    prepare(&host)?;
    try_it::set_default_image(&host, QUICK)?;
    let kills = kill(&host, runs).and_then(|kills| nothing_left(&host).map(|()| kills));
    host::down()?;
    kills
}

fn kill(host: &Host, runs: u32) -> Result<u32> {
    let seed = UNIX_EPOCH.elapsed().context("the clock is wrong")?.subsec_micros() % 32768;
    let script = script!("level4/killpoints/random.sh" uses "wait.sh", runs = runs, seed = seed);
    let out = run_as_root(host, &script)?;
    let last = out.lines().last().unwrap_or_default();
    say(last);
    let kills = last.split_whitespace().next().and_then(|word| word.parse().ok());
    let kills: u32 = kills.with_context(|| format!("there is no number of kills in {out:?}"))?;
    ensure!(kills > 0, "the service was never hit: {out:?}");
    Ok(kills)
}
