//! Checks of what administrators see: the journal by its fields, the level of the log, and the metrics, each with the programs
//! that they use.

use anyhow::{Context, Result, ensure};

use super::{Check, run_as_root};
use crate::{
    host::{self, Host},
    packages,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("systemctl sets the level of the log, and what they log is found by its fields", log),
    ("Prometheus reads the metrics of a host, and what they count is complete", metrics),
];

fn log(host: &Host) -> Result<()> {
    let said = run_as_root(host, &script!("level4/observability/log.sh"))?;
    let levels: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("level ")).collect();
    ensure!(levels == ["info", "debug", "info"], "{said}");
    for what in ["debug", "sandbox", "call", "job"] {
        ensure!(number(&said, what)? > 0, "the journal has no entry of this kind: {what}: {said}");
    }
    ensure!(number(&said, "other")? == 0, "{said}");
    Ok(())
}

fn metrics(host: &Host) -> Result<()> {
    let promtool = host::inside(&packages::promtool()?)?;
    let read = script!("level4/observability/metrics.sh" uses "wait.sh", promtool = promtool.display());
    let said = run_as_root(host, &read)?;
    let samples = number(&said, "samples")?;
    ensure!(samples > 10 && number(&said, "blocks")? > 0, "{said}");
    ensure!(number(&said, "read")? == samples, "{said}");
    Ok(())
}

/// Returns the number in the line that begins with this word.
fn number(said: &str, word: &str) -> Result<u64> {
    let mut lines = said.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(first, _)| *first == word).and_then(|(_, number)| number.parse().ok());
    found.with_context(|| format!("there is no number {word:?} in {said:?}"))
}
