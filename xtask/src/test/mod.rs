//! `cargo xtask test`: runs the tests level by level, and prints a line of results for each level.
//!
//! Levels 0 to 3 are the tests of the crates: pure ones, the engine on a host in memory, the bus, and adapters on
//! the real kernel. Level 4 is the installed product in the private host, level 5 the package in the test host.

mod arm64;
pub mod fuzz;
pub mod level4;
pub mod level5;

use std::{
    fs,
    process::{Command, ExitCode},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Parser;

use crate::{
    build,
    image::{self, kernel},
    packages,
    run::{cache, cargo, repository, say},
};

/// Arguments of `cargo xtask test`.
#[derive(Parser)]
pub struct Arguments {
    /// Run only these levels, for example 0,1,2,3
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2, 3, 4])]
    levels: Vec<u8>,
    /// Run level 5, too, in the test host
    #[arg(long)]
    all: bool,
    /// Run only the checks of levels 4 and 5 whose names contain TEXT; separate alternatives by |
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// Returns whether `only` selects a check of this name.
pub fn is_wanted(name: &str, only: &str) -> bool {
    only.split('|').any(|text| name.contains(text))
}

/// The results of a level.
#[derive(Debug, Default)]
pub struct Tally {
    pub passed: usize,
    /// The name of each test that failed.
    pub failed: Vec<String>,
    /// The reason for each skipped test.
    pub skipped: Vec<String>,
}

/// Environment variable with the file to which tests that cannot run on this host add the reason.
const SKIPS: &str = "BANGER_TEST_SKIPS";
/// Names a Python interpreter with the client of MCP.
const MCP_PYTHON: &str = "BANGER_TEST_MCP_PYTHON";

/// Environment variable with the directory of what checks and compiles the SDKs.
const SDK_TOOLS: &str = "BANGER_TEST_SDK_TOOLS";

/// Environment variable with the unpacked kernel package that tests may read.
const KERNELS: &str = "BANGER_TEST_KERNELS";

/// Environment variable with the program of a registry of others.
const REGISTRY: &str = "BANGER_TEST_DOCKER_REGISTRY";

/// Environment variable with the program that has the parser of Prometheus.
const PROMTOOL: &str = "BANGER_TEST_PROMTOOL";

/// Environment variable with a server of ssh.
const SSHD: &str = "BANGER_TEST_SSHD";

/// The levels that cargo runs, and a nextest filter for the tests of each.
const CARGO_LEVELS: [(u8, &str, &str); 4] = [
    // Whatever is in no other level, so that no test is in none.
    (0, "pure", "not (binary(engine) or binary(bus) or binary(adapters) or binary(adapter_shim))"),
    (1, "engine on a host in memory", "binary(engine)"),
    (2, "bus", "binary(bus)"),
    (3, "adapters on the real kernel", "binary(adapters) or binary(adapter_shim)"),
];

/// Runs the tests.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    packages::ensure()?;
    if let Err(error) = packages::ensure_arm64_emulator() {
        say(&format!("SKIP arm64 guests, which need qemu-system-arm: {error:#}"));
    }
    ensure_nextest()?;
    thread::scope(|scope| {
        let runs_guests = arguments.all || arguments.levels.iter().any(|level| *level >= 4);
        // A few checks need few of the images, which these build themselves.
        if runs_guests && arguments.only.is_empty() {
            // While cargo compiles. If this fails, the checks that need an image try again and report the error.
            scope.spawn(|| image::ensure_all_of_tests().ok());
        }
        run_levels(arguments)
    })
}

fn run_levels(arguments: &Arguments) -> Result<ExitCode> {
    // Tests of one crate run programs of another.
    build::host_programs(&build::TEST)?;
    let mut tallies = Vec::new();
    let mut add = |level, name, run: &dyn Fn() -> Result<Tally>| {
        let begin = Instant::now();
        let tally = run()?;
        tallies.push(Level { level, name, tally, seconds: begin.elapsed().as_secs() });
        anyhow::Ok(())
    };
    for (level, name, filter) in CARGO_LEVELS {
        if arguments.levels.contains(&level) {
            add(level, name, &|| cargo_level(level, filter))?;
        }
    }
    if arguments.levels.contains(&4) {
        add(4, "private host", &|| level4::run(&arguments.only))?;
    }
    if arguments.all || arguments.levels.contains(&5) {
        add(5, "test host", &|| level5::run(&arguments.only))?;
    }
    Ok(report(&tallies))
}

fn ensure_nextest() -> Result<()> {
    if cargo(["nextest", "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    say("installing cargo-nextest");
    crate::run::run(&mut cargo(["install", "--quiet", "--locked", "cargo-nextest"]))
}

fn cargo_level(level: u8, filter: &str) -> Result<Tally> {
    let skips = cache().join(format!("skips-{level}"));
    fs::create_dir_all(cache())?;
    fs::write(&skips, "")?;
    let mut nextest: Command = cargo(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests=pass"]);
    nextest.args(["-E", filter]).env(SKIPS, &skips).env(KERNELS, kernel::ensure()?.root);
    nextest.env(REGISTRY, packages::docker_registry()?);
    // Without it, its test is skipped by name.
    match packages::promtool() {
        Ok(promtool) => drop(nextest.env(PROMTOOL, promtool)),
        Err(error) => say(&format!("no promtool: {error:#}")),
    }
    match packages::sshd() {
        Ok(sshd) => drop(nextest.env(SSHD, sshd)),
        Err(error) => say(&format!("no sshd: {error:#}")),
    }
    if let Some(python) = packages::mcp_client()? {
        nextest.env(MCP_PYTHON, python);
    }
    nextest.env(SDK_TOOLS, packages::sdk_tools()?);
    nextest.current_dir(repository());
    let output = nextest.output().context("cannot run cargo nextest")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    eprint!("{text}");
    let (passed, failed) = summary(&text).with_context(|| format!("level {level}: the tests did not run"))?;
    let names = failures(&text);
    // A test that nextest counts as failed must not disappear from the tally because its line reads otherwise.
    anyhow::ensure!(
        names.len() == failed,
        "level {level}: nextest counts {failed} failed tests and names {names:?}"
    );
    let skipped: Vec<String> = fs::read_to_string(&skips)?.lines().map(str::to_owned).collect();
    // For nextest, a test that skips itself has passed.
    Ok(Tally { passed: passed.saturating_sub(skipped.len()), failed: names, skipped })
}

/// Returns how many tests passed and failed, from nextest's last line:
/// `Summary [ 1.0s] 5 tests run: 4 passed (1 slow), 1 failed`.
fn summary(text: &str) -> Option<(usize, usize)> {
    let line = text.lines().rev().find(|line| line.trim_start().starts_with("Summary ["))?;
    let count = |word: &str| {
        let before = line.split(word).next().filter(|before| before.len() < line.len())?;
        before.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let failed = ["failed", "timed out"].iter().filter_map(|word| count(word)).sum::<usize>();
    Some((count("passed").unwrap_or(0), failed))
}

/// Returns the names of the tests that failed, which nextest repeats below its summary:
/// `FAIL [ 0.030s] ( 1/5) banger-system::bus the_name`.
fn failures(text: &str) -> Vec<String> {
    let lines = text.lines().skip_while(|line| !line.trim_start().starts_with("Summary [")).skip(1);
    let name = |line: &str| line.rsplit_once(' ').map(|(_, name)| name.to_owned());
    let mut names: Vec<String> = lines.filter(|line| line.contains("s] ")).filter_map(name).collect();
    names.dedup();
    names
}

/// A level that was run. The time includes its preparation.
struct Level {
    level: u8,
    name: &'static str,
    tally: Tally,
    seconds: u64,
}

fn report(levels: &[Level]) -> ExitCode {
    println!();
    for Level { level, name, tally, seconds } in levels {
        println!(
            "level {level} ({name}): {} passed, {} failed, {} skipped in {seconds} s",
            tally.passed,
            tally.failed.len(),
            tally.skipped.len()
        );
        for name in &tally.failed {
            println!("  failed: {name}");
        }
        for reason in &tally.skipped {
            println!("  skipped: {reason}");
        }
    }
    let sum = |of: fn(&Tally) -> usize| levels.iter().map(|level| of(&level.tally)).sum::<usize>();
    let (passed, failed, skipped) = (sum(|t| t.passed), sum(|t| t.failed.len()), sum(|t| t.skipped.len()));
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Returns all Rust sources of the repository as one text.
    fn sources() -> String {
        let (mut waiting, mut text) = (vec![repository()], String::new());
        while let Some(place) = waiting.pop() {
            for entry in fs::read_dir(place).unwrap().map(Result::unwrap) {
                let (path, name) = (entry.path(), entry.file_name());
                if path.is_dir() && name != "target" && name != ".git" {
                    waiting.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    text.push_str(&fs::read_to_string(path).unwrap());
                }
            }
        }
        text
    }

    #[test]
    fn failed_tests_are_named() {
        let text = "
        FAIL [   7.544s] ( 2/3) banger-system::adapters dns::a_flood
        PASS [   0.411s] ( 3/3) banger-system::adapters dns::names
     Summary [  12.000s] 3 tests run: 1 passed, 1 failed, 1 timed out, 0 skipped
        FAIL [   7.544s] ( 2/3) banger-system::adapters dns::a_flood
     TIMEOUT [  60.000s] ( 1/3) banger-system dns::tests::an_answer
error: test run failed
";
        assert_eq!(summary(text), Some((1, 2)));
        assert_eq!(failures(text), ["dns::a_flood", "dns::tests::an_answer"]);
        assert_eq!(failures("Summary [ 1.0s] 3 tests run: 3 passed, 0 skipped"), Vec::<String>::new());
    }

    #[test]
    fn the_table_of_facts_names_tests_that_there_are() {
        let document = fs::read_to_string(repository().join("docs/testing.md")).unwrap();
        let rows: Vec<&str> = document
            .lines()
            .filter_map(|line| line.strip_prefix("| "))
            .filter(|row| row.starts_with(char::is_numeric))
            .collect();
        let facts: Vec<&str> = rows.into_iter().filter(|row| row.split(". ").count() > 1).collect();
        let sources = sources();
        for (number, row) in (1..).zip(&facts) {
            assert!(row.starts_with(&format!("{number}. ")), "{row}");
            let (_, named) = row.split_once(" | ").unwrap();
            let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty(), "{row}");
            for name in names {
                let is_check = name.contains(' ') && sources.contains(&format!("(\"{name}\", "));
                assert!(
                    is_check || sources.contains(&format!("fn {name}()")),
                    "{number}: there is no test {name}"
                );
            }
        }
        assert_eq!(facts.len(), 23);
    }

    #[test]
    fn the_runners_last_line_is_read() {
        let check = |line: &str, expect| assert_eq!(summary(&format!("x\n     {line}\n")), expect, "{line}");
        check("Summary [   0.9s] 51 tests run: 51 passed, 0 skipped", Some((51, 0)));
        check("Summary [   0.9s] 12/15 tests run: 10 passed (1 slow), 2 failed, 3 skipped", Some((10, 2)));
        check("Summary [   0.9s] 2 tests run: 1 passed, 1 timed out, 0 skipped", Some((1, 1)));
        check("nothing", None);
    }
}
