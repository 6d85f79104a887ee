//! `cargo xtask fuzz`: feeds hostile bytes to the parsers, one target after the other. It needs a nightly compiler and
//! `cargo install cargo-fuzz --locked`, and leaves its findings in `fuzz/artifacts`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::run::{command, repository, run as shell, say, target};

/// How long one input may take. The slowest valid inputs unpack half a gibibyte.
const TIMEOUT: &str = "-timeout=60";
/// Memory limit of a target, sanitizer included: a kernel has up to 512 MiB.
const MEMORY: &str = "-rss_limit_mb=4096";

/// Arguments of `cargo xtask fuzz`.
#[derive(Parser)]
pub struct Arguments {
    /// Targets to run; all if none is named
    targets: Vec<String>,
    /// Run each target for this many seconds
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Runs the targets.
pub fn run(arguments: &Arguments) -> Result<()> {
    let directory = repository().join("fuzz");
    let known = targets(&directory)?;
    for name in &arguments.targets {
        ensure!(known.contains(name), "there is no target {name}; the targets are {}", known.join(", "));
    }
    let chosen = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    for name in chosen {
        say(&format!("fuzzing {name} for {} s", arguments.seconds));
        let mut fuzz = command("rustup", ["run", "nightly", "cargo", "fuzz", "run", "--fuzz-dir", "."]);
        fuzz.current_dir(&directory).arg("--target-dir").arg(target().join("fuzz")).arg(name);
        let time = format!("-max_total_time={}", arguments.seconds);
        fuzz.args(["--", &time, TIMEOUT, MEMORY, "-print_final_stats=1"]);
        shell(&mut fuzz).with_context(|| format!("{name} has a finding, or does not run"))?;
    }
    Ok(())
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
