//! `cargo xtask`: builds, tests and tries banger.

#[macro_use]
mod script;

mod bench;
mod build;
mod compatibility;
mod cross;
mod deny;
mod dist;
mod docs;
mod host;
mod image;
mod killpoints;
mod packages;
mod picture;
mod run;
mod sdk;
mod soak;
mod test;
mod testhost;
mod tidy;
mod try_it;
mod wait;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, test and try banger.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Try banger: build it, start a private host, boot a sandbox in it and run a command
    Try(try_it::Arguments),
    /// Install the packages that the tests need, and run levels 0 to 4
    Test(test::Arguments),
    /// Install the Debian packages that builds and tests need
    Packages,
    /// Manage a private host: systemd, D-Bus, polkit and banger in namespaces
    #[command(subcommand)]
    Host(HostTask),
    /// Manage a test host: Debian under QEMU with device-mapper, virtualisation and the package of banger
    #[command(subcommand)]
    Testhost(testhost::Task),
    /// Download a distribution's kernel and print its paths
    Kernel,
    /// Build an image from a distribution's packages and print its path
    Image(image::Arguments),
    /// Build packages of banger and print their paths
    Dist(dist::Arguments),
    /// Check that the programs compile for arm64
    Cross,
    /// Run a benchmark of banger against a peer
    Bench(bench::Arguments),
    /// Fail or kill every operation at each of its points, and recover
    Killpoints(killpoints::Arguments),
    /// Create and delete many sandboxes, and check that nothing is left behind
    Soak(soak::Arguments),
    /// Fuzz the parsers with hostile bytes
    Fuzz(test::fuzz::Arguments),
    /// Write the types and errors of the SDKs from the schemas
    Sdk,
    /// Record the types of all SQL queries in .sqlx
    Sqlx(build::sqlx::Args),
    /// Check the links and the commands in documents
    Docs(docs::Arguments),
    /// Check links, words, module docs and scripts
    Tidy,
    /// Record a run of banger in the private host, and draw the picture of the README
    Picture(picture::Arguments),
}

#[derive(Subcommand)]
enum HostTask {
    /// Start the host, or update the programs of a running one
    Up(host::Up),
    /// Stop the host and everything that runs in it
    Down,
    /// Run a command in the host and exit with its status
    Exec(host::Exec),
    /// Open a root shell in the host
    Shell,
    /// Show whether the host is running
    Status,
}

fn main() -> ExitCode {
    match dispatch(Task::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            // Unlike the usual exit statuses of a command that xtask runs.
            ExitCode::from(125)
        }
    }
}

fn dispatch(task: Task) -> Result<ExitCode> {
    match task {
        Task::Try(arguments) => return try_it::run(&arguments),
        Task::Test(arguments) => return test::run(&arguments),
        Task::Bench(arguments) => return bench::run(&arguments),
        Task::Killpoints(arguments) => return killpoints::run(&arguments),
        Task::Soak(arguments) => return soak::run(&arguments),
        Task::Testhost(task) => return testhost::dispatch(task),
        Task::Host(HostTask::Exec(exec)) => return host::exec(&exec),
        Task::Host(HostTask::Shell) => return host::shell(),
        Task::Host(HostTask::Up(up)) => {
            host::up(&up)?;
        }
        Task::Host(HostTask::Down) => host::down()?,
        Task::Host(HostTask::Status) => host::status()?,
        Task::Packages => packages::ensure()?,
        Task::Kernel => {
            let kernel = image::kernel::ensure()?;
            println!("{}\n{}", kernel.vmlinuz.display(), kernel.modules.display());
        }
        Task::Image(arguments) => println!("{}", image::run(&arguments)?),
        Task::Dist(arguments) => dist::run(&arguments)?,
        Task::Cross => cross::check()?,
        Task::Docs(arguments) => docs::check(&arguments)?,
        Task::Fuzz(arguments) => test::fuzz::run(&arguments)?,
        Task::Sqlx(arguments) => build::sqlx::run(&arguments)?,
        Task::Sdk => sdk::run()?,
        Task::Tidy => tidy::run()?,
        Task::Picture(arguments) => picture::run(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Task::command().debug_assert();
    }
}
