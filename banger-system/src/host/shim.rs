//! What both supervisors share about the shim: where it is, what it may see, and
//! how it is told what to start.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use banger_domain::resource::Places;
use banger_jail::{
    message::{self, Answer, Order, Signed},
    walls::Walls,
};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, socketpair,
    sockopt::{Timeout, set_socket_passcred, set_socket_timeout},
};

use crate::ports::{Error, Result, VmmCommand};

/// How long the shim may take until the monitor runs; with systemd, that has to start the unit first.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What a shim says to its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The monitor runs.
    Runs {
        /// The process id of the shim.
        pid: u32,
        /// The shim's user.
        user: u32,
    },
    /// It ended without a word.
    Ended,
}

/// Where the shim is.
pub fn program(places: &Places) -> PathBuf {
    places.program("banger-shim")
}

/// What of the host's files a monitor may see: programs and libraries, and how they are found.
pub fn visible(places: &Places) -> Vec<PathBuf> {
    let mut visible: Vec<PathBuf> =
        ["/usr", "/lib", "/lib64", "/etc/alternatives", "/etc/ld.so.cache"].map(PathBuf::from).into();
    if !places.libexec.starts_with("/usr") {
        visible.push(places.libexec.clone());
    }
    visible
}

/// The service's end and the shim's end of the socket between them.
pub fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    let os = |error| Error::os("create a socket for the shim", error);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(os)?;
    set_socket_timeout(&ours, Timeout::Recv, Some(START_TIMEOUT)).map_err(os)?;
    // The kernel says who the shim is, sooner than the supervisor knows.
    set_socket_passcred(&ours, true).map_err(os)?;
    Ok((ours, theirs))
}

/// Gives the shim its order, and waits for the answer. A shim that builds the jail itself also gets the file
/// for how the monitor ended.
pub fn order(socket: &OwnedFd, launch: VmmCommand, walls: Option<(Walls, OwnedFd)>) -> Result<Told> {
    let os = |error: io::Error| Error::os("talk to the shim", error);
    let (names, mut files): (Vec<String>, Vec<OwnedFd>) = launch.files.into_iter().unzip();
    files.extend([launch.console, launch.log]);
    let (walls, end) = walls.unzip();
    files.extend(end);
    let order = Order { argv: launch.argv, files: names, walls };
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let answer = message::send(socket, &order, &borrowed).and_then(|()| message::receive_signed(socket));
    match answer {
        Ok(Some(Signed { message: Answer::Started { .. }, sender, .. })) => {
            let sender = sender.ok_or_else(|| os(io::ErrorKind::InvalidData.into()))?;
            Ok(Told::Runs {
                pid: sender.pid.as_raw_nonzero().get().unsigned_abs(),
                user: sender.uid.as_raw(),
            })
        }
        Ok(Some(Signed { message: Answer::Failed { message }, .. })) => Err(Error::Vmm { message }),
        Ok(None) => Ok(Told::Ended),
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Ok(Told::Ended)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::Timeout { what: "starting the VMM".to_owned(), after: START_TIMEOUT })
        }
        Err(error) => Err(os(error)),
    }
}
