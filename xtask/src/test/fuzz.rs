//! `cargo xtask fuzz`: feeds hostile bytes to the parsers, one target after the other. It needs a nightly compiler and
//! `cargo install cargo-fuzz --locked`, and leaves its findings in `fuzz/artifacts`.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::run::{command, repository, say, target};

/// How long one input may take. The slowest valid inputs unpack half a gibibyte.
const TIMEOUT: &str = "-timeout=60";
/// Memory limit of a target, sanitizer included: a kernel has up to 512 MiB.
const MEMORY: &str = "-rss_limit_mb=4096";

/// Arguments of `cargo xtask fuzz`.
#[derive(Parser)]
pub struct Arguments {
    /// Targets to run; all if none is named
    targets: Vec<String>,
    /// Run each target for this many minutes
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
}

/// Runs the targets. The last line has the figures.
pub fn run(arguments: &Arguments) -> Result<()> {
    let directory = repository().join("fuzz");
    let known = targets(&directory)?;
    for name in &arguments.targets {
        ensure!(known.contains(name), "there is no target {name}; the targets are {}", known.join(", "));
    }
    let chosen = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    let mut figures = Vec::new();
    for name in chosen {
        say(&format!("fuzzing {name} for {} min", arguments.minutes));
        let mut fuzz = command("rustup", ["run", "nightly", "cargo", "fuzz", "run", "--fuzz-dir", "."]);
        fuzz.current_dir(&directory).arg("--target-dir").arg(target().join("fuzz")).arg(name);
        let time = format!("-max_total_time={}", arguments.minutes * 60);
        fuzz.args(["--", &time, TIMEOUT, MEMORY, "-print_final_stats=1"]);
        let inputs = inputs(&mut fuzz).with_context(|| format!("{name} has a finding, or does not run"))?;
        figures.push(format!("{name} {inputs}"));
    }
    println!("fuzz: {} min each, no findings, inputs: {}", arguments.minutes, figures.join(", "));
    Ok(())
}

/// Runs a target, and passes on what it prints. Returns how many inputs it had.
fn inputs(fuzz: &mut Command) -> Result<u64> {
    let mut child = fuzz.stderr(Stdio::piped()).spawn()?;
    let mut inputs = None;
    for line in BufReader::new(child.stderr.take().context("no output")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        eprintln!("{line}");
        inputs = executed(&line).or(inputs);
    }
    let status = child.wait()?;
    ensure!(status.success(), "it ended with {status}");
    inputs.context("it does not say how many inputs it had")
}

/// Returns the number in the line of libFuzzer's statistics that has it.
fn executed(line: &str) -> Option<u64> {
    line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok()
}

fn targets(directory: &Path) -> Result<Vec<String>> {
    let entries = directory.join("targets").read_dir().context("there are no fuzz targets")?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_inputs_is_in_the_statistics() {
        assert_eq!(executed("stat::number_of_executed_units: 1234"), Some(1234));
        assert_eq!(executed("stat::average_exec_per_sec:     99"), None);
        assert_eq!(executed("#1234 DONE cov: 10"), None);
    }

    #[test]
    fn a_target_that_fails_or_counts_nothing_is_an_error() {
        let shell = |script: &str| inputs(command("sh", ["-c", script]).stdout(Stdio::null()));
        assert!(shell("echo 'stat::number_of_executed_units: 7' >&2").is_ok_and(|inputs| inputs == 7));
        assert!(shell("echo 'stat::number_of_executed_units: 7' >&2; exit 1").is_err());
        assert!(shell("exit 0").is_err());
    }
}
