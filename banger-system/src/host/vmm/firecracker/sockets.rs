//! The directory in which Firecracker creates its sockets, and connections to them.
//!
//! The VMM may write to the directory, and its guest may have taken it over. So anything may be at the name of a
//! socket, such as a link to somebody else's socket, which this service must not talk to as root. A name is opened
//! without following links, and connected to by that descriptor only if it is a socket.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::Path,
    time::Duration,
};

use banger_domain::{id::VmId, resource::Paths, stream::Purpose};
use banger_proto::guest::{VSOCK_CONNECTION_PORT, VSOCK_PORT, VSOCK_QUESTION_PORT, VSOCK_SERVICE_PORT};
use rustix::fs::{FileType, Mode, OFlags};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::requests::VSOCK_SOCKET;
use crate::ports::{
    FromHost as _,
    guest_link::{Channel, Error, Result},
    vmm,
};

/// How long the VMM may take to reach the guest. It gives up after 2 s by itself.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// `OK `, a number of 32 bits, and a newline.
const MAX_ANSWER: usize = 14;

/// Creates the directory of a sandbox's sockets, and the one in it that the VMM sees and writes to. No other user can
/// pass the outer one, so the inner one may be open to all: the VMM's user is not known before it runs.
pub fn make(paths: &Paths, vm: VmId) -> vmm::Result<()> {
    let (outer, inner) = (paths.socket_dir(vm), paths.vmm_dir(vm));
    remove(paths, vm)?;
    let os = |error| vmm::Error::os(format!("make {}", inner.display()), error);
    DirBuilder::new().recursive(true).mode(0o700).create(&outer).map_err(os)?;
    DirBuilder::new().mode(0o700).create(&inner).map_err(os)?;
    fs::set_permissions(&inner, Permissions::from_mode(0o777)).map_err(os)
}

/// Removes the directory of a sandbox's sockets.
pub fn remove(paths: &Paths, vm: VmId) -> vmm::Result<()> {
    let directory = paths.socket_dir(vm);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(vmm::Error::os(format!("remove {}", directory.display()), error))
        }
        _ => Ok(()),
    }
}

/// Connects to a socket in a directory that a VMM can write to.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not a socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await
}

/// Connects to the guest's agent. An agent of an earlier version uses one port for everything.
pub async fn connect_to_guest(directory: &Path, channel: Channel) -> Result<UnixStream> {
    let port = match channel {
        Channel::Control => VSOCK_SERVICE_PORT,
        Channel::Stream(Purpose::Question) => VSOCK_QUESTION_PORT,
        Channel::Stream(Purpose::Command) => VSOCK_PORT,
        Channel::Stream(Purpose::Connection) => VSOCK_CONNECTION_PORT,
    };
    match connect_to_port(directory, port).await {
        Err(Error::Unavailable { .. }) if port != VSOCK_PORT => connect_to_port(directory, VSOCK_PORT).await,
        connected => connected,
    }
}

/// Connects to a port of the guest (Firecracker's `docs/vsock.md`, host-initiated connections).
async fn connect_to_port(directory: &Path, port: u32) -> Result<UnixStream> {
    let agent =
        |what: &str| Error::Unavailable { message: format!("cannot reach the guest's agent: {what}") };
    let asked = async {
        let mut stream =
            connect(&directory.join(VSOCK_SOCKET)).await.map_err(|error| agent(&error.to_string()))?;
        let order = format!("CONNECT {port}\n");
        stream.write_all(order.as_bytes()).await.map_err(|error| agent(&error.to_string()))?;
        let mut answer = Vec::new();
        // Read byte by byte, since what follows the line belongs to the guest's stream.
        while answer.last() != Some(&b'\n') {
            match stream.read_u8().await {
                Ok(byte) if answer.len() < MAX_ANSWER => answer.push(byte),
                Ok(_) => return Err(agent("unexpected reply from Firecracker")),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(agent("the guest does not listen"));
                }
                Err(error) => return Err(agent(&error.to_string())),
            }
        }
        if answer.starts_with(b"OK ") { Ok(stream) } else { Err(agent("unexpected reply from Firecracker")) }
    };
    let late =
        |_| Error::Timeout { what: "connecting to the guest's agent".to_owned(), after: CONNECT_TIMEOUT };
    tokio::time::timeout(CONNECT_TIMEOUT, asked).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[tokio::test]
    async fn only_a_real_socket_is_connected_to() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _listening = UnixListener::bind(at("real")).unwrap();
        symlink(at("real"), at("link")).unwrap();
        fs::write(at("file"), "").unwrap();
        connect(&at("real")).await.unwrap();
        assert!(connect(&at("link")).await.is_err());
        assert!(connect(&at("file")).await.is_err());
        assert_eq!(connect(&at("none")).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
