//! The agent: the program inside a banger guest.
//!
//! It runs twice. As the first process of the initramfs, it brings the guest up and then becomes the image's init.
//! Before that, it starts a second process of itself, the server, which answers the host until the guest is powered
//! off. Nothing is installed into the image, so the image needs no agent, no network tools and no ssh server of its
//! own.
//!
//! ```text
//!  kernel, initramfs                          image's root
//!  ───────────────────────────────────────────┬──────────────────────────────────────────────────
//!  boot::run                                  │
//!    mount /dev /proc /sys /run               │
//!    modules       load the common ones       │
//!    boot_config   wait for the host          │
//!    modules       load drivers of devices    │
//!    network       addresses and routes       │
//!    disks         root, work disk, modules ──┤
//!    identity, apply, timezone, ssh           │
//!                  files for this boot        │
//!  handover::run                              │
//!    switch_root ─────────────────────────────┤
//!    start_server ───────────────────────────►│ channels::serve (`serve`)
//!    exec ───────────────────────────────────►│   vsock, virtio ports ──► conversation::hold
//!                                             │     greeting, one request, its answer
//!                                             │ image's init, or handover::reap
//!                                             │   shutdown: `stopping SERVER` ends commands
//! ```
//!
//! 1. **Boot** ([`boot`]). A failure is recorded as a problem, which `banger vm health` shows, and the boot
//!    continues: a guest without a time zone or a work disk is still useful. The boot stops only if the host cannot
//!    send a configuration. Until it does ([`boot_config`]), the guest belongs to no sandbox, and can be captured as a
//!    template.
//! 2. **Handover** ([`handover`]). The root is switched, and the server is started before the image's init. So the
//!    host reaches a guest whose init hangs, and the init cannot delay the server.
//! 3. **Serving** ([`channels`], [`vsock`]). Each stream carries one request ([`conversation`]). A thread with a small
//!    stack serves it with blocking calls; there is no async runtime, because the agent mostly waits and its size is
//!    part of every boot.
//! 4. **Waiting for the init** ([`phases`], [`boot_wait`]). The server answers before the init has mounted file systems
//!    and cleaned `/tmp`, so commands and copies wait for that unless the host says otherwise.
//! 5. **Capture** ([`freezer`], [`rejuvenation`]). The host freezes everything but the agent, the first process and
//!    the kernel. A guest that continues from the capture is made new before anything in it runs on.
//! 6. **Shutdown** ([`stopping`], [`power`]). systemd runs this program once more to end commands before it unmounts
//!    their disk. A VMM without a power switch is reset instead, with a mark in the kernel log.
//!
//! The host is trusted with everything in the guest, but only if it knows the token of this boot. The image is not
//! trusted while its root file system is prepared: paths are resolved beneath the root, and links are not followed out
//! of it ([`apply`]). Commands may do what they like in the guest; [`cgroups`] keeps memory and processes for the
//! agent.
//!
//! The kernel also runs this program under another name to load modules, in images without `modprobe` ([`modprobe`]), and so
//! do clients of registries to get credentials of the host ([`registry_helper`]).

mod account;
mod activity;
mod apply;
mod archive;
mod boot;
mod boot_config;
mod boot_wait;
mod cgroups;
mod channels;
mod clock;
mod commit;
mod complete;
mod connections;
mod conversation;
mod copies;
mod detached;
mod disks;
mod entropy;
mod exec;
mod files;
mod forward;
mod freezer;
mod handover;
mod hierarchy;
mod identity;
mod limits;
mod locale;
mod log;
mod managed_block;
mod modprobe;
mod module_tree;
mod modules;
mod mount;
mod netlink;
mod network;
mod phases;
mod port;
mod ports;
mod power;
mod programs;
mod registry_helper;
mod rejuvenation;
mod runtime_dir;
mod spawn;
mod ssh;
mod stats;
mod stopping;
mod systemd;
mod terminfo;
#[cfg(test)]
mod test_host;
mod timezone;
mod uevents;
mod unmanaged_interface;
mod vsock;

use std::process::ExitCode;

/// The argument of the serving process.
const SERVE: &str = "serve";
/// The argument with which systemd ends the commands of the serving process whose process id follows.
const STOPPING: &str = "stopping";
/// The argument with which the program serves its standard input, a socket, with the token that follows.
/// For tests of the client.
const SERVE_INPUT: &str = "serve-input";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if modprobe::is_request(&arguments) {
        return modprobe::run(&arguments);
    }
    if registry_helper::is_request(&arguments) {
        return registry_helper::run(&arguments);
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
        && word == SERVE_INPUT
    {
        return match channels::serve_input(token) {
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
