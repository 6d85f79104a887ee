//! The program inside a banger guest.
//!
//! The kernel starts it as the first process of the initramfs ([`boot`]): it loads modules, mounts the
//! disks, applies the configuration, and hands over to the image's init. A second process of it
//! ([`channels`]) stays behind and serves the guest protocol, from before the image's init has begun until
//! the machine is off.

mod account;
mod apply;
mod archive;
mod boot;
mod cgroups;
mod channels;
mod clock;
mod conversation;
mod copies;
mod detached;
mod disks;
mod early;
mod exec;
mod files;
mod forward;
mod handover;
mod identity;
mod keep_out;
mod limits;
mod locale;
mod log;
mod modprobe;
mod module_tree;
mod modules;
mod network;
mod part;
mod phases;
mod port;
mod ports;
mod power;
mod programs;
mod runtime_dir;
mod spawn;
mod ssh;
mod stats;
mod stopping;
mod systemd;
#[cfg(test)]
mod test_host;
mod timezone;
mod uevents;
mod vsock;

use std::process::ExitCode;

/// The argument of the second process.
const SERVE: &str = "serve";
/// The argument with which systemd has the commands ended of the serving process whose number follows.
const STOPPING: &str = "stopping";
/// The argument with which the program serves its standard input, a socket, behind the token that follows.
/// Tests of the host's side speak with it so.
const CONVERSE: &str = "converse";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if modprobe::is_wanted(&arguments) {
        return modprobe::run(&arguments);
    }
    if std::process::id() == 1 && power::is_shutdown_program() {
        return power::finish(std::env::args().nth(1).as_deref());
    }
    let serve = std::env::args().nth(1).is_some_and(|argument| argument == SERVE);
    if serve {
        return match channels::serve() {
            Ok(never) => match never {},
            Err(error) => {
                log::error(&format!("cannot serve: {error}"));
                ExitCode::FAILURE
            }
        };
    }
    if let [_, word, server] = std::env::args().collect::<Vec<_>>().as_slice()
        && word == STOPPING
    {
        return stopping::run(server);
    }
    if let [_, word, token] = std::env::args().collect::<Vec<_>>().as_slice()
        && word == CONVERSE
    {
        return match channels::converse_on_input(token) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log::error(&format!("cannot serve: {error}"));
                ExitCode::FAILURE
            }
        };
    }
    if std::process::id() != 1 {
        eprintln!("banger-agent is the init of a banger guest; there is nothing for it to do here.");
        return ExitCode::from(2);
    }
    boot::run()
}
