//! What the service sends to the shim: one packet with the arguments, and the files beside it. The shim
//! answers with one packet.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, UCred, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::walls::Walls;

/// More than any monitor's arguments take.
const MAX_MESSAGE: usize = 64 << 10;
/// More files than any machine has (its sockets, disks, kernel, initramfs and logs) or any image (its layers).
const MAX_FILES: usize = 160;

/// The number that the first of the files has in the monitor; the others follow it in their order. Higher
/// than any number that the shim itself has come to when it gets them.
pub const FIRST_FILE: i32 = 256;

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The program and its arguments. `{fd:NAME}` becomes the number of the file NAME.
    pub argv: Vec<String>,
    /// The names of the files, in the order in which they are sent. More files without names follow: the
    /// logs of standard output and standard error and, where there are walls to build, the file that how
    /// the monitor ended is written to.
    pub files: Vec<String>,
    /// Set where no systemd has put walls around the shim and will tell how it ended.
    pub walls: Option<Walls>,
}

impl Order {
    /// How many files without names follow those that have one.
    pub fn unnamed(&self) -> usize {
        if self.walls.is_some() { 3 } else { 2 }
    }
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The monitor runs.
    Started {
        /// Its process id, as the shim sees it.
        pid: u32,
    },
    /// It does not.
    Failed {
        /// Why.
        message: String,
    },
}

/// Sends a message with files.
pub fn send(socket: &impl AsFd, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE || files.len() > MAX_FILES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too much for one message"));
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many files for one message"));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message with files, which are closed on exec. `None` when the other side has hung up.
pub fn receive<T: for<'de> Deserialize<'de>>(socket: &impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    Ok(receive_signed(socket)?.map(|Signed { message, files, .. }| (message, files)))
}

/// A message, and who sent it.
#[derive(Debug)]
pub struct Signed<T> {
    /// What was sent.
    pub message: T,
    /// The files beside it, which are closed on exec.
    pub files: Vec<OwnedFd>,
    /// The process and the user that sent it, as the kernel says. There only when the socket was told to ask
    /// for it (`SO_PASSCRED` of unix(7)).
    pub sender: Option<UCred>,
}

/// Receives a message with files, and with its sender. `None` when the other side has hung up.
pub fn receive_signed<T: for<'de> Deserialize<'de>>(socket: &impl AsFd) -> io::Result<Option<Signed<T>>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let (mut files, mut sender) = (Vec::new(), None);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(fds) => files.extend(fds),
            RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials),
            _ => {}
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message was cut off"));
    }
    Ok(Some(Signed { message: serde_json::from_slice(&bytes[..received.bytes])?, files, sender }))
}
