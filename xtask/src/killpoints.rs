//! `cargo xtask killpoints`: every operation of the engine with a fault at each of its points, on a host in memory, and
//! then kills of the real service. The last line has the figures.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{
    packages,
    run::{cargo, repository, say},
    test::level4::random_kills,
};

/// Environment variable with the text that the names of the operations must have.
const ONLY: &str = "BANGER_KILLPOINTS_ONLY";

/// Arguments of `cargo xtask killpoints`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Run only the operations whose names contain TEXT, such as suspend; capture for suspensions, forks and snapshots
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Then kill the real service this often, at random moments of its work in a private host
    #[arg(long, value_name = "N", default_value_t = 0)]
    runs: u32,
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
        let killed = random_kills(arguments.runs);
        figures.runs += u64::from(arguments.runs);
        if let Err(error) = killed {
            say(&format!("FAIL a killed service: {error:#}"));
            figures.failed += 1;
            is_good = false;
        }
    }
    println!("{} points, {} runs, {} failed", figures.points, figures.runs, figures.failed);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    fn figures_of_all_operations_are_added_up() {
        let output = "running 2 tests\nkillpoints Start: 40 points, 70 runs, 1 failed\nnoise 1 2 3\n\
                      killpoints Stop: 2 points, 3 runs, 0 failed\n";
        assert_eq!(sum(output), Figures { points: 42, runs: 73, failed: 1 });
    }
}
