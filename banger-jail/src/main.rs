//! The first process of a VMM's unit; see [`banger_jail`]. The supervisor starts it with a socket as standard input.
//! With `--proof` it shows what its system call filter forbids.

use std::{os::fd::AsFd, process::ExitCode};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--proof") {
        return banger_jail::proof::print();
    }
    match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => banger_jail::run(socket),
        Err(error) => {
            eprintln!("banger-shim: there is no socket: {error}");
            ExitCode::FAILURE
        }
    }
}
