//! `banger vm forward`.

use std::{
    collections::BTreeSet,
    fmt, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use banger_proto::{
    bus::option::agent,
    guest::{Request, message::Endpoint},
};
use clap::Args;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use zbus::OwnedObjectPath;

use crate::{
    bus::Bus,
    error::{Error, Result},
    guest::Guest,
    progress::{Progress, ProgressArgs},
    relay::{self, Carried, Relay},
    service::Kind,
    signals::{Signals, unless_ended},
};

/// Between two looks at what listens in the sandbox, with `--auto`.
const LOOK: Duration = Duration::from_secs(2);
/// How long a connection waits for a stream to the sandbox, of which there are only so many for connections. A browser
/// gives up by itself no sooner.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections to one port that may be under way or wait. More stay in the system's queue.
const MOST: usize = 64;
const LOOPBACK: &str = "127.0.0.1";

/// Forward connections into or out of a sandbox
///
/// Press Ctrl-C to stop. The agent carries the connections, so they need no network in the sandbox, and reach
/// what listens on its loopback. Each side is a port, an address and a port, or the path of a socket.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm forward -L 8080:80 web                a port of this host to one of the sandbox
  banger vm forward -L 8080:/run/app.sock web     to a socket in it
  banger vm forward -L 0.0.0.0:8080:80 web        from other computers, too
  banger vm forward -R 5432:localhost:5432 web    a port of the sandbox to one of this host
  banger vm forward --auto web                    every TCP port on which the sandbox listens")]
pub struct Forward {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Listen on the host, and connect in the sandbox: [ADDRESS:]PORT:[HOST:]PORT, or paths of sockets
    /// instead
    #[arg(short = 'L', long, value_name = "LISTEN:CONNECT", required_unless_present_any = ["remote", "auto"])]
    local: Vec<Spec>,
    /// Listen in the sandbox, and connect on the host
    #[arg(short = 'R', long, value_name = "LISTEN:CONNECT")]
    remote: Vec<Spec>,
    /// Forward every TCP port on which the sandbox listens, from the same port of the host's loopback
    #[arg(long)]
    auto: bool,
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
        let words: Vec<&str> = text.split(':').collect();
        // A word that is no port begins a side of two words: an address.
        let is_whole = |word: &str| word.starts_with('/') || word.bytes().all(|byte| byte.is_ascii_digit());
        let length = |words: &[&str]| if words.first().is_some_and(|word| is_whole(word)) { 1 } else { 2 };
        let (listen, rest) = words.split_at(length(&words).min(words.len()));
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

fn endpoint(words: &[&str]) -> Option<Endpoint> {
    match words {
        [path] if path.starts_with('/') => Some(Endpoint::Unix((*path).to_owned())),
        [port] => Some(Endpoint::Tcp(LOOPBACK.to_owned(), port.parse().ok()?)),
        [host, port] if !host.is_empty() => Some(Endpoint::Tcp((*host).to_owned(), port.parse().ok()?)),
        _ => None,
    }
}

/// An endpoint as people read it.
struct Shown<'a>(&'a Endpoint);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Endpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => f.write_str(path),
        }
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Way {
    bus: Bus,
    vm: OwnedObjectPath,
    progress: Progress,
    failures: Failures,
}

/// What becomes of a connection that cannot be led on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failures {
    /// It is told why.
    Told,
    /// Somebody else has the terminal.
    Untold,
}

/// Leads ports of this host's loopback to the same ones of a sandbox, as long as what is returned is kept. A port
/// that is taken here gets another number.
pub async fn lead(
    bus: &Bus,
    vm: &OwnedObjectPath,
    progress: &Progress,
    ports: &[u16],
) -> Result<JoinSet<Result<()>>> {
    let (bus, vm, progress) = (bus.clone(), vm.clone(), progress.clone());
    let way = Way { bus, vm, progress, failures: Failures::Untold };
    let mut tasks = JoinSet::new();
    for &port in ports {
        let listener = Listener::like(port).await?;
        way.progress.note(&format!("{} reaches {port} in the sandbox.", listener.place()));
        tasks.spawn(serve(way.clone(), listener, Endpoint::Tcp(LOOPBACK.to_owned(), port)));
    }
    Ok(tasks)
}

impl Forward {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        let signals = Signals::catch()?;
        let way = Way { bus, vm, progress, failures: Failures::Told };
        let mut tasks = JoinSet::new();
        // All that is to listen does before anything is said.
        let mut said = Vec::new();
        for spec in &self.local {
            let listener = Listener::bind(&spec.listen).await?;
            said.push(format!("{} reaches {} in {}.", listener.place(), Shown(&spec.connect), self.sandbox));
            tasks.spawn(serve(way.clone(), listener, spec.connect.clone()));
        }
        for spec in &self.remote {
            let relay = way
                .open(&Request::Listen(spec.listen.clone()))
                .await
                .map_err(|error| error.about(&self.sandbox))?;
            said.push(format!(
                "{} in {} reaches {}.",
                Shown(&spec.listen),
                self.sandbox,
                Shown(&spec.connect)
            ));
            tasks.spawn(serve_remote(way.clone(), relay, spec.connect.clone()));
        }
        if self.auto {
            let guest = Guest::new(way.bus.clone(), way.vm.clone(), signals.listen());
            tasks.spawn(serve_all(way.clone(), guest, self.sandbox.clone()));
        }
        said.iter().for_each(|line| way.progress.note(line));
        let mut listener = signals.listen();
        let ended = unless_ended(&mut listener, async {
            match tasks.join_next().await {
                Some(Ok(ended)) => ended,
                _ => Ok(()),
            }
        });
        match ended.await {
            // That is how it is meant to end.
            Err(Error::Interrupted { .. }) => Ok(0),
            Err(error) => Err(error.about(&self.sandbox)),
            Ok(()) => Ok(0),
        }
    }
}

impl Way {
    async fn open(&self, request: &Request) -> Result<Relay> {
        let stream = self.bus.open_agent(&self.vm, agent::CONNECTION, Some(PATIENCE)).await?;
        Relay::begin(stream, request).await
    }

    /// Carries one connection. What goes wrong with it is told, and the others go on. Unless both sides have ended it,
    /// it is reset on this side as well.
    async fn carry(self, request: Request, local: Result<Local>) {
        let mut local = match local {
            Ok(local) => local,
            Err(error) => {
                // Taken up and left, so that whoever made it in the sandbox does not wait for an answer.
                drop(self.open(&request).await);
                return self.tell(&error);
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
            Ok(Carried::Ended) => {}
            Ok(Carried::Reset | Carried::LocalGone) => local.reset(),
            Err(error) => {
                local.reset();
                self.tell(&error);
            }
        }
    }

    fn tell(&self, error: &Error) {
        if self.failures == Failures::Told {
            self.progress.suspend(|| error.print(Some("a connection")));
        }
    }
}

/// A connection on this side.
enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Local {
    /// Lets the other end see a reset when this is dropped. A socket file has none.
    fn reset(&self) {
        if let Self::Tcp(stream) = self {
            // One that is gone needs no reset.
            let _ = stream.set_zero_linger();
        }
    }

    async fn dial(endpoint: &Endpoint) -> Result<Self> {
        let failed = |source| Error::io(format!("connect to {}", Shown(endpoint)), source);
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
            let error = Error::io(format!("listen on {}", Shown(endpoint)), source);
            if taken { error.advise("choose another one; port 0 lets the system choose.") } else { error }
        };
        match endpoint {
            Endpoint::Tcp(host, port) => {
                TcpListener::bind((host.as_str(), *port)).await.map(Self::Tcp).map_err(failed)
            }
            Endpoint::Unix(path) => {
                let path = Path::new(path);
                // A socket on which nobody listens is a leftover.
                let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
                if is_socket && UnixStream::connect(path).await.is_err() {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Ok(Self::Unix(UnixListener::bind(path).map_err(failed)?, path.to_owned()))
            }
        }
    }

    /// A port of the loopback with this number, or another one where that is taken here, or only for root.
    async fn like(port: u16) -> Result<Self> {
        let place = |port| Endpoint::Tcp(LOOPBACK.to_owned(), port);
        match Self::bind(&place(port)).await {
            Ok(listener) => Ok(listener),
            Err(_) => Self::bind(&place(0)).await,
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
            }
            Self::Unix(_, path) => path.display().to_string(),
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
            // Whoever has removed it already has done the same.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn serve(way: Way, listener: Listener, connect: Endpoint) -> Result<()> {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        // It is never closed.
        let place = Arc::clone(&places).acquire_owned().await;
        let local = listener.accept().await.map_err(|source| Error::io("accept a connection", source))?;
        let carried = way.clone().carry(Request::Connect(connect.clone()), Ok(local));
        tokio::spawn(async move {
            carried.await;
            drop(place);
        });
    }
}

async fn serve_remote(way: Way, mut relay: Relay, connect: Endpoint) -> Result<()> {
    let mut lines = Vec::new();
    loop {
        lines.extend(relay.output().await?.ok_or_else(relay::garbage)?);
        while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = lines.drain(..=end).collect();
            let number = std::str::from_utf8(&line).ok().and_then(|line| line.trim().parse().ok());
            let number = number.ok_or_else(relay::garbage)?;
            let (way, connect) = (way.clone(), connect.clone());
            tokio::spawn(async move {
                let local = Local::dial(&connect).await;
                way.carry(Request::Accept(number), local).await;
            });
        }
        if lines.len() > 32 {
            return Err(relay::garbage());
        }
    }
}

/// Leads a port of ours to each that listens on TCP, as they come.
async fn serve_all(way: Way, mut guest: Guest, sandbox: String) -> Result<()> {
    let mut seen = BTreeSet::new();
    loop {
        let ports: Vec<banger_proto::guest::facts::ListeningPort> = guest.ask(Request::Ports).await?;
        for port in ports.into_iter().filter(|port| port.protocol == "tcp" && seen.insert(port.port)) {
            let listener = Listener::like(port.port).await?;
            let host = if port.address.contains(':') { "::1" } else { LOOPBACK };
            let any = port
                .address
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_unspecified() || address.is_loopback());
            let host = if any { host.to_owned() } else { port.address.clone() };
            way.progress.note(&format!(
                "{} reaches {} ({}) in {sandbox}.",
                listener.place(),
                port.port,
                port.program
            ));
            tokio::spawn(serve(way.clone(), listener, Endpoint::Tcp(host, port.port)));
        }
        tokio::time::sleep(LOOK).await;
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
