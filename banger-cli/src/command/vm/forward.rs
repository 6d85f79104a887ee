//! `banger vm forward`.

mod auto;
mod background;

use std::{
    fmt, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use banger_proto::{
    bus::{ErrorName, names::VM_INTERFACE, option::agent},
    guest::{Request, message::Endpoint},
};
use clap::Args;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use zbus::OwnedObjectPath;

use self::auto::Auto;
use crate::{
    client::{
        bus::Bus,
        service::{Kind, id_of},
    },
    error::{Error, Result},
    guest::{
        agent::Guest,
        relay::{self, Relay, RelayEnd},
    },
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
const LOOPBACK: &str = "127.0.0.1";

/// Forward connections into or out of a sandbox
///
/// The agent carries the connections, so the sandbox needs no network, and programs that listen on its loopback can be
/// reached. Each side is a port, an address and a port, or the path of a unix socket. Press Ctrl-C to stop, or use
/// --detach to forward in the background until you stop it or delete the sandbox.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm forward -L 8080:80 web                a port of this host to one of the sandbox
  banger vm forward -L 8080:/run/app.sock web     to a socket in it
  banger vm forward -L 0.0.0.0:8080:80 web        from other computers as well
  banger vm forward -R 5432:localhost:5432 web    a port of the sandbox to one of this host
  banger vm forward --auto web                    every TCP port on which the sandbox listens
  banger vm forward -d --auto web                 the same in the background
  banger vm forward --list                        what is forwarded in the background
  banger vm forward --stop web                    ends that for this sandbox")]
pub struct Forward {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX", required_unless_present = "list")]
    sandbox: Option<String>,
    /// Listen on the host and connect in the sandbox: [ADDRESS:]PORT:[HOST:]PORT; either side can be the path
    /// of a unix socket
    #[arg(short = 'L', long, value_name = "LISTEN:CONNECT")]
    local: Vec<Spec>,
    /// Listen in the sandbox and connect on the host
    #[arg(short = 'R', long, value_name = "LISTEN:CONNECT")]
    remote: Vec<Spec>,
    /// Forward every TCP port on which the sandbox listens, while it listens, from the same port of the host's loopback
    /// (a free one, if that is taken)
    #[arg(long)]
    auto: bool,
    /// Forward in the background
    #[arg(short, long)]
    detach: bool,
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

/// Where to listen, and where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    listen: Endpoint,
    connect: Endpoint,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        // A word that is not a port begins a side of two words: an address.
        let is_whole = |part: &str| part.starts_with('/') || part.bytes().all(|byte| byte.is_ascii_digit());
        let length = |parts: &[&str]| if parts.first().is_some_and(|part| is_whole(part)) { 1 } else { 2 };
        let (listen, rest) = parts.split_at(length(&parts).min(parts.len()));
        let (connect, more) = rest.split_at(length(rest).min(rest.len()));
        let connect = if connect.is_empty() { listen } else { connect };
        match (endpoint(listen), endpoint(connect), more) {
            (Some(listen), Some(connect), []) => Ok(Self { listen, connect }),
            _ => {
                Err("write it like 8080:80, 127.0.0.1:8080:80, 8080:/run/x.sock or /tmp/a:/run/b".to_owned())
            }
        }
    }
}

fn endpoint(parts: &[&str]) -> Option<Endpoint> {
    match parts {
        [path] if path.starts_with('/') => Some(Endpoint::Unix((*path).to_owned())),
        [port] => Some(Endpoint::Tcp(LOOPBACK.to_owned(), port.parse().ok()?)),
        [host, port] if !host.is_empty() => Some(Endpoint::Tcp((*host).to_owned(), port.parse().ok()?)),
        _ => None,
    }
}

/// Formats an endpoint for people.
struct DisplayEndpoint<'a>(&'a Endpoint);

impl fmt::Display for DisplayEndpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Endpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => f.write_str(path),
        }
    }
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
        if self.list {
            return background::list(sandbox, self.json);
        }
        // Required unless `--list` is given.
        let sandbox = sandbox.unwrap_or_default();
        if self.stop {
            return background::stop(sandbox);
        }
        if self.local.is_empty() && self.remote.is_empty() && !self.auto {
            let error = Error::Usage("cannot forward: give --auto, -L or -R".to_owned());
            return Err(error.with_hint(format!(
                "`banger vm forward --auto {sandbox}` forwards every port on which it listens, `banger vm forward -L \
                 8080:80 {sandbox}` port 8080 of this host to its port 80; with `-d` they run in the background."
            )));
        }
        if self.detach && !self.in_background {
            return background::start();
        }
        self.forward(sandbox).await.map_err(|error| error.about(sandbox))
    }

    async fn forward(&self, sandbox: &str) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, sandbox).await?;
        let signals = Signals::catch()?;
        let forwarder = Forwarder { bus, vm, progress, failures: Failures::Report };
        let mut tasks = JoinSet::new();
        // All listeners are bound before anything is printed.
        let mut lines = Vec::new();
        for spec in &self.local {
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
        let entered = self.in_background.then(|| {
            background::enter(&background::Record {
                pid: background::own_pid(),
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

/// A connection on the host.
enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Local {
    /// Makes dropping the connection send a reset. Socket files have none.
    fn reset(&self) {
        if let Self::Tcp(stream) = self {
            // A closed connection needs no reset.
            let _ = stream.set_zero_linger();
        }
    }

    async fn dial(endpoint: &Endpoint) -> Result<Self> {
        let failed = |source| Error::io(format!("connect to {}", DisplayEndpoint(endpoint)), source);
        match endpoint {
            Endpoint::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                Ok(Self::Tcp(stream))
            }
            Endpoint::Unix(path) => UnixStream::connect(path).await.map(Self::Unix).map_err(failed),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    async fn bind(endpoint: &Endpoint) -> Result<Self> {
        let failed = |source: io::Error| {
            let taken = source.kind() == io::ErrorKind::AddrInUse;
            let error = Error::io(format!("listen on {}", DisplayEndpoint(endpoint)), source);
            if taken { error.with_hint("choose another one; port 0 lets the system choose.") } else { error }
        };
        match endpoint {
            Endpoint::Tcp(host, port) => {
                TcpListener::bind((host.as_str(), *port)).await.map(Self::Tcp).map_err(failed)
            }
            Endpoint::Unix(path) => {
                let path = Path::new(path);
                // A socket file without a listener is left over.
                let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
                if is_socket && UnixStream::connect(path).await.is_err() {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Ok(Self::Unix(UnixListener::bind(path).map_err(failed)?, path.to_owned()))
            }
        }
    }

    /// Binds a port of the loopback with this number, or another one if it is in use or reserved for root.
    async fn bind_near(port: u16) -> Result<Self> {
        let endpoint = |port| Endpoint::Tcp(LOOPBACK.to_owned(), port);
        match Self::bind(&endpoint(port)).await {
            Ok(listener) => Ok(listener),
            Err(_) => Self::bind(&endpoint(0)).await,
        }
    }

    fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
            }
            Self::Unix(_, path) => path.display().to_string(),
        }
    }

    /// Returns the port, if it is one.
    fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Self::Unix(..) => None,
        }
    }

    async fn accept(&self) -> io::Result<Local> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Local::Tcp(stream)
            }
            Self::Unix(listener, _) => Local::Unix(listener.accept().await?.0),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // It may have been removed already.
            let _ = std::fs::remove_file(path);
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

async fn serve_remote(forwarder: Forwarder, mut relay: Relay, connect: Endpoint) -> Result<()> {
    let mut lines = Vec::new();
    loop {
        lines.extend(relay.output().await?.ok_or_else(relay::protocol_error)?);
        while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = lines.drain(..=end).collect();
            let number = std::str::from_utf8(&line).ok().and_then(|line| line.trim().parse().ok());
            let number = number.ok_or_else(relay::protocol_error)?;
            let (forwarder, connect) = (forwarder.clone(), connect.clone());
            tokio::spawn(async move {
                let local = Local::dial(&connect).await;
                forwarder.relay_connection(Request::Accept(number), local).await;
            });
        }
        if lines.len() > 32 {
            return Err(relay::protocol_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_ports_addresses_or_sockets() {
        let tcp = |host: &str, port| Endpoint::Tcp(host.to_owned(), port);
        let unix = |path: &str| Endpoint::Unix(path.to_owned());
        for (text, listen, connect) in [
            ("8080:80", tcp(LOOPBACK, 8080), tcp(LOOPBACK, 80)),
            ("8080", tcp(LOOPBACK, 8080), tcp(LOOPBACK, 8080)),
            ("0.0.0.0:8080:80", tcp("0.0.0.0", 8080), tcp(LOOPBACK, 80)),
            ("8080:10.0.0.1:80", tcp(LOOPBACK, 8080), tcp("10.0.0.1", 80)),
            ("localhost:1:localhost:2", tcp("localhost", 1), tcp("localhost", 2)),
            ("8080:/run/x.sock", tcp(LOOPBACK, 8080), unix("/run/x.sock")),
            ("/tmp/a:/run/b", unix("/tmp/a"), unix("/run/b")),
            ("/tmp/a:80", unix("/tmp/a"), tcp(LOOPBACK, 80)),
        ] {
            assert_eq!(text.parse(), Ok(Spec { listen, connect }), "{text}");
        }
        for text in ["", "x", "x:y", "1:2:3:4:5", "99999:1", ":80", "80:", "1:2:3"] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}
