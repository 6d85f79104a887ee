//! The local end: a connection to the bus of a remote host, and calls that pass descriptors.

use std::{
    fs::File,
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    time::Duration,
};

use banger_proto::bus::ErrorName;
use rustix::fs::{SealFlags, fcntl_get_seals};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Mutex,
    task::JoinHandle,
};
use zbus::{
    Connection, DynamicType, Signature,
    conn::{
        Builder,
        socket::{ReadHalf, Socket, Split, WriteHalf},
    },
    export::async_trait::async_trait,
    wire::{
        DynamicDeserialize, Endian, NATIVE_ENDIAN,
        serialized::{Context, Data},
        to_bytes_for_signature,
    },
};

use super::{
    error::{self, Error, Said},
    passing::Passing,
    server::Server,
    ssh::{Channel, Process, Questions, Ssh},
    wire::{self, Call, Greeting, Passed, Reply, Request, Values},
};
use crate::{
    client::object::Object,
    error::{Error as CallError, Result},
};

/// What the remote end calls a system bus that does not answer.
pub(super) const NO_BUS: &str = "dev.banger.Remote.NoBus";

/// The interval of the heartbeats. The remote end waits [`super::serve::SILENCE`] for one.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// A remote host.
#[derive(Debug)]
pub struct Remote {
    ssh: Ssh,
    /// The user there.
    uid: u32,
    /// The architecture of its processor, if the host tells.
    architecture: Option<String>,
    /// The channel of the bus.
    bus: Mutex<Channel>,
    /// The channel of the stream that was opened last.
    stream: Mutex<Option<Process>>,
    heartbeat: JoinHandle<()>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// Calls the bus at intervals, so that the remote end knows that there is a connection, until that fails.
async fn beat(mut call: impl AsyncFnMut() -> bool) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        if !call().await {
            return;
        }
    }
}

impl Remote {
    /// Connects to the bus of a host. May ask the user if there is a terminal.
    pub async fn connect(server: Server, has_terminal: bool) -> Result<(Connection, Self)> {
        let ssh = Ssh::to(server)?;
        ssh.log_in(if has_terminal { Questions::Ask } else { Questions::Never }).await?;
        Self::over(ssh).await
    }

    /// Connects for a moment over the connection that another command has left: logs in nowhere.
    pub async fn connect_briefly(server: Server) -> Result<(Connection, Self)> {
        let ssh = Ssh::to(server)?;
        match ssh.is_connected().await? {
            true => Self::over(ssh).await,
            false => {
                let said = Said::new(b"there is no connection yet");
                Err(Error::Unreachable { server: ssh.server().clone(), said }.into())
            }
        }
    }

    async fn over(ssh: Ssh) -> Result<(Connection, Self)> {
        let Opened { channel, greeting, reply, .. } = open(&ssh, Request::Bus, Vec::new()).await?;
        match reply {
            Reply::Bus => {}
            reply => return Err(refusal(ssh.server(), reply)),
        }
        let stream = channel.stream.try_clone().and_then(|stream| {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        });
        let stream = stream.map_err(|source| passing(ssh.server(), "messages", "to", source))?;
        // The remote end has opened the connection, so it is its user that the bus knows.
        let connection = Builder::socket(Stream(stream)).user_id(greeting.uid).build().await;
        let connection = connection
            .map_err(|error| Error::NoBus { server: ssh.server().clone(), message: error.to_string() })?;
        let Greeting { uid, architecture, .. } = greeting;
        let bus = connection.clone();
        let heartbeat = tokio::spawn(beat(async move || {
            let (path, peer) = ("/org/freedesktop/DBus", Some("org.freedesktop.DBus.Peer"));
            let answer = bus.call_method(Some("org.freedesktop.DBus"), path, peer, "Ping", &()).await;
            // A refusal has come over the connection, too.
            matches!(answer, Ok(_) | Err(zbus::Error::MethodError(..) | zbus::Error::FDO(_)))
        }));
        let (bus, stream) = (Mutex::new(channel), Mutex::default());
        let remote = Self { ssh, uid, architecture, bus, stream, heartbeat };
        Ok((connection, remote))
    }

    /// Returns the host.
    pub fn server(&self) -> &Server {
        self.ssh.server()
    }

    /// Returns the user there.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns the architecture of its processor.
    pub fn architecture(&self) -> Option<&str> {
        let is_plain = |text: &&str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        self.architecture.as_deref().filter(is_plain)
    }

    /// Checks that the stream that was opened last has ended, rather than its connection. Both look alike to who reads it.
    pub async fn check_stream(&self) -> Result<()> {
        let Some(mut process) = self.stream.lock().await.take() else { return Ok(()) };
        let lost = |said| Error::Lost { server: self.server().clone(), said };
        Ok(process.end_well().await.map_err(lost)?)
    }

    /// Returns whether the connection is lost. ssh may need a moment to notice.
    pub async fn has_ended(&self) -> bool {
        self.bus.lock().await.process.has_ended().await
    }

    /// Returns the error that the service there is too old or too new.
    pub fn has_other_version(&self, manager: &Object) -> CallError {
        Error::OtherService {
            server: self.server().clone(),
            version: crate::ui::sanitize::line(manager.text("Version")),
            level: manager.number("ApiLevel"),
        }
        .into()
    }

    /// Returns the error that an object there has a name, an id or a key that none can have.
    pub fn not_plain(&self) -> CallError {
        Error::NotPlain(self.server().clone()).into()
    }

    /// Replaces a hint that is about the local host.
    pub fn explain(&self, error: CallError) -> CallError {
        match error.name() {
            Some(ErrorName::AccessDenied | ErrorName::InteractiveAuthorizationRequired) => {
                let hint = error::access_hint(self.server());
                error.with_hint(hint)
            }
            _ => match error.hint() {
                Some(hint) => error.with_hint(error::hint_there(self.server(), &hint)),
                None => error,
            },
        }
    }

    /// Returns the error that the connection is lost.
    pub async fn lost(&self) -> CallError {
        let (_, said) = self.bus.lock().await.process.end().await;
        Error::Lost { server: self.server().clone(), said }.into()
    }

    /// Makes a call that passes descriptors. Returns the answer, and the file that the service fills, if there is one.
    pub async fn call<B, R>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        passing: Passing,
        body: &B,
    ) -> Result<(R, Option<Filled>)>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let signature = body.signature();
        let arguments = to_bytes_for_signature(Context::new(NATIVE_ENDIAN, 0), signature.clone(), body)?;
        let files = arguments.fds().iter().map(|fd| fd.as_fd().try_clone_to_owned().map(File::from));
        let files: Vec<File> = files
            .collect::<io::Result<_>>()
            .map_err(|source| self::passing(self.server(), "a file", "to", source))?;
        let request = Request::Call(Call {
            path: path.to_owned(),
            interface: interface.to_owned(),
            member: method.to_owned(),
            arguments: Values {
                signature: signature.to_string(),
                little_endian: NATIVE_ENDIAN == Endian::Little,
                length: u32::try_from(arguments.len()).unwrap_or(u32::MAX),
            },
            files: files.iter().map(|file| passed(file, passing)).collect(),
        });
        let sent = Sent { arguments: arguments.to_vec(), files };
        let Opened { channel, reply, values, .. } = open(&self.ssh, request, vec![sent]).await?;
        let Reply::Answer(answer) = reply else { return Err(refusal(self.server(), reply)) };
        let endian = if answer.little_endian { Endian::Little } else { Endian::Big };
        let context = Context::new(endian, 0);
        let (data, filled) = match passing {
            Passing::Answer => {
                *self.stream.lock().await = Some(channel.process);
                (Data::new_fds(values, context, [OwnedFd::from(channel.stream)]), None)
            }
            Passing::Read => (Data::new(values, context), None),
            Passing::Fill => {
                let filled = Filled { channel: channel.stream, server: self.server().clone() };
                (Data::new(values, context), Some(filled))
            }
        };
        let signature = Signature::try_from(answer.signature.as_str()).map_err(zbus::Error::from)?;
        let (answer, _) = data.deserialize_for_dynamic_signature::<_, R>(signature)?;
        Ok((answer, filled))
    }
}

/// A file that the service fills at the remote end.
#[derive(Debug)]
pub struct Filled {
    channel: StdStream,
    server: Server,
}

impl Filled {
    /// Copies the content into an empty local file, once the service has written it.
    pub async fn fetch(self, file: &File) -> Result<()> {
        let failed = |source| passing(&self.server, "a file", "from", source);
        let file = file.try_clone().map_err(failed)?;
        let stream = self.channel.try_clone().map_err(failed)?;
        let fetched = during(&self.channel, move || {
            // It waits for this.
            stream.shutdown(Shutdown::Write)?;
            wire::receive_file(&mut &stream, &file, u64::MAX)
        });
        fetched.await.map_err(failed)
    }
}

/// What follows a request.
struct Sent {
    arguments: Vec<u8>,
    files: Vec<File>,
}

/// A channel whose request was answered.
struct Opened {
    channel: Channel,
    greeting: Greeting,
    reply: Reply,
    values: Vec<u8>,
}

/// How far an exchange has come.
enum Exchanged {
    /// The remote end ended without a greeting.
    Silent,
    /// The line is not a greeting.
    Noise(String),
    Greeted(Greeting, io::Result<(Reply, Vec<u8>)>),
}

/// Opens a channel, and sends a request.
async fn open(ssh: &Ssh, request: Request, sent: Vec<Sent>) -> Result<Opened> {
    let server = ssh.server();
    let mut channel = ssh.open()?;
    let stream = channel.stream.try_clone().map_err(|source| passing(server, "a request", "to", source))?;
    let exchanged = during(&channel.stream, move || exchange(&stream, &request, &sent)).await;
    match exchanged.unwrap_or(Exchanged::Silent) {
        Exchanged::Greeted(greeting, replied) => {
            error::check_protocol(server, &greeting)?;
            match replied {
                Ok((reply, values)) => Ok(Opened { channel, greeting, reply, values }),
                Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                    Err(passing(server, "a call", "to", source))
                }
                Err(_) => {
                    let (_, said) = channel.process.end().await;
                    Err(Error::Lost { server: server.clone(), said }.into())
                }
            }
        }
        Exchanged::Noise(line) => {
            let line = crate::ui::sanitize::line(&line);
            Err(Error::Noise { server: server.clone(), line }.into())
        }
        Exchanged::Silent => {
            let (status, said) = channel.process.end().await;
            Err(Error::of_end(server, status, said).into())
        }
    }
}

/// Sends a request and what follows it, and reads the reply. Small things are sent before the other end has greeted, which
/// saves a round trip.
fn exchange(mut stream: &StdStream, request: &Request, sent: &[Sent]) -> io::Result<Exchanged> {
    let asked = wire::write_line(&mut stream, "", request)
        .and_then(|()| sent.iter().try_for_each(|sent| io::Write::write_all(&mut stream, &sent.arguments)));
    let Some(line) = wire::read_line(&mut stream)? else { return Ok(Exchanged::Silent) };
    let greeting: Option<Greeting> =
        line.strip_prefix(wire::GREETING).and_then(|json| serde_json::from_str(json).ok());
    let Some(greeting) = greeting else { return Ok(Exchanged::Noise(line)) };
    if greeting.protocol != wire::PROTOCOL {
        // What it says next may be anything.
        return Ok(Exchanged::Greeted(greeting, Err(io::ErrorKind::Unsupported.into())));
    }
    let replied = asked.and_then(|()| {
        let passed = match request {
            Request::Call(call) => call.files.as_slice(),
            Request::Bus => &[],
        };
        let files = sent.iter().flat_map(|sent| &sent.files);
        let mut contents = files.zip(passed).filter(|(_, passed)| **passed != Passed::Filled);
        let uploaded = contents.try_for_each(|(file, _)| wire::send_file(file, &mut stream));
        // One that takes no more says why.
        let reply: Reply = match (wire::read_json(&mut stream), uploaded) {
            (Err(_), Err(error)) => return Err(error),
            (reply, _) => reply?,
        };
        let values = match &reply {
            Reply::Answer(values) => wire::read_values(&mut stream, values)?,
            _ => Vec::new(),
        };
        Ok((reply, values))
    });
    Ok(Exchanged::Greeted(greeting, replied))
}

/// Runs work that blocks on a channel, in a thread. If this is dropped, the channel is broken off, and with it the thread.
async fn during<T: Send + 'static>(
    channel: &StdStream,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    struct Breaker(Option<StdStream>);
    impl Drop for Breaker {
        fn drop(&mut self) {
            if let Some(stream) = &self.0 {
                // A broken channel needs no shutdown.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
    let mut breaker = Breaker(Some(channel.try_clone()?));
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    breaker.0 = None;
    done
}

/// Returns whether arguments refer to files.
pub fn has_files<B: Serialize + DynamicType>(body: &B) -> Result<bool> {
    let arguments = to_bytes_for_signature(Context::new(NATIVE_ENDIAN, 0), body.signature(), body)?;
    Ok(!arguments.fds().is_empty())
}

/// Returns how a file is passed. Memory that is sealed stays so.
fn passed(file: &File, passing: Passing) -> Passed {
    match passing {
        Passing::Fill => Passed::Filled,
        _ if fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) => Passed::Memory,
        _ => Passed::File,
    }
}

fn passing(server: &Server, what: &'static str, to_or_from: &'static str, source: io::Error) -> CallError {
    Error::Passing { what, to_or_from, server: server.clone(), source }.into()
}

/// Returns the error for a reply that does not fit the request.
fn refusal(server: &Server, reply: Reply) -> CallError {
    match reply {
        Reply::Refused { name, message } if name == NO_BUS => {
            Error::NoBus { server: server.clone(), message }.into()
        }
        Reply::Refused { name, message } => CallError::named(&name, message),
        Reply::Bus | Reply::Answer(_) => {
            passing(server, "a call", "to", wire::invalid("the reply is not what was expected"))
        }
    }
}

/// The channel of the bus. Descriptors do not pass it, and zbus refuses to send any.
struct Stream(UnixStream);

#[derive(Debug)]
struct Reader(OwnedReadHalf);

#[derive(Debug)]
struct Writer(OwnedWriteHalf);

impl Socket for Stream {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = self.0.into_split();
        Split::new(Reader(read), Writer(write))
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        Ok((self.0.read(buffer).await?, Vec::new()))
    }
}

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use zbus::Variant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_remote_end_hears_of_this_one_until_the_connection_is_lost() {
        let begin = tokio::time::Instant::now();
        let mut times = Vec::new();
        beat(async || {
            times.push(begin.elapsed());
            times.len() < 3
        })
        .await;
        assert_eq!(times, [HEARTBEAT, 2 * HEARTBEAT, 3 * HEARTBEAT]);
        // Several may be late before the other end gives up.
        assert!(crate::remote::serve::SILENCE > 5 * HEARTBEAT);
    }

    #[test]
    fn only_arguments_with_files_need_a_channel() {
        let mut options = HashMap::from([("shared", Variant::from(true))]);
        assert!(!has_files(&("debian:12", &options)).unwrap());
        let file = tempfile::tempfile().unwrap();
        options.insert("credentials", Variant::from(zbus::Fd::from(file.as_fd())));
        assert!(has_files(&("debian:12", &options)).unwrap());
    }
}
