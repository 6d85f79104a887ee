//! The control protocol of QEMU: JSON lines over a socket (docs/interop/qmp-spec.rst). The guest may have taken over
//! the other side, so everything it sends is bounded in length and time.
//!
//! QEMU has one queue of commands for all connections, one after the other. A command whose connection was closed before its
//! answer, because its job was cancelled or the service killed, may still run, and its answer goes to the *next*
//! connection. So every command has an id that no other has, and answers with another id are passed over.

use std::{
    collections::HashSet,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::BorrowedFd,
    path::Path,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::ports::{
    FromHost as _,
    vmm::{Error, Result},
};

/// How long an answer may take: the VMM answers from a loop that also serves the guest's devices.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest line: a list of all devices.
const MAX_LINE: u64 = 256 << 10;
/// How many other lines may come before an answer.
const MAX_SKIPPED: usize = 1000;

pub struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
    /// Of the command that this answers.
    id: Option<String>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    desc: String,
}

#[derive(Deserialize)]
struct Chardev {
    label: String,
    filename: String,
}

impl Qmp {
    /// Connects and enables commands.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| Error::Failed { message: format!("cannot reach QEMU: {error}") })?;
        let (reader, writer) = stream.into_split();
        let mut qmp = Self { reader: BufReader::new(reader), writer };
        within(TIMEOUT, qmp.skip_to(|line| line.greeting.is_some())).await?;
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Returns the names of the character devices with a connected client.
    pub async fn connected_chardevs(&mut self) -> Result<HashSet<String>> {
        let reply = self.run("query-chardev", json!({})).await?;
        let devices: Vec<Chardev> = serde_json::from_value(reply).map_err(|_| nonsense())?;
        let connected = devices.into_iter().filter(|device| !device.filename.starts_with("disconnected:"));
        Ok(connected.map(|device| device.label).collect())
    }

    /// Runs a command, and returns its answer.
    pub async fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.request(command, arguments, None, TIMEOUT).await
    }

    /// Runs a command that may take as long as this.
    pub async fn run_within(&mut self, timeout: Duration, command: &str, arguments: Value) -> Result<Value> {
        self.request(command, arguments, None, timeout).await
    }

    /// Gives QEMU a file, which later commands call `fd:NAME`.
    pub async fn pass_file(&mut self, name: &str, file: BorrowedFd<'_>) -> Result<()> {
        self.request("getfd", json!({"fdname": name}), Some(file), TIMEOUT).await?;
        Ok(())
    }

    /// Gives QEMU a file, and returns the number in `/dev/fdset` by which its drivers open it.
    pub async fn add_file(&mut self, file: BorrowedFd<'_>) -> Result<u64> {
        let added = self.request("add-fd", json!({}), Some(file), TIMEOUT).await?;
        added["fdset-id"].as_u64().ok_or_else(nonsense)
    }

    async fn request(
        &mut self,
        command: &str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<Value> {
        within(timeout, async {
            let id = uuid::Uuid::new_v4().simple().to_string();
            let request = format!("{}\n", json!({"execute": command, "arguments": arguments, "id": id}));
            let sent = match file {
                Some(file) => self.send_with(request.as_bytes(), file).await,
                None => self.writer.write_all(request.as_bytes()).await,
            };
            sent.map_err(|error| gone(&error))?;
            let answer = self.skip_to(|line| line.id.as_deref() == Some(&id)).await?;
            if let Some(Failure { desc }) = answer.error {
                let desc: String = desc.chars().take(200).filter(|c| !c.is_control()).collect();
                return Err(Error::Failed { message: format!("QEMU refused {command}: {desc}") });
            }
            answer.returned.ok_or_else(nonsense)
        })
        .await
    }

    /// Reads up to a line, past events and answers that are meant for others.
    async fn skip_to(&mut self, is_it: impl Fn(&Line) -> bool) -> Result<Line> {
        for _ in 0..MAX_SKIPPED {
            let line = self.line().await?;
            if is_it(&line) {
                return Ok(line);
            }
        }
        Err(nonsense())
    }

    async fn send_with(&self, request: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
        let stream: &UnixStream = self.writer.as_ref();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let files = [file];
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
            Ok(sendmsg(stream, &[IoSlice::new(request)], &mut ancillary, SendFlags::NOSIGNAL)?)
        };
        let sent = stream.async_io(Interest::WRITABLE, send).await?;
        if sent == request.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    async fn line(&mut self) -> Result<Line> {
        let mut line = Vec::new();
        let count = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line).await;
        match count {
            Err(error) => Err(gone(&error)),
            Ok(0) => Err(gone(&"it closed the connection")),
            Ok(_) => serde_json::from_slice(&line).map_err(|_| nonsense()),
        }
    }
}

async fn within<T>(timeout: Duration, doing: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::timeout("waiting for a reply from QEMU", timeout);
    tokio::time::timeout(timeout, doing).await.map_err(late)?
}

fn gone(why: &dyn std::fmt::Display) -> Error {
    Error::Failed { message: format!("lost the connection to QEMU: {why}") }
}

pub fn nonsense() -> Error {
    Error::Failed { message: "unexpected reply from QEMU".to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::net::UnixListener;

    use super::*;

    /// Connects to a fake VMM that sends these lines: one for the connection and one for each command, with the id of the
    /// command in the place of `ID`.
    async fn against(lines: &'static [&'static str]) -> Result<HashSet<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let vmm = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let mut reader = BufReader::new(reader);
            let mut id = String::new();
            for line in lines {
                if writer.write_all(line.replace("ID", &id).as_bytes()).await.is_err() {
                    return;
                }
                let mut command = String::new();
                if reader.read_line(&mut command).await.is_err() || command.is_empty() {
                    return;
                }
                let command: Value = serde_json::from_str(&command).unwrap();
                command["id"].as_str().unwrap().clone_into(&mut id);
            }
        });
        let result = async { Qmp::connect(&path).await?.connected_chardevs().await }.await;
        vmm.abort();
        result
    }

    const HELLO: &str = "{\"QMP\":{\"version\":{}}}\n";
    const READY: &str = "{\"return\":{},\"id\":\"ID\"}\n";
    const DEVICES: &str = "{\"return\":[\
        {\"label\":\"agent0\",\"filename\":\"unix:/x,server=on\",\"frontend-open\":true},\
        {\"label\":\"agent1\",\"filename\":\"disconnected:unix:/y,server=on\",\"frontend-open\":true}],\"id\":\"ID\"}\n";

    #[tokio::test]
    async fn connected_devices_are_told_and_events_skipped() {
        let devices = format!("{{\"event\":\"X\",\"data\":{{}}}}\n{DEVICES}").leak();
        let connected = against(Box::leak(Box::new([HELLO, READY, devices]))).await.unwrap();
        assert_eq!(connected, HashSet::from(["agent0".to_owned()]));
    }

    #[tokio::test]
    async fn answers_to_commands_of_an_earlier_connection_are_passed_over() {
        for late in [
            "{\"return\":{},\"id\":\"another\"}\n",
            "{\"return\":{}}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":\"another\"}\n",
        ] {
            for place in 0..3 {
                let mut lines = [HELLO, READY, DEVICES];
                lines[place] = format!("{late}{}", lines[place]).leak();
                let connected = against(Box::leak(Box::new(lines))).await.unwrap();
                assert_eq!(connected, HashSet::from(["agent0".to_owned()]), "{late} at {place}");
            }
        }
    }

    #[tokio::test]
    async fn garbage_and_errors_are_errors() {
        for lines in [
            &["garbage\n"][..],
            &[HELLO, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":\"ID\"}\n"],
            &[HELLO, READY, "{\"return\":7,\"id\":\"ID\"}\n"],
        ] {
            assert!(matches!(against(lines).await, Err(Error::Failed { .. })), "{lines:?}");
        }
    }
}
