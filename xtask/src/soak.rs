//! `cargo xtask soak`: many sandboxes that come and go, with real disks, database, network and supervisor, and a program that
//! only waits in place of VMMs. Fails if anything is left behind. The last line has the figures.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{
    build, packages,
    run::{cargo, repository},
};

/// Environment variables of the test that does it.
const CYCLES: &str = "BANGER_SOAK_CYCLES";
const CONCURRENCY: &str = "BANGER_SOAK_CONCURRENCY";
const TEST: &str = "soak::sandboxes_that_come_and_go_leave_nothing_behind";

/// Arguments of `cargo xtask soak`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Create, start, stop, start and delete this many sandboxes
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    cycles: u32,
    /// Let this many be under way at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=32))]
    concurrency: u32,
}

/// Runs the test with this many cycles, and prints its figures last.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    packages::ensure()?;
    // The shim is a program of another crate.
    build::host_programs(&build::TEST)?;
    let mut test = test_command();
    test.env(CYCLES, arguments.cycles.to_string()).env(CONCURRENCY, arguments.concurrency.to_string());
    let mut test = alone(&test);
    let test = test.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&test.stdout);
    let is_good = test.status.success();
    if !is_good {
        print!("{text}");
    }
    let figures = figures(&text);
    ensure!(figures.is_some() || !is_good, "the test did not run; it needs root, nft and /dev/net/tun");
    println!("{}", figures.unwrap_or("soak: no figures"));
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a command so that nothing is left of it, however it ends: its processes are in a PID namespace, which ends with the first of
/// them, and its temporary files in a file system of a mount namespace.
pub fn alone(command: &Command) -> Command {
    let mut alone = Command::new("unshare");
    alone.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    alone.args(["sh", "-c", r#"mount -t tmpfs -o mode=1777 tmpfs /dev/shm && "$@""#, "sh"]);
    alone.arg(command.get_program()).args(command.get_args()).env("TMPDIR", "/dev/shm");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => alone.env(name, value),
            None => alone.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        alone.current_dir(directory);
    }
    alone
}

/// Returns the command that runs the test alone in its process, which is what is measured.
fn test_command() -> Command {
    let mut test = cargo(["test", "--quiet", "--workspace", "--test", "adapters"]);
    test.args(["--", "--exact", TEST, "--nocapture"]).current_dir(repository());
    test
}

/// Returns the line with the figures in the output of the test.
fn figures(output: &str) -> Option<&str> {
    output.lines().find(|line| line.starts_with("soak: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_run_alone_is_the_same_one() {
        let mut command = Command::new("cargo");
        command.args(["test", "a b"]).env("A", "b").env_remove("C").current_dir("/");
        let alone = alone(&command);
        let arguments: Vec<_> = alone.get_args().collect();
        assert!(arguments.ends_with(&["sh".as_ref(), "cargo".as_ref(), "test".as_ref(), "a b".as_ref()]));
        let variables: Vec<_> = alone.get_envs().collect();
        assert!(variables.contains(&("A".as_ref(), Some("b".as_ref()))));
        assert!(variables.contains(&("C".as_ref(), None)));
        assert_eq!(alone.get_current_dir(), Some("/".as_ref()));
    }

    #[test]
    fn the_figures_are_found_in_the_output_of_a_test() {
        let output = "\nrunning 1 test\nsoak: 20 cycles, files 7 → 7\n.\ntest result: ok.\n";
        assert_eq!(figures(output), Some("soak: 20 cycles, files 7 → 7"));
        assert_eq!(figures("SKIPPED: this test needs root\n"), None);
    }
}
