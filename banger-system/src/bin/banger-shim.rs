//! The first process of a machine's unit; see [`banger_system::shim`]. The supervisor starts it with a
//! socket as its standard input.

use std::{os::fd::AsFd, process::ExitCode};

fn main() -> ExitCode {
    match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => banger_system::shim::run(socket),
        Err(error) => {
            eprintln!("banger-shim: there is no socket: {error}");
            ExitCode::FAILURE
        }
    }
}
