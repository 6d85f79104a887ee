//! Shared by both supervisors: what the shim may see, and how it gets its order.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use banger_domain::resource::Paths;
use banger_jail::{
    jail::Jail,
    message::{self, Answer, Order, Received},
};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, socketpair,
    sockopt::{Timeout, set_socket_passcred, set_socket_timeout},
};

use crate::ports::{
    FromHost as _, HostError, host_error,
    supervisor::{Error, Result},
    vmm::VmmCommand,
};

/// How long the shim may take until the VMM runs; with systemd, that includes starting the unit.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The shim's reply to its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The VMM runs.
    Started {
        /// The process id of the shim.
        pid: u32,
        /// The user of the shim.
        user: u32,
    },
    /// It ended without a reply.
    Ended,
}

/// Returns the files of the host that a VMM may see: programs, libraries, and what finds them.
pub fn visible(paths: &Paths) -> Vec<PathBuf> {
    let mut visible: Vec<PathBuf> =
        ["/usr", "/lib", "/lib64", "/etc/alternatives", "/etc/ld.so.cache"].map(PathBuf::from).into();
    if !paths.libexec.starts_with("/usr") {
        visible.push(paths.libexec.clone());
    }
    visible
}

/// Returns the service's end and the shim's end of a socket pair.
pub fn socket_pair() -> host_error::Result<(OwnedFd, OwnedFd)> {
    let os = |error| HostError::os("create a socket for the shim", error);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(os)?;
    set_socket_timeout(&ours, Timeout::Recv, Some(START_TIMEOUT)).map_err(os)?;
    // The kernel attests who the shim is, sooner than the supervisor knows.
    set_socket_passcred(&ours, true).map_err(os)?;
    Ok((ours, theirs))
}

/// Gives the shim its order, and waits for the reply. A shim that builds the jail itself also gets the file for the
/// VMM's exit status.
pub fn order(socket: &OwnedFd, launch: VmmCommand, jail: Option<(Jail, OwnedFd)>) -> Result<Reply> {
    let os = |error: io::Error| Error::os("talk to the shim", error);
    let (names, mut files): (Vec<String>, Vec<OwnedFd>) = launch.files.into_iter().unzip();
    files.extend([launch.console, launch.log]);
    let (jail, end) = jail.unzip();
    files.extend(end);
    let order = Order { argv: launch.argv, files: names, jail };
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let answer = message::send(socket, &order, &borrowed).and_then(|()| message::receive_with_sender(socket));
    match answer {
        Ok(Some(Received { message: Answer::Started { .. }, sender, .. })) => {
            let sender = sender.ok_or_else(|| os(io::ErrorKind::InvalidData.into()))?;
            Ok(Reply::Started {
                pid: sender.pid.as_raw_nonzero().get().unsigned_abs(),
                user: sender.uid.as_raw(),
            })
        }
        Ok(Some(Received { message: Answer::Failed { message }, .. })) => Err(Error::Exited { message }),
        Ok(None) => Ok(Reply::Ended),
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Ok(Reply::Ended)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::timeout("starting the VMM", START_TIMEOUT))
        }
        Err(error) => Err(os(error)),
    }
}
