//! `cargo xtask bench disk`: creates and attaches the system disk of a sandbox, compared with one `dmsetup create` on
//! existing loop devices. Both run in the test host, whose kernel has device-mapper.

use anyhow::{Context, Result};

use crate::{
    bench::{Effort, Report, Side},
    run::{output, say},
    test::level5,
    testhost,
};

/// Runs the benchmark. The sides take turns.
pub fn run(effort: Effort) -> Result<Report> {
    let runs = effort.runs;
    let program = level5::test_program(level5::ADAPTERS)?;
    let host = testhost::up(&testhost::Up { fresh: false, bare: true })?;
    let program = host.share(&program, level5::ADAPTERS)?;
    say(&format!("measuring {runs} times in the test host"));
    // Where the package is installed, its units load the module.
    let script = format!(
        "modprobe dm_snapshot && BANGER_BENCH_RUNS={runs} {program} --ignored --exact {}measure --nocapture",
        level5::MAPPER
    );
    let said = output(&mut host.enter(&["sh", "-c", &script]))?;
    let samples = |side: &str| -> Result<Vec<f64>> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(side)?.strip_prefix(' '));
        lines.map(|number| number.trim().parse().context("the measurement printed no number")).collect()
    };
    let ours =
        Side { what: "overlay, loop devices and snapshot of a 4 GiB image", samples_ms: samples("ours")? };
    let peers = Side { what: "dmsetup create", samples_ms: samples("peer")? };
    Report::new("disk", runs, ours, peers)
}
