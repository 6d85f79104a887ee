//! The sockets of the host: those that listen, and connections.

use std::{
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use banger_proto::guest::message::Endpoint;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::spec::{DisplayEndpoint, LOOPBACK};
use crate::error::{Error, Result};

/// A connection on the host.
pub enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Local {
    /// Makes dropping the connection send a reset. Socket files have none.
    pub fn reset(&self) {
        if let Self::Tcp(stream) = self {
            // A closed connection needs no reset.
            let _ = stream.set_zero_linger();
        }
    }

    /// Connects to an endpoint.
    pub async fn dial(endpoint: &Endpoint) -> Result<Self> {
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

/// What listens on the host.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens at an endpoint.
    pub async fn bind(endpoint: &Endpoint) -> Result<Self> {
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
                // A socket file is left over if no socket is bound to it. Other failures do not say so: the socket may
                // be of another type, busy, or another user's.
                let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
                let is_unbound = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
                if is_socket && UnixStream::connect(path).await.is_err_and(is_unbound) {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Ok(Self::Unix(UnixListener::bind(path).map_err(failed)?, path.to_owned()))
            }
        }
    }

    /// Binds a port of the loopback with this number, or another one if it is in use or reserved for root.
    pub async fn bind_near(port: u16) -> Result<Self> {
        let endpoint = |port| Endpoint::Tcp(LOOPBACK.to_owned(), port);
        match Self::bind(&endpoint(port)).await {
            Ok(listener) => Ok(listener),
            Err(_) => Self::bind(&endpoint(0)).await,
        }
    }

    /// Returns its address or path.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
            }
            Self::Unix(_, path) => path.display().to_string(),
        }
    }

    /// Returns the port, if it is one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Self::Unix(..) => None,
        }
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<Local> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[tokio::test]
    async fn only_a_socket_file_that_is_left_over_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let endpoint = Endpoint::Unix(path.to_str().unwrap().to_owned());
        let datagrams = UnixDatagram::bind(&path).unwrap();
        assert!(Listener::bind(&endpoint).await.is_err(), "a socket of another type");
        assert!(path.exists());
        drop(datagrams);
        let listener = Listener::bind(&endpoint).await.unwrap();
        assert!(Listener::bind(&endpoint).await.is_err(), "a socket that listens");
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }
}
