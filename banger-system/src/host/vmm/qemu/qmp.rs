//! The control protocol of QEMU: JSON lines over a socket (docs/interop/qmp-spec.rst). The guest may have taken over
//! the other side, so everything it sends is bounded in length and time.

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
/// How many events may come before an answer.
const MAX_EVENTS: usize = 1000;

pub struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
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
        let greeting = within(TIMEOUT, qmp.line()).await?;
        if greeting.greeting.is_none() {
            return Err(nonsense());
        }
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
            let request = format!("{}\n", json!({"execute": command, "arguments": arguments}));
            let sent = match file {
                Some(file) => self.send_with(request.as_bytes(), file).await,
                None => self.writer.write_all(request.as_bytes()).await,
            };
            sent.map_err(|error| gone(&error))?;
            for _ in 0..MAX_EVENTS {
                let line = self.line().await?;
                if let Some(Failure { desc }) = line.error {
                    let desc: String = desc.chars().take(200).filter(|c| !c.is_control()).collect();
                    return Err(Error::Failed { message: format!("QEMU refused {command}: {desc}") });
                }
                if let Some(value) = line.returned {
                    return Ok(value);
                }
            }
            Err(nonsense())
        })
        .await
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

    /// Connects to a fake VMM that sends these lines: one for the connection and one for each command.
    async fn against(lines: &'static [&'static str]) -> Result<HashSet<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let vmm = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let mut reader = BufReader::new(reader);
            for line in lines {
                if writer.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
                let _ = reader.read_line(&mut String::new()).await;
            }
        });
        let result = async { Qmp::connect(&path).await?.connected_chardevs().await }.await;
        vmm.abort();
        result
    }

    const HELLO: &str = "{\"QMP\":{\"version\":{}}}\n";
    const READY: &str = "{\"return\":{}}\n";

    #[tokio::test]
    async fn connected_devices_are_told_and_events_skipped() {
        let devices = "{\"event\":\"X\",\"data\":{}}\n{\"return\":[\
            {\"label\":\"agent0\",\"filename\":\"unix:/x,server=on\",\"frontend-open\":true},\
            {\"label\":\"agent1\",\"filename\":\"disconnected:unix:/y,server=on\",\"frontend-open\":true}]}\n";
        let connected = against(Box::leak(Box::new([HELLO, READY, devices]))).await.unwrap();
        assert_eq!(connected, HashSet::from(["agent0".to_owned()]));
    }

    #[tokio::test]
    async fn garbage_and_errors_are_errors() {
        for lines in [
            &["garbage\n"][..],
            &["{\"return\":{}}\n"],
            &[HELLO, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}\n"],
            &[HELLO, READY, "{\"return\":7}\n"],
        ] {
            assert!(matches!(against(lines).await, Err(Error::Failed { .. })), "{lines:?}");
        }
    }
}
