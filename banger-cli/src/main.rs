//! The banger command: an unprivileged client of the service on the system bus.

mod build;
mod cli;
mod client;
mod coding_agent;
mod command;
mod error;
mod error_file;
mod guest;
mod mcp;
mod mount;
mod push;
mod remote;
mod share;
mod ssh;
mod ui;
mod user;
mod workspace;

use std::process::ExitCode;

use crate::{command::complete, error::Error};

fn main() -> ExitCode {
    complete::answer_shell();
    let cli = cli::parse();
    remote::choice::set(&cli.host);
    // One thread: the client mostly waits, so another thread would only add cost.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            Error::io("start the event loop", source).print(None);
            return ExitCode::FAILURE;
        }
    };
    let status = match runtime.block_on(cli.command.run()) {
        Ok(status) => status,
        Err(error) => {
            error.print(None);
            error.status(cli.command.own_failure())
        }
    };
    // A write to a stopped terminal must not delay the exit.
    runtime.shutdown_background();
    ExitCode::from(status)
}
