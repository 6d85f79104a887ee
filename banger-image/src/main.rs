//! The import worker; see [`banger_image::importer`]. The service starts it with a socket as its standard input.

use std::{os::fd::AsFd, process::ExitCode};

fn main() -> ExitCode {
    match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => banger_image::importer::run(socket),
        Err(error) => {
            eprintln!("banger-import: there is no socket: {error}");
            ExitCode::FAILURE
        }
    }
}
