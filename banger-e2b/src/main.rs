//! Serves the core of E2B's API with sandboxes of banger, so that programs written with E2B's SDK run on this host.
//!
//! ```text
//! SDK ──HTTP──► server ──► api    sandboxes: create, list, kill, pause, resume, time limits ──┐
//!                 │                                                                           ├──► `banger … --json`
//!                 └──────► envd   in a sandbox: files, and commands over the Connect protocol ┘
//! ```
//!
//! It runs as the user, has no rights of its own, and starts the command `banger` for everything that it does. It
//! listens on a loopback address or a Unix socket. Every request needs the key of this user, which is in a file that
//! only the user can read, or a token of one sandbox that is derived from it.

mod api;
mod banger;
mod connect;
mod envd;
mod http;
mod key;
mod listen;
mod sandboxes;
mod server;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::{banger::Banger, key::Key, listen::Address, sandboxes::Sandboxes, server::Server};

/// Serve the core of E2B's API with sandboxes of banger
///
/// Programs that use E2B's SDK for Python or JavaScript then create their sandboxes on this host. What is not served
/// answers with status 501.
#[derive(Debug, Parser)]
#[command(
    name = "banger-e2b",
    version,
    after_help = "\
Examples:
  systemctl --user enable --now banger-e2b.socket
  eval \"$(banger-e2b env)\"
  python3 program.py"
)]
struct Cli {
    /// Where to listen: a loopback address and a port, or the absolute path of a socket
    #[arg(long, global = true, value_name = "ADDRESS", env = "BANGER_E2B_LISTEN", default_value = listen::DEFAULT)]
    listen: Address,
    /// The command to run [default: the `banger` beside this program, else that in PATH]
    #[arg(long, global = true, value_name = "PATH")]
    banger: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve until the end of the session
    ///
    /// If standard input is a listening socket, as systemd passes it, that one is served.
    Serve,
    /// Print the variables that lead E2B's SDK to this server, for `eval`
    Env,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let run = || -> anyhow::Result<()> {
        match cli.verb {
            Verb::Env => env(&cli.listen),
            Verb::Serve => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .context("no runtime")?;
                runtime.block_on(serve(&cli.listen, cli.banger.clone()))
            }
        }
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banger-e2b: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the variables, unless another user's program listens there: it would get the key.
fn env(address: &Address) -> anyhow::Result<()> {
    let key = Key::of_user().context("cannot read the key")?;
    let Address::Tcp(tcp) = address else {
        bail!("the SDK connects to addresses only, not to sockets");
    };
    match listen::owner(*tcp).context("cannot see who listens")? {
        None => {
            bail!("nothing listens on {tcp}; start it with `systemctl --user enable --now banger-e2b.socket`")
        }
        Some(owner) if owner != rustix::process::getuid().as_raw() => {
            bail!("a program of another user listens on {tcp}; choose another port with --listen")
        }
        Some(_) => {}
    }
    println!("export E2B_API_KEY={}", key.text());
    println!("export E2B_API_URL=http://{tcp}");
    println!("export E2B_SANDBOX_URL=http://{tcp}");
    Ok(())
}

async fn serve(address: &Address, program: Option<PathBuf>) -> anyhow::Result<()> {
    let key = Key::of_user().context("cannot read the key")?;
    let listener = listen::open(address).await.context("cannot listen")?;
    let banger = Arc::new(Banger::new(program.unwrap_or_else(banger::beside_this_program)));
    let sandboxes = Arc::new(Sandboxes::new(Arc::clone(&banger), sandboxes::state_directory()?));
    let server = Arc::new(Server::new(key, banger, Arc::clone(&sandboxes)));
    let reaper = tokio::spawn(sandboxes.end_in_time());
    tokio::select! {
        ended = server.serve(listener) => ended.context("cannot accept connections"),
        _ = reaper => bail!("the task of time limits ended"),
        signal = ended_by_signal() => signal.context("cannot wait for signals"),
    }
}

async fn ended_by_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut end, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = end.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
