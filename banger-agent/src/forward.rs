//! Forwards connections from the host to services in the guest, and from the guest to the host.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
        },
    },
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use banger_proto::guest::{
    FailureKind, Frame, STDIN_WINDOW,
    frame::MAX_DATA,
    message::{Endpoint, Started},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, Shutdown, shutdown,
        sockopt::{set_socket_linger, socket_domain},
    },
};

use crate::{
    conversation::{kind_of, refuse},
    port::{Port, Received},
};

/// How long a service in the guest may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit on output queued for the host, before reading from the connection pauses.
const MAX_QUEUED: usize = 4 * MAX_DATA;
/// Limit on incoming connections that the host has not accepted yet.
const MAX_WAITING: usize = 64;

/// Incoming connections by number.
static WAITING: Mutex<BTreeMap<u64, OwnedFd>> = Mutex::new(BTreeMap::new());
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// Connects to an endpoint in the guest.
pub fn connect(port: &mut Port, endpoint: &Endpoint) -> io::Result<()> {
    match dial(endpoint) {
        Ok(connection) => relay(port, connection),
        Err(error) => {
            let message = format!("cannot connect to {} in the guest: {error}", name(endpoint));
            refuse(port, kind_of(&error), &message)
        }
    }
}

/// Serves an incoming connection.
pub fn accept(port: &mut Port, number: u64) -> io::Result<()> {
    let connection = WAITING.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    match connection {
        Some(connection) => relay(port, connection),
        None => refuse(port, FailureKind::NotFound, "the connection is gone"),
    }
}

/// Listens until the host hangs up.
pub fn listen(port: &mut Port, endpoint: &Endpoint) -> io::Result<()> {
    let listener = match Listener::new(endpoint) {
        Ok(listener) => listener,
        Err(error) => {
            let message = format!("cannot listen on {} in the guest: {error}", name(endpoint));
            return refuse(port, kind_of(&error), &message);
        }
    };
    let mut mine = Vec::new();
    let served = serve(port, &listener, &mut mine);
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    mine.iter().for_each(|number| drop(waiting.remove(number)));
    served
}

fn serve(port: &mut Port, listener: &Listener, mine: &mut Vec<u64>) -> io::Result<()> {
    port.queue(&Frame::Started(Started::new(0)));
    loop {
        if !port.flush()? {
            return Ok(());
        }
        let mut fds = [PollFd::new(&*port, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [ours, comes] = [fds[0].revents(), fds[1].revents()];
        if !ours.is_empty() && port.receive()? == Received::HungUp || ours.contains(PollFlags::ERR) {
            return Ok(());
        }
        if port.next_frame()?.is_some() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "nothing was expected"));
        }
        if comes.is_empty() {
            continue;
        }
        let connection = listener.accept()?;
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        // Further connections are not announced to a host that does not accept them.
        if waiting.len() < MAX_WAITING {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            waiting.insert(number, connection);
            mine.push(number);
            port.queue(&Frame::Output(format!("{number}\n").into_bytes()));
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, String),
}

impl Listener {
    fn new(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(host, port) => {
                Ok(Self::Tcp(TcpListener::bind(addresses(host, *port)?.as_slice())?))
            }
            Endpoint::Unix(path) => {
                // A socket file without a listener is left over.
                let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
                if is_socket && UnixStream::connect(path).is_err() {
                    fs::remove_file(path)?;
                }
                Ok(Self::Unix(UnixListener::bind(path)?, path.clone()))
            }
        }
    }

    fn accept(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Tcp(listener) => listener.accept()?.0.into(),
            Self::Unix(listener, _) => listener.accept()?.0.into(),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // It may have been removed already.
            let _ = fs::remove_file(path);
        }
    }
}

fn name(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp(host, port) => format!("{host}:{port}"),
        Endpoint::Unix(path) => path.clone(),
    }
}

/// Resolves an address. A static program cannot use the guest's name services, so only numeric addresses and the
/// guest's own names are known.
fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let addresses = match host {
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        other => vec![other.parse::<IpAddr>().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{other} is neither an address nor localhost"),
            )
        })?],
    };
    Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

fn dial(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    match endpoint {
        Endpoint::Tcp(host, port) => {
            let mut refused = io::Error::from(io::ErrorKind::NotFound);
            for address in addresses(host, *port)? {
                match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        return Ok(stream.into());
                    }
                    Err(error) => refused = error,
                }
            }
            Err(refused)
        }
        Endpoint::Unix(path) => Ok(UnixStream::connect(path)?.into()),
    }
}

/// How a connection ended.
enum Ended {
    /// Both sides have closed their direction.
    Both,
    /// The guest's side was reset.
    Reset,
    /// The host hung up before that.
    HostGone,
}

/// Relays bytes in both directions until both sides have ended, or one of them is gone. A reset of one side becomes a
/// reset of the other, because the reader must be able to distinguish it from an end.
fn relay(port: &mut Port, connection: OwnedFd) -> io::Result<()> {
    let ended = carry(port, &connection);
    if !matches!(ended, Ok(Ended::Both)) {
        // Closing then sends a reset (socket(7), `SO_LINGER`). Socket files have none.
        let _ = set_socket_linger(&connection, Some(Duration::ZERO));
    }
    match ended? {
        Ended::Both => port.send(&Frame::Done).map(drop),
        Ended::Reset => refuse(port, FailureKind::Reset, "the connection was reset"),
        Ended::HostGone => Ok(()),
    }
}

fn carry(port: &mut Port, connection: &OwnedFd) -> io::Result<Ended> {
    rustix::io::ioctl_fionbio(connection, true)?;
    let is_socket_file = socket_domain(connection)? == AddressFamily::UNIX;
    port.queue(&Frame::Started(Started::new(0)));
    let mut pending: VecDeque<u8> = VecDeque::new();
    let (mut input_ended, mut told_peer, mut output_ended) = (false, false, false);
    loop {
        // Data that came together with the request causes no further event.
        if port.receive()? == Received::HungUp {
            return Ok(Ended::HostGone);
        }
        while let Some(frame) = port.next_frame()? {
            match frame {
                Frame::Input(bytes) => pending.extend(bytes),
                Frame::InputEnd => input_ended = true,
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes were expected")),
            }
            if pending.len() > STDIN_WINDOW as usize + MAX_DATA {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "more input than there may be"));
            }
        }
        let mut given = 0;
        while !pending.is_empty() {
            match rustix::io::write(connection, pending.as_slices().0) {
                Ok(count) => {
                    pending.drain(..count);
                    given += count as u32;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // The peer no longer reads. The bytes are dropped, because the other direction may continue. Only
                // socket files need this: TCP answers with a reset.
                Err(_) if is_socket_file => {
                    given += pending.len() as u32;
                    pending.clear();
                }
                Err(_) => return Ok(Ended::Reset),
            }
        }
        if given > 0 {
            port.queue(&Frame::Window(given));
        }
        if input_ended && pending.is_empty() && !told_peer {
            told_peer = true;
            let _ = shutdown(connection, Shutdown::Write);
        }
        while !output_ended && port.queued() < MAX_QUEUED {
            let mut bytes = vec![0; MAX_DATA];
            match rustix::io::read(connection, &mut bytes[..]) {
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Ok(Ended::Reset),
                Ok(0) => {
                    output_ended = true;
                    port.queue(&Frame::Output(Vec::new()));
                }
                Ok(count) => {
                    bytes.truncate(count);
                    port.queue(&Frame::Output(bytes));
                }
            }
        }
        if output_ended && told_peer {
            return Ok(Ended::Both);
        }
        if !port.flush()? {
            return Ok(Ended::HostGone);
        }
        wait(port, connection, !pending.is_empty(), !output_ended)?;
    }
}

fn wait(port: &Port, connection: &OwnedFd, has_input: bool, wants_output: bool) -> io::Result<()> {
    let sends = if port.queued() == 0 { PollFlags::empty() } else { PollFlags::OUT };
    let mut wanted = PollFlags::empty();
    wanted.set(PollFlags::OUT, has_input);
    wanted.set(PollFlags::IN, wants_output && port.queued() < MAX_QUEUED);
    let mut fds = vec![PollFd::new(port, PollFlags::IN | sends)];
    // A connection without wanted events would still report a hangup, again and again.
    if !wanted.is_empty() {
        fds.push(PollFd::new(connection, wanted));
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read, Write},
        thread,
    };

    use banger_proto::guest::Request;

    use super::*;
    use crate::test_host::Host;

    #[test]
    fn a_connection_carries_both_ways_until_both_have_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&[7; 1_000_000]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            heard
        });
        let mut host = Host::ask(Request::Connect(Endpoint::Tcp("localhost".into(), port)));
        let mut came = 0;
        loop {
            match host.next() {
                Frame::Output(bytes) if bytes.is_empty() => break,
                Frame::Output(bytes) => came += bytes.len(),
                _ => {}
            }
        }
        assert_eq!(came, 1_000_000);
        // The end was sent, and the host still sends data.
        host.feed(b"late");
        assert_eq!(host.bytes().1, Frame::Done);
        assert_eq!(server.join().unwrap(), b"late");
    }

    /// Connects to a server that runs `serve` on its end.
    fn connected<T: Send + 'static>(
        serve: impl FnOnce(TcpStream) -> T + Send + 'static,
    ) -> (Host, thread::JoinHandle<T>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || serve(listener.accept().unwrap().0));
        let mut host = Host::ask(Request::Connect(Endpoint::Tcp("127.0.0.1".into(), port)));
        assert!(matches!(host.next(), Frame::Started(_)));
        (host, server)
    }

    #[test]
    fn a_reset_in_the_guest_is_reported_after_the_data() {
        let (mut host, server) = connected(|mut stream| {
            stream.write_all(b"half").unwrap();
            // The reset is sent, and noticed by the agent, after the host has answered.
            assert_eq!(stream.read(&mut [0; 4]).unwrap(), 4);
            set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        });
        assert_eq!(host.next(), Frame::Output(b"half".to_vec()));
        host.send(&Frame::Input(b"seen".to_vec()));
        let (rest, end) = host.bytes();
        let Frame::Failed(failure) = end else { panic!("{end:?}") };
        assert_eq!((rest, failure.kind), (Vec::new(), FailureKind::Reset));
        server.join().unwrap();
    }

    #[test]
    fn a_host_that_hangs_up_resets_and_one_that_ends_does_not() {
        let read = |mut stream: TcpStream| stream.read(&mut [0; 1]).map_err(|error| error.kind());
        let (host, server) = connected(read);
        drop(host);
        assert_eq!(server.join().unwrap(), Err(io::ErrorKind::ConnectionReset));
        let (mut host, server) = connected(read);
        host.send(&Frame::InputEnd);
        assert_eq!(server.join().unwrap(), Ok(0));
        assert_eq!(host.bytes().1, Frame::Done);
    }

    #[test]
    fn a_refused_connection_is_reported() {
        for (endpoint, expect) in [
            (Endpoint::Unix("/nowhere/s".into()), "cannot connect to /nowhere/s in the guest: "),
            (Endpoint::Tcp("127.0.0.1".into(), 1), "cannot connect to 127.0.0.1:1 in the guest: "),
            (
                Endpoint::Tcp("example.org".into(), 1),
                "cannot connect to example.org:1 in the guest: example.org is neither",
            ),
        ] {
            let end = Host::ask(Request::Connect(endpoint)).bytes().1;
            let Frame::Failed(failure) = end else { panic!("{end:?}") };
            assert!(failure.message.starts_with(expect), "{failure:?}");
        }
    }

    #[test]
    fn a_listener_passes_connections_on_and_ends_with_its_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let endpoint = Endpoint::Unix(path.to_str().unwrap().to_owned());
        let mut listening = Host::ask(Request::Listen(endpoint));
        assert!(matches!(listening.next(), Frame::Started(_)));
        let mut caller = UnixStream::connect(&path).unwrap();
        caller.write_all(b"hello").unwrap();
        caller.shutdown(std::net::Shutdown::Write).unwrap();
        let Frame::Output(number) = listening.next() else { panic!("no number") };
        let number: u64 = String::from_utf8(number).unwrap().trim().parse().unwrap();
        let mut accepted = Host::ask(Request::Accept(number));
        accepted.feed(b"answer");
        assert_eq!(accepted.bytes(), (b"hello".to_vec(), Frame::Done));
        let mut answer = String::new();
        caller.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        assert!(matches!(Host::ask(Request::Accept(number)).bytes().1, Frame::Failed(_)));
        drop(listening);
        assert!(!path.exists());
    }
}
