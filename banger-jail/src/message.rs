//! Messages between the service and the shim. The service sends one packet with the arguments and the files; the shim
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

use super::jail::Jail;

/// More than the arguments of any VMM.
const MAX_MESSAGE: usize = 64 << 10;
/// More files than any VMM needs (sockets, disks, kernel, initramfs and logs) or any image has (layers).
const MAX_FILES: usize = 160;

/// The number of the first file in the VMM; the others follow in order. The shim itself never has descriptors that
/// high.
pub const FIRST_FILE: i32 = 256;

/// The order to start a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The program and its arguments. `{fd:NAME}` becomes the number of the file NAME.
    pub argv: Vec<String>,
    /// The names of the files, in the order in which they are sent. Files without names follow: the logs of standard
    /// output and standard error and, if there is a jail to build, the file for the VMM's exit status.
    pub files: Vec<String>,
    /// The jail that the shim has to build, if there is no systemd.
    #[serde(rename = "walls")]
    pub jail: Option<Jail>,
}

impl Order {
    /// Returns how many files without names follow those with names.
    pub fn unnamed(&self) -> usize {
        if self.jail.is_some() { 3 } else { 2 }
    }
}

/// The shim's answer to an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The VMM runs.
    Started {
        /// Its process id, as the shim sees it.
        pid: u32,
    },
    /// It could not be started.
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

/// Receives a message with files, marked close-on-exec. `None` if the other side has hung up.
pub fn receive<T: for<'de> Deserialize<'de>>(socket: &impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    Ok(receive_with_sender(socket)?.map(|Received { message, files, .. }| (message, files)))
}

/// A received message and its sender.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// Its files, marked close-on-exec.
    pub files: Vec<OwnedFd>,
    /// The process and user that sent it, attested by the kernel. `None` unless the socket asks for it
    /// (`SO_PASSCRED` of unix(7)).
    pub sender: Option<UCred>,
}

/// Receives a message with files and its sender. `None` if the other side has hung up.
pub fn receive_with_sender<T: for<'de> Deserialize<'de>>(
    socket: &impl AsFd,
) -> io::Result<Option<Received<T>>> {
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
    Ok(Some(Received { message: serde_json::from_slice(&bytes[..received.bytes])?, files, sender }))
}
