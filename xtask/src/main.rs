//! `cargo xtask`: building, testing and trying banger.

mod bench;
mod bench_boot;
mod bench_disk;
mod bench_exec;
mod bench_guest;
mod bench_idle;
mod bench_import;
mod bench_net;
mod bench_size;
mod bench_start;
mod bench_workspace;
mod build;
mod bundle;
mod catalog;
mod deb;
mod ext4;
mod fuzz;
mod host;
mod image;
mod install;
mod kernel;
mod level4;
mod level5;
mod packages;
mod run;
mod sqlx;
mod test;
mod testhost;
mod try_it;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Building, testing and trying banger.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Do the main job for real: build, start a private host, boot a sandbox in it and run a command
    Try(try_it::Arguments),
    /// Run the tests of levels 0 to 4, with what they need installed first
    Test(test::Arguments),
    /// A private host: systemd, D-Bus, polkit and banger in namespaces of this machine
    #[command(subcommand)]
    Host(HostTask),
    /// A test host: a Debian machine under QEMU with device-mapper and virtualisation, and banger's package
    #[command(subcommand)]
    Testhost(testhost::Task),
    /// Fetch a distribution's kernel and print where it is
    Kernel,
    /// Make an image from a distribution's packages and print where it is
    Image(image::Arguments),
    /// Make what is shipped and print where it is
    #[command(subcommand)]
    Dist(DistTask),
    /// Measure banger beside a peer
    Bench(bench::Arguments),
    /// Try hostile bytes on what reads them
    Fuzz(fuzz::Arguments),
    /// Record what the database says of each query
    Sqlx(sqlx::Args),
}

#[derive(Subcommand)]
enum HostTask {
    /// Start it, or bring it up to date with what was built
    Up(host::Up),
    /// End it, and everything that runs in it
    Down,
    /// Run a command in it; its output and exit status are the command's
    Exec(host::Exec),
    /// A root shell in it
    Shell,
    /// Whether it is up
    Status,
}

#[derive(Subcommand)]
enum DistTask {
    /// A Debian package
    Deb,
}

fn main() -> ExitCode {
    match dispatch(Task::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            // Told apart from the status of a command that was run for the user.
            ExitCode::from(125)
        }
    }
}

fn dispatch(task: Task) -> Result<ExitCode> {
    match task {
        Task::Try(arguments) => return try_it::run(&arguments),
        Task::Test(arguments) => return test::run(&arguments),
        Task::Bench(arguments) => return bench::run(&arguments),
        Task::Testhost(task) => return testhost::dispatch(task),
        Task::Host(HostTask::Exec(exec)) => return host::exec(&exec),
        Task::Host(HostTask::Shell) => return host::shell(),
        Task::Host(HostTask::Up(up)) => {
            host::up(&up)?;
        }
        Task::Host(HostTask::Down) => host::down()?,
        Task::Host(HostTask::Status) => host::status()?,
        Task::Kernel => {
            let kernel = kernel::ensure()?;
            println!("{}\n{}", kernel.vmlinuz.display(), kernel.modules.display());
        }
        Task::Image(arguments) => println!("{}", image::run(&arguments)?),
        Task::Dist(DistTask::Deb) => println!("{}", deb::dist()?.display()),
        Task::Fuzz(arguments) => fuzz::run(&arguments)?,
        Task::Sqlx(arguments) => sqlx::run(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}
