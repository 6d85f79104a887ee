//! Connections to programs in a guest.

use core::net::SocketAddr;
use std::{io::ErrorKind, os::fd::OwnedFd, time::Duration};

use tokio::net::TcpStream;

use crate::ports::{
    FromHost as _,
    network::{Error, Result},
};

/// Connects to an address, or returns `None` if nobody listens there. The stream blocks, as programs expect.
pub async fn connect(to: SocketAddr, timeout: Duration) -> Result<Option<OwnedFd>> {
    let doing = || format!("connect to {to}");
    let Ok(connected) = tokio::time::timeout(timeout, TcpStream::connect(to)).await else { return Ok(None) };
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) if is_absence(error.kind()) => return Ok(None),
        Err(error) => return Err(Error::os(doing(), error)),
    };
    // Each keystroke is sent at once: the client may not know that the stream is TCP.
    let blocking = stream.set_nodelay(true).and_then(|()| stream.into_std()).and_then(|stream| {
        stream.set_nonblocking(false)?;
        Ok(stream)
    });
    blocking.map(|stream| Some(stream.into())).map_err(|error| Error::os(doing(), error))
}

/// Returns whether the error means that nobody listens.
fn is_absence(kind: ErrorKind) -> bool {
    use ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(kind, ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | TimedOut)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream as StdStream},
    };

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_stream_connects_to_a_listener_and_blocks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let stream = connect(to, TIMEOUT).await.unwrap().unwrap();
        let (mut theirs, mut ours) = (listener.accept().unwrap().0, StdStream::from(stream));
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            theirs.write_all(b"hello").unwrap();
        });
        let mut heard = String::new();
        ours.read_to_string(&mut heard).unwrap();
        late.join().unwrap();
        assert_eq!(heard, "hello");
    }

    #[tokio::test]
    async fn where_nobody_listens_there_is_no_stream() {
        // Nobody else gets the port.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = held.local_addr().unwrap();
        assert!(connect(to, TIMEOUT).await.unwrap().is_none());
    }
}
