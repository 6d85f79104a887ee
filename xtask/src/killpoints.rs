//! `cargo xtask killpoints`: every operation of the engine with a fault at each of its points, on a host in memory; then kills
//! at random moments on the real adapters, and of the installed service. The last line has the figures.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{
    build, packages,
    run::{cargo, repository, say},
    soak,
    test::level4::random_kills,
};

/// Environment variable with the text that the names of the operations must have.
const ONLY: &str = "BANGER_KILLPOINTS_ONLY";

/// Environment variable with the number of kills on the real adapters, and the test that makes them.
const REAL_RUNS: &str = "BANGER_REAL_KILLPOINTS_RUNS";
const REAL_TEST: &str =
    "real_killpoints::a_service_that_is_killed_at_random_moments_recovers_and_leaves_nothing";
/// How the figures of that test begin.
const REAL: &str = "real killpoints: ";

/// Arguments of `cargo xtask killpoints`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Run only the operations whose names contain TEXT, such as suspend; capture for suspensions, forks and snapshots
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Then kill a service on the real adapters this often, at random moments of its work
    #[arg(long, value_name = "N", default_value_t = 0)]
    runs: u32,
    /// Then kill the installed service this often, at random moments of its work in a private host
    #[arg(long, value_name = "N", default_value_t = 0)]
    private_host_runs: u32,
}

/// The figures of some runs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    points: u64,
    runs: u64,
    failed: u64,
}

/// Runs the tests, and prints the sum of their figures.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    packages::ensure()?;
    let tests = cargo(["test", "--quiet", "--package", "banger-system", "--test", "engine"])
        .args(["--", "--show-output", "killpoints::"])
        .env(ONLY, &arguments.only)
        .current_dir(repository())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&tests.stdout);
    print!("{text}");
    let mut figures = sum(&text);
    ensure!(figures.runs > 0, "no operation has {:?} in its name", arguments.only);
    let mut is_good = tests.status.success();
    if arguments.runs > 0 {
        let real = real_kills(arguments.runs)?;
        let (runs, failed) = real_figures(&real).context("the test has no figures")?;
        figures.runs += runs;
        figures.failed += failed;
        is_good &= failed == 0;
        println!("{real}");
    }
    if arguments.private_host_runs > 0 {
        figures.runs += u64::from(arguments.private_host_runs);
        if let Err(error) = random_kills(arguments.private_host_runs) {
            say(&format!("FAIL a killed service: {error:#}"));
            figures.failed += 1;
            is_good = false;
        }
    }
    println!("{} points, {} runs, {} failed", figures.points, figures.runs, figures.failed);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Kills a service on the real adapters, and returns the line with the figures. Nothing is left of it, however it ends.
fn real_kills(runs: u32) -> Result<String> {
    // The shim and the worker are programs of other crates.
    build::host_programs(&build::TEST)?;
    let mut test = cargo(["test", "--quiet", "--workspace", "--test", "adapters"]);
    test.args(["--", "--exact", REAL_TEST, "--nocapture"]).current_dir(repository());
    test.env(REAL_RUNS, runs.to_string());
    let test = soak::alone(&test).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&test.stdout);
    let line = text.lines().find_map(|line| line.find(REAL).map(|at| line[at..].to_owned()));
    let line = line.with_context(|| {
        format!("the test did not run to its end; it needs root, nft and /dev/net/tun: {text}")
    })?;
    let failed = real_figures(&line).is_none_or(|(_, failed)| failed > 0);
    ensure!(test.status.success() || failed, "the test failed: {text}");
    Ok(line)
}

/// Returns the runs and the failures in the figures of the kills on the real adapters.
fn real_figures(line: &str) -> Option<(u64, u64)> {
    let figures = line.strip_prefix(REAL)?;
    let before = |word: &str| {
        let mut words = figures.split_whitespace().map(|word| word.trim_end_matches(',')).peekable();
        let mut found = None;
        while let Some(number) = words.next() {
            if words.peek() == Some(&word) {
                found = number.parse().ok();
            }
        }
        found
    };
    Some((before("runs")?, before("failed")?))
}

/// Adds up the figures of all operations in the output of the tests.
fn sum(output: &str) -> Figures {
    let mut sum = Figures::default();
    for line in output.lines().filter(|line| line.starts_with("killpoints ")) {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if let [points, runs, failed] = numbers[..] {
            sum.points += points;
            sum.runs += runs;
            sum.failed += failed;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_real_kills_are_read() {
        let line = "real killpoints: 20 runs, 17 killed in an operation (Create 2, Stop 15), 3 between two, 90 operations \
                    done, 1 failed";
        assert_eq!(real_figures(line), Some((20, 1)));
        assert_eq!(real_figures("soak: 20 cycles"), None);
    }

    #[test]
    fn figures_of_all_operations_are_added_up() {
        let output = "running 2 tests\nkillpoints Start: 40 points, 70 runs, 1 failed\nnoise 1 2 3\n\
                      killpoints Stop: 2 points, 3 runs, 0 failed\n";
        assert_eq!(sum(output), Figures { points: 42, runs: 73, failed: 1 });
    }
}
