//! `banger vm forward`.

mod auto;
mod background;
mod sockets;
mod spec;

use std::{sync::Arc, time::Duration};

use banger_proto::{
    bus::{ErrorName, names::VM_INTERFACE, option::agent},
    guest::{Request, message::Endpoint},
};
use clap::Args;
use tokio::{sync::Semaphore, task::JoinSet};
use zbus::OwnedObjectPath;

use self::{
    auto::Auto,
    sockets::{Listener, Local},
    spec::{DisplayEndpoint, LOOPBACK, Spec},
};
use crate::{
    client::{
        bus::Bus,
        service::{Kind, id_of},
    },
    error::{Error, Result},
    guest::{
        agent::Guest,
        relay::{self, Incoming, Relay, RelayEnd},
    },
    remote,
    ui::{
        age,
        progress::{Progress, ProgressArgs},
        signals::{Signals, unless_ended},
    },
};

/// Poll interval for the deletion of the sandbox.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long a connection waits for a stream to the sandbox, of which there is a limited number. Browsers wait at
/// least as long.
const STREAM_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit on connections to one port. Further ones wait in the system's queue.
const MAX_CONNECTIONS: usize = 64;
/// How many ports of a sandbox are tried until one is not in use.
const MAX_TRIES: usize = 32;

/// Forward connections into or out of a sandbox
///
/// The agent carries the connections, so the sandbox needs no network, and programs that listen on its loopback can be
/// reached. Each side is a port, an address and a port, or the path of a unix socket. Press Ctrl-C to stop, or use
/// --detach to forward in the background until you stop it or delete the sandbox.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm forward web 8080:80                   a port of this host to one of the sandbox
  banger vm forward -L 8080:80 web                the same, as in `ssh`
  banger vm forward -L 8080:/run/app.sock web     to a socket in it
  banger vm forward -L 0.0.0.0:8080:80 web        from other computers as well
  banger vm forward -R 5432:localhost:5432 web    a port of the sandbox to one of this host
  banger vm forward --auto web                    every TCP port on which the sandbox listens
  banger vm forward -d --auto web                 the same in the background
  banger vm forward --list                        what is forwarded in the background
  banger vm forward --stop web                    ends that for this sandbox")]
pub struct Forward {
    /// Name, id or id prefix
    #[arg(index = 1, value_name = "SANDBOX", required_unless_present = "list")]
    sandbox: Option<String>,
    /// The same as --local
    #[arg(index = 2, value_name = "LISTEN:CONNECT", conflicts_with_all = ["list", "stop"])]
    ports: Vec<Spec>,
    /// Listen on the host and connect in the sandbox: [ADDRESS:]PORT:[HOST:]PORT; either side can be the path
    /// of a unix socket
    #[arg(short = 'L', short_alias = 'p', long, alias = "publish", value_name = "LISTEN:CONNECT")]
    local: Vec<Spec>,
    /// Listen in the sandbox and connect on the host
    #[arg(short = 'R', long, value_name = "LISTEN:CONNECT")]
    remote: Vec<Spec>,
    /// Forward every TCP port on which the sandbox listens, while it listens, from the same port of the host's loopback
    /// (a free one, if that is taken)
    #[arg(long)]
    auto: bool,
    /// Forward in the background
    #[arg(short, short_alias = 'f', long)]
    detach: bool,
    /// Accepted for users of ssh: there is no shell anyway
    #[arg(short = 'N', short_alias = 'T', overrides_with = "_no_shell", hide = true)]
    _no_shell: bool,
    /// List what is forwarded in the background, for this sandbox or for all
    #[arg(long, conflicts_with_all = ["local", "remote", "auto", "detach", "stop"])]
    list: bool,
    /// End what is forwarded in the background for this sandbox
    #[arg(long, conflicts_with_all = ["local", "remote", "auto", "detach"])]
    stop: bool,
    /// With --list, print a JSON array of objects
    #[arg(long, requires = "list")]
    json: bool,
    #[arg(long = background::IN_BACKGROUND, hide = true)]
    in_background: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

/// Shared state of all connections.
#[derive(Clone)]
struct Forwarder {
    bus: Bus,
    vm: OwnedObjectPath,
    progress: Progress,
    failures: Failures,
}

/// What to do with an error of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failures {
    /// Print it.
    Report,
    /// Ignore it, because another program uses the terminal.
    Silent,
}

/// Forwards ports of this host's loopback to ports of a sandbox, as long as the result is kept. A port of the host that
/// is in use gets another number.
pub async fn forward_ports(
    bus: &Bus,
    vm: &OwnedObjectPath,
    progress: &Progress,
    ports: &[(u16, u16)],
) -> Result<JoinSet<Result<()>>> {
    let (bus, vm, progress) = (bus.clone(), vm.clone(), progress.clone());
    let forwarder = Forwarder { bus, vm, progress, failures: Failures::Silent };
    let mut tasks = JoinSet::new();
    for &(host, port) in ports {
        let listener = Listener::bind_near(host).await?;
        forwarder.progress.note(&format!("{} reaches {port} in the sandbox.", listener.address()));
        tasks.spawn(serve(forwarder.clone(), listener, Endpoint::Tcp(LOOPBACK.to_owned(), port)));
    }
    Ok(tasks)
}

/// Makes an endpoint of this host reachable from a sandbox, as long as the result is kept: at this port of the sandbox's
/// loopback, or one of the next ones if it is in use. Returns the port.
pub async fn listen_near(
    bus: &Bus,
    vm: &OwnedObjectPath,
    port: u16,
    connect: Endpoint,
) -> Result<(u16, JoinSet<Result<()>>)> {
    let progress = Progress::new(ProgressArgs { quiet: true });
    let forwarder = Forwarder { bus: bus.clone(), vm: vm.clone(), progress, failures: Failures::Silent };
    let (mut refused, mut tasks) = (relay::protocol_error(), JoinSet::new());
    for port in (port..=u16::MAX).take(MAX_TRIES) {
        match forwarder.open(&Request::Listen(Endpoint::Tcp(LOOPBACK.to_owned(), port))).await {
            Ok(relay) => {
                tasks.spawn(serve_remote(forwarder, relay, connect));
                return Ok((port, tasks));
            }
            Err(error @ Error::Guest(_)) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

impl Forward {
    pub async fn run(&self) -> Result<u8> {
        let sandbox = self.sandbox.as_deref();
        let host = remote::chosen()?.map(|server| server.to_string());
        if self.list {
            return background::list(sandbox, host.as_deref(), self.json);
        }
        // Required unless `--list` is given.
        let sandbox = sandbox.unwrap_or_default();
        if self.stop {
            return background::stop(sandbox, host.as_deref());
        }
        let local = self.local();
        if local.is_empty() && self.remote.is_empty() && !self.auto {
            let error = Error::Usage("cannot forward: give --auto, -L or -R".to_owned());
            return Err(error.with_hint(format!(
                "`banger vm forward --auto {sandbox}` forwards every port on which it listens, `banger vm forward \
                 {sandbox} 8080:80` port 8080 of this host to its port 80; with `-d` they run in the background."
            )));
        }
        if self.detach && !self.in_background {
            if host.is_some() {
                // The process in the background has no terminal to log in with.
                drop(Bus::connect().await?);
            }
            return background::start();
        }
        self.forward(sandbox, &local).await.map_err(|error| error.about(sandbox))
    }

    /// Returns where to listen on the host.
    fn local(&self) -> Vec<Spec> {
        [&self.local[..], &self.ports].concat()
    }

    async fn forward(&self, sandbox: &str, local: &[Spec]) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, sandbox).await?;
        let signals = Signals::catch()?;
        let forwarder = Forwarder { bus, vm, progress, failures: Failures::Report };
        let mut tasks = JoinSet::new();
        // All listeners are bound before anything is printed.
        let mut lines = Vec::new();
        for spec in local {
            let listener = Listener::bind(&spec.listen).await?;
            let (address, target) = (listener.address(), DisplayEndpoint(&spec.connect));
            lines.push(format!("{address} reaches {target} in {sandbox}."));
            tasks.spawn(serve(forwarder.clone(), listener, spec.connect.clone()));
        }
        for spec in &self.remote {
            let relay = forwarder.open(&Request::Listen(spec.listen.clone())).await?;
            let (listen, target) = (DisplayEndpoint(&spec.listen), DisplayEndpoint(&spec.connect));
            lines.push(format!("{listen} in {sandbox} reaches {target}."));
            tasks.spawn(serve_remote(forwarder.clone(), relay, spec.connect.clone()));
        }
        lines.iter().for_each(|line| forwarder.progress.note(line));
        if self.auto {
            let guest = Guest::new(forwarder.bus.clone(), forwarder.vm.clone(), signals.listen());
            let auto = Auto::begin(forwarder.clone(), guest, sandbox.to_owned()).await?;
            lines.push(format!("Every port of {sandbox} is reached at the same port."));
            tasks.spawn(auto.run());
        }
        tasks.spawn(until_deleted(forwarder.clone(), sandbox.to_owned()));
        let bus = forwarder.bus.clone();
        tasks.spawn(async move { Err(bus.lost().await) });
        let entered = self.in_background.then(|| {
            background::enter(&background::Record {
                pid: background::own_pid(),
                host: forwarder.bus.server().map(|server| server.to_string()),
                sandbox: sandbox.to_owned(),
                vm: id_of(&forwarder.vm),
                forwards: lines,
                started_at: age::now(),
            })
        });
        let _entered = entered.transpose()?;
        let mut listener = signals.listen();
        let ended = unless_ended(&mut listener, async {
            match tasks.join_next().await {
                Some(Ok(ended)) => ended,
                _ => Ok(()),
            }
        });
        match ended.await {
            // The normal way to end.
            Err(Error::Interrupted { .. }) => Ok(0),
            ended => ended.map(|()| 0),
        }
    }
}

/// Waits until the sandbox is deleted.
async fn until_deleted(forwarder: Forwarder, sandbox: String) -> Result<()> {
    let is_gone =
        |error: &Error| matches!(error.name(), Some(ErrorName::NoSuchVm | ErrorName::UnknownObject));
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        match forwarder.bus.properties(&forwarder.vm, VM_INTERFACE).await {
            Err(error) if is_gone(&error) => return Err(Error::Refused(format!("{sandbox} was deleted"))),
            _ => {}
        }
    }
}

impl Forwarder {
    async fn open(&self, request: &Request) -> Result<Relay> {
        let stream = self.bus.open_agent(&self.vm, agent::CONNECTION, Some(STREAM_TIMEOUT)).await?;
        Relay::begin(stream, request).await
    }

    /// Relays one connection. An error is printed, and does not affect the others. Unless both sides have ended the
    /// connection, it is reset on this side as well.
    async fn relay_connection(self, request: Request, local: Result<Local>) {
        let mut local = match local {
            Ok(local) => local,
            Err(error) => {
                // Accepted and dropped, so that the client in the sandbox does not wait for an answer.
                drop(self.open(&request).await);
                return self.report(&error);
            }
        };
        let carried = match self.open(&request).await {
            Err(error) => Err(error),
            Ok(relay) => match &mut local {
                Local::Tcp(stream) => relay.carry(stream).await,
                Local::Unix(stream) => relay.carry(stream).await,
            },
        };
        match carried {
            Ok(RelayEnd::Ended) => {}
            Ok(RelayEnd::Reset | RelayEnd::LocalGone) => local.reset(),
            Err(error) => {
                local.reset();
                self.report(&error);
            }
        }
    }

    fn report(&self, error: &Error) {
        if self.failures == Failures::Report {
            self.progress.suspend(|| error.print(Some("a connection")));
        }
    }
}

async fn serve(forwarder: Forwarder, listener: Listener, connect: Endpoint) -> Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let slot = Arc::clone(&slots).acquire_owned().await;
        let local = listener.accept().await.map_err(|source| Error::io("accept a connection", source))?;
        let carried = forwarder.clone().relay_connection(Request::Connect(connect.clone()), Ok(local));
        tokio::spawn(async move {
            carried.await;
            drop(slot);
        });
    }
}

async fn serve_remote(forwarder: Forwarder, relay: Relay, connect: Endpoint) -> Result<()> {
    let mut incoming = Incoming::new(relay);
    loop {
        let number = incoming.next().await?;
        let (forwarder, connect) = (forwarder.clone(), connect.clone());
        tokio::spawn(async move {
            let local = Local::dial(&connect).await;
            forwarder.relay_connection(Request::Accept(number), local).await;
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::parse_args;

    #[test]
    fn every_order_of_options_and_names_is_read() {
        for (line, local, remote) in [
            ("web 8080:80", 1, 0),
            ("web 8080:80 5432", 2, 0),
            ("-L 8080:80 web", 1, 0),
            ("web -L 8080:80", 1, 0),
            ("-L8080:localhost:80 web", 1, 0),
            ("-d -L 8080:80 -- web", 1, 0),
            ("-d --auto -- web", 0, 0),
            ("-- web 8080:80", 1, 0),
            ("web --auto -d", 0, 0),
            ("-p 8080:80 web", 1, 0),
            ("--publish 127.0.0.1:8080:80 web", 1, 0),
            ("-f -N -L 8080:localhost:80 web", 1, 0),
            ("-fNL 8080:80 web", 1, 0),
            ("-NT -R 5432:localhost:5432 web 80", 1, 1),
        ] {
            let forward = parse_args::<Forward>(line).unwrap();
            assert_eq!(forward.sandbox.as_deref(), Some("web"), "{line}");
            assert_eq!((forward.local().len(), forward.remote.len()), (local, remote), "{line}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for line in
            ["", "--stop web 80", "--list web 80", "-L x web", "8080:80 web", "web x:y", "-D 1080 web"]
        {
            assert!(parse_args::<Forward>(line).is_err(), "{line}");
        }
    }
}
