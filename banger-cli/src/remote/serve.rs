//! The remote end: what `banger remote-proxy` does with its standard streams.
//!
//! It is the caller of the service, as its user. It ends with its channel, and so does its connection to the bus, with
//! everything that the service deletes when a caller is gone.

use std::{
    env,
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    process, thread,
    time::Duration,
};

use banger_proto::bus::names::SERVICE;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    net::sockopt::socket_type,
};
use zbus::{
    Address, Connection, DBusError, Signature, Structure,
    address::transport::{Transport, UnixSocket},
    fdo,
    wire::{
        Endian,
        serialized::{Context, Data},
    },
};

use super::{
    client::NO_BUS,
    wire::{self, Call, GREETING, Greeting, MAX_FILES, PROTOCOL, Passed, Reply, Request, Values},
};
use crate::{
    command::temporary,
    error::{Error, Result},
};

/// How long the local end may be silent. It calls the bus more often than that, so its network is dead, or it is stopped.
/// Long enough for a laptop that sleeps for a while.
pub const SILENCE: Duration = Duration::from_secs(1800);
/// Limit on a file that is kept in memory.
const MAX_MEMORY: u64 = 1 << 20;

/// Serves one channel on the standard streams.
pub async fn run() -> Result<u8> {
    let failed = |source| Error::io("serve a remote host", source);
    let (input, output) = streams().map_err(failed)?;
    end_with(output.try_clone().map_err(failed)?);
    let served = serve(input, output).await;
    // The other end sees it by itself.
    served.map(|()| 0).map_err(failed)
}

fn streams() -> io::Result<(File, File)> {
    let input = rustix::stdio::stdin().try_clone_to_owned()?;
    let output = rustix::stdio::stdout().try_clone_to_owned()?;
    Ok((input.into(), output.into()))
}

/// Ends this process once the reader of its output is gone, even while it has nothing to write.
fn end_with(output: File) {
    thread::spawn(move || {
        loop {
            let mut gone = [PollFd::new(&output, PollFlags::empty())];
            match poll(&mut gone, None) {
                Ok(_) if gone[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) => process::exit(0),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                // A file, for example, has no reader that could go away.
                Err(_) => return,
            }
        }
    });
}

async fn serve(mut input: File, mut output: File) -> io::Result<()> {
    let greeting = Greeting {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uid: rustix::process::geteuid().as_raw(),
        architecture: Some(env::consts::ARCH.to_owned()),
    };
    wire::write_line(&mut output, GREETING, &greeting)?;
    match wire::read_json(&mut input)? {
        Request::Bus => match connect() {
            Ok(bus) => {
                wire::write_line(&mut output, "", &Reply::Bus)?;
                relay(bus.into(), Heard { input, silence: SILENCE }, &mut output)
            }
            Err(error) => refuse(&mut output, NO_BUS, error.to_string()),
        },
        Request::Call(call) => answer(call, input, output).await,
    }
}

fn refuse(output: &mut File, name: &str, message: String) -> io::Result<()> {
    wire::write_line(output, "", &Reply::Refused { name: name.to_owned(), message })
}

/// Connects to the system bus, without a word.
fn connect() -> io::Result<UnixStream> {
    let address = Address::system().map_err(io::Error::other)?;
    let other = || io::Error::other("its address is not that of a unix socket");
    match address.transport() {
        Transport::Unix(unix) => match unix.path() {
            UnixSocket::File(path) => UnixStream::connect(path),
            UnixSocket::Abstract(name) => {
                UnixStream::connect_addr(&SocketAddr::from_abstract_name(name.as_encoded_bytes())?)
            }
            _ => Err(other()),
        },
        _ => Err(other()),
    }
}

/// Makes a call, and passes on what it opens or fills.
async fn answer(call: Call, mut input: File, mut output: File) -> io::Result<()> {
    let arguments = wire::read_values(&mut input, &call.arguments)?;
    let files = match receive(&call.files, &mut input) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(error),
        Err(error) => {
            const FAILED: &str = "org.freedesktop.DBus.Error.IOError";
            return refuse(&mut output, FAILED, format!("cannot keep a file: {error}"));
        }
    };
    let filled = match call.files.as_slice() {
        [Passed::Filled] => Some(files[0].try_clone()?),
        _ => None,
    };
    let called = match Connection::system().await {
        Ok(bus) => make(&bus, &call, arguments, files).await,
        Err(error) => return refuse(&mut output, NO_BUS, error.to_string()),
    };
    let message = match called {
        Ok(message) => message,
        Err(error) => {
            let (name, message) = parts(error);
            return refuse(&mut output, &name, message);
        }
    };
    let body = message.body();
    let data = body.data();
    let answer = Values {
        signature: body.signature().to_string(),
        little_endian: data.context().endian() == Endian::Little,
        length: u32::try_from(data.len()).map_err(io::Error::other)?,
    };
    wire::write_line(&mut output, "", &Reply::Answer(answer))?;
    output.write_all(data)?;
    if let Some(stream) = data.fds().first() {
        let stream = stream.as_fd().try_clone_to_owned()?;
        // The other copy would keep the stream open.
        drop((body, message));
        return relay(stream, input, &mut output);
    }
    if let Some(file) = filled {
        // The local end has waited for the service.
        io::copy(&mut input, &mut io::sink())?;
        wire::send_file(&file, &mut output)?;
    }
    Ok(())
}

async fn make(
    bus: &Connection,
    call: &Call,
    arguments: Vec<u8>,
    files: Vec<File>,
) -> zbus::Result<zbus::Message> {
    let signature = Signature::try_from(call.arguments.signature.as_str())?;
    let endian = if call.arguments.little_endian { Endian::Little } else { Endian::Big };
    let data = Data::new_fds(arguments, Context::new(endian, 0), files.into_iter().map(OwnedFd::from));
    let (body, _) = data.deserialize_for_dynamic_signature::<_, Structure<'_>>(signature)?;
    let (path, interface, member) = (call.path.as_str(), call.interface.as_str(), call.member.as_str());
    bus.call_method(Some(SERVICE), path, Some(interface), member, &body).await
}

/// Returns the name and the message of an error, as the service has sent it.
fn parts(error: zbus::Error) -> (String, String) {
    const FAILED: &str = "org.freedesktop.DBus.Error.Failed";
    match error {
        zbus::Error::MethodError(name, message, _) => (name.to_string(), message.unwrap_or_default()),
        zbus::Error::FDO(error) => match *error {
            fdo::Error::ZBus(error) => parts(error),
            error => (error.name().to_string(), error.description().unwrap_or_default().to_owned()),
        },
        error => (FAILED.to_owned(), error.to_string()),
    }
}

/// Makes the files of a call from what follows it.
fn receive(passed: &[Passed], input: &mut File) -> io::Result<Vec<File>> {
    if passed.len() > MAX_FILES {
        return Err(wire::invalid("there are too many files"));
    }
    let one = |passed: &Passed| match passed {
        Passed::Filled => temporary(),
        Passed::File => {
            let file = temporary()?;
            wire::receive_file(input, &file, u64::MAX)?;
            Ok(file)
        }
        Passed::Memory => {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create("remote", flags)?);
            wire::receive_file(input, &file, MAX_MEMORY)?;
            let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
            fcntl_add_seals(file.as_fd(), seals)?;
            Ok(file)
        }
    };
    passed.iter().map(one).collect()
}

/// Copies bytes both ways until the stream ends. An end of the input is passed on; it ends a stream that takes none.
fn relay(stream: OwnedFd, mut input: impl Read + Send + 'static, output: &mut File) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&stream, false)?;
    let inward = stream.try_clone()?;
    let is_socket = socket_type(&stream).is_ok();
    thread::spawn(move || {
        let inward = File::from(inward);
        // What cannot be written was refused. The other direction tells why.
        let _ = if is_socket { copy(&mut input, &mut &inward) } else { copy(&mut input, &mut io::sink()) };
        match is_socket {
            true => drop(UnixStream::from(OwnedFd::from(inward)).shutdown(Shutdown::Write)),
            false => process::exit(0),
        }
    });
    copy(&mut File::from(stream), output)
}

/// An input that ends when nothing comes for a while.
struct Heard {
    input: File,
    silence: Duration,
}

impl Read for Heard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let silence = Timespec::try_from(self.silence).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.input, PollFlags::IN)], Some(&silence))? {
            0 => Ok(0),
            _ => self.input.read(buffer),
        }
    }
}

/// Copies bytes as they come.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_silent_client_loses_its_connection_to_the_bus() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let (ours, mut bus) = UnixStream::pair().unwrap();
        // As the bus does, it closes a connection whose client has.
        let closed = thread::spawn(move || bus.read_to_end(&mut Vec::new()).map(|_| ()));
        let input = Heard { input: reader.into(), silence: Duration::from_millis(20) };
        relay(ours.into(), input, &mut tempfile::tempfile().unwrap()).unwrap();
        closed.join().unwrap().unwrap();
    }

    #[test]
    fn an_input_ends_after_silence() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut input = Heard { input: reader.into(), silence: Duration::from_millis(20) };
        let mut writer = File::from(writer);
        let mut buffer = [0; 10];
        writer.write_all(b"beat").unwrap();
        assert_eq!(input.read(&mut buffer).unwrap(), 4);
        // The other end is there, and says nothing.
        assert_eq!(input.read(&mut buffer).unwrap(), 0);
        drop(writer);
        let mut input = Heard { silence: SILENCE, ..input };
        assert_eq!(input.read(&mut buffer).unwrap(), 0);
    }
}
