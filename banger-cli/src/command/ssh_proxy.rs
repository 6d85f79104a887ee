//! `banger ssh-proxy` and `banger ssh-known-hosts`: programs that ssh runs for the host of a sandbox.

use std::{
    env,
    fs::{File, OpenOptions},
    io::{self, IoSlice, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
};

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use clap::Args;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt::socket_type};
use tokio::sync::oneshot;

use crate::{
    client::{bus::Bus, service::Kind},
    command::vm::numbers::port,
    error::{Error, Result},
    guest::terminfo,
    ssh::reference,
    ui::output,
};

/// The only supported port.
const SSH_PORT: u16 = 22;

/// Connect ssh to a sandbox, as its ProxyCommand
///
/// If standard output is a socket, as with ProxyUseFdpass, it gets the connection. Otherwise, bytes are copied.
#[derive(Debug, Args)]
pub struct SshProxy {
    /// NAME.vm or NAME.USER.vm
    #[arg(value_name = "HOST")]
    host: String,
    /// The port, which is 22
    #[arg(value_name = "PORT", value_parser = port)]
    port: u16,
}

impl SshProxy {
    pub async fn run(&self) -> Result<u8> {
        let reference = reference(&self.host)?;
        if self.port != SSH_PORT {
            let error = Error::Usage(format!("ssh reaches only port {SSH_PORT} of {}", self.host));
            return Err(
                error.with_hint(format!("`ssh -L {0}:localhost:{0} {1}` reaches it.", self.port, self.host))
            );
        }
        let stream = open(&reference).await.map_err(|error| add_hint(error).about(&reference))?;
        let output = rustix::stdio::stdout();
        if socket_type(output).is_ok() {
            pass(output, stream).map_err(|error| Error::io("hand the connection to ssh", error))?;
        } else {
            relay(stream).await.map_err(|error| Error::io("relay the connection of ssh", error))?;
        }
        Ok(0)
    }
}

async fn open(reference: &str) -> Result<OwnedFd> {
    let bus = Bus::connect().await?;
    let vm = bus.find(Kind::Vm, reference).await?;
    let stream = bus.open_ssh(&vm).await?;
    // ssh runs this in the environment of its user, and has the same terminal.
    if let Ok(term) = env::var("TERM") {
        terminfo::prepare(&bus, &vm, &term).await;
    }
    Ok(stream)
}

/// Copies bytes both ways between a connection and the standard streams, for clients that cannot receive a descriptor,
/// until both directions have ended. An end in one direction is passed on alone.
async fn relay(stream: OwnedFd) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&stream, false)?;
    let stream = Arc::new(UnixStream::from(stream));
    let (input, output) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let (mut input, mut output) =
        (File::from(input.try_clone_to_owned()?), File::from(output.try_clone_to_owned()?));
    let (inward, outward) = (Arc::clone(&stream), stream);
    // A thread of its own: when nobody reads the output any more, this process ends without waiting for input.
    let (done, sent) = oneshot::channel();
    thread::spawn(move || {
        // Input that cannot be read, or is refused, has ended. The other direction tells why.
        let _ = copy(&mut input, &mut &*inward);
        let _ = inward.shutdown(Shutdown::Write);
        let _ = done.send(());
    });
    let (failed, received) = oneshot::channel();
    thread::spawn(move || {
        let copied = copy(&mut &*outward, &mut output);
        drop(output);
        let _ = failed.send(copied);
    });
    received.await.map_err(io::Error::other)??;
    // The last copy of the output: the client learns that nothing follows.
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    sent.await.map_err(io::Error::other)
}

/// Copies bytes until the end, as they come. With [`io::copy`], which lets the kernel move them, nothing arrived from a
/// real guest.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            length => length?,
        };
        to.write_all(&buffer[..length])?;
    }
}

fn add_hint(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::InvalidState) => error.with_hint("`banger vm start NAME` boots it."),
        Some(ErrorName::NotReady) => error.with_hint(
            "the image may have no ssh server, or it has not started yet: `banger vm exec NAME` needs none, \
             and `banger vm logs NAME` shows the console.",
        ),
        _ => error,
    }
}

/// Sends a descriptor with one byte, as `mm_receive_fd` of OpenSSH expects.
fn pass(socket: BorrowedFd<'_>, stream: OwnedFd) -> io::Result<()> {
    let streams = [stream.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The buffer has room for one.
    ancillary.push(SendAncillaryMessage::ScmRights(&streams));
    sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Print the host key of a sandbox, as ssh's KnownHostsCommand
#[derive(Debug, Args)]
pub struct SshKnownHosts {
    /// NAME.vm or NAME.USER.vm
    #[arg(value_name = "HOST")]
    host: String,
}

impl SshKnownHosts {
    pub async fn run(&self) -> Result<u8> {
        let reference = reference(&self.host)?;
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &reference).await?;
        let sandbox = bus.properties(&vm, VM_INTERFACE).await?;
        output::text(&format!("{} {}\n", self.host, sandbox.text("SshHostKey")))?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_one_byte() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        pass(ours.as_fd(), far.into()).unwrap();

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0; 2];
        let mut buffers = [io::IoSliceMut::new(&mut byte)];
        let message = recvmsg(&theirs, &mut buffers, &mut ancillary, RecvFlags::empty()).unwrap();
        assert_eq!(message.bytes, 1);
        let Some(RecvAncillaryMessage::ScmRights(mut passed)) = ancillary.drain().next() else { panic!() };
        let mut far = UnixStream::from(passed.next().unwrap());
        near.write_all(b"hello").unwrap();
        drop(near);
        let mut heard = String::new();
        far.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
    }

    #[test]
    fn hints_of_ssh() {
        use crate::ui::wording::{check, of_service, shown};

        let by_name = [ErrorName::InvalidState, ErrorName::NotReady];
        check("hints_of_ssh", &shown(by_name.map(|name| (name, add_hint(of_service(name)).about("web")))));
    }
}
