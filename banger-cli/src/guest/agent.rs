//! Requests to the agent of a sandbox other than commands: file transfers and queries.
//!
//! A thread serves each request, because archives are read and written by blocking code. A signal breaks the request
//! off, and the thread then removes what is incomplete.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use banger_proto::{
    bus::option::agent,
    guest::{
        Decoder, Failure, FailureKind, Frame, GuestInfo, Request, STDIN_WINDOW,
        frame::{MAX_DATA, MAX_MESSAGE},
        listing::{Entry, Reader},
        message::{Algorithm, Exit},
    },
};
use serde::de::DeserializeOwned;
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, service::Kind},
    error::{Error, Result},
    guest::attach,
    ui::signals::{Listener, Signals, next_event, unless_ended},
    workspace::stop::Stop,
};

/// How long the thread may take to clean up after a signal.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit on a reply that is kept in memory.
const MAX_ANSWER: u64 = 64 << 20;
/// Limit on the notes of a copy, in bytes.
const MAX_NOTES: usize = 64 << 10;
/// Limit on the entries of a listing.
const MAX_ENTRIES: usize = 4_000_000;

/// The agent of a sandbox.
pub struct Guest {
    bus: Bus,
    vm: OwnedObjectPath,
    listener: Listener,
    /// What the user calls the sandbox, for hints.
    reference: Option<String>,
}

impl Guest {
    /// Connects to the agent of the sandbox with this reference. From now on, signals break requests off.
    pub async fn of(reference: &str) -> Result<Self> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, reference).await.map_err(|error| error.about(reference))?;
        Ok(Self { bus, vm, listener: Signals::catch()?.listen(), reference: Some(reference.to_owned()) })
    }

    /// Returns the agent of a known sandbox.
    pub fn new(bus: Bus, vm: OwnedObjectPath, listener: Listener) -> Self {
        Self { bus, vm, listener, reference: None }
    }

    /// Returns the connection to the service.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Returns the object of the sandbox.
    pub fn vm(&self) -> &OwnedObjectPath {
        &self.vm
    }

    /// Sends a request and serves it.
    pub async fn call<T: Send + 'static>(
        &mut self,
        request: Request,
        serve: impl FnOnce(&mut Call) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let purpose = if request.is_question() { agent::QUESTION } else { agent::COMMAND };
        self.call_for(purpose, request, serve).await
    }

    async fn call_for<T: Send + 'static>(
        &mut self,
        purpose: &'static str,
        request: Request,
        serve: impl FnOnce(&mut Call) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let stream = unless_ended(&mut self.listener, self.bus.open_agent(&self.vm, purpose, None)).await;
        let stream = stream.map_err(|error| self.about(error))?;
        let stream = UnixStream::from(stream);
        let breaker =
            stream.try_clone().map_err(|source| Error::io("use the connection to the sandbox", source))?;
        self.work(
            move || serve(&mut Call::begin(stream, &request)?),
            move || {
                // A broken stream needs no shutdown.
                let _ = breaker.shutdown(Shutdown::Both);
            },
        )
        .await
        .map_err(|error| self.about(error))
    }

    /// Puts the name of the sandbox into the hint of an error.
    fn about(&self, error: Error) -> Error {
        match &self.reference {
            Some(reference) => error.about(reference),
            None => error,
        }
    }

    /// Runs a future, and drops it at the first signal that asks the process to end.
    pub async fn unless_ended<T>(&mut self, act: impl Future<Output = Result<T>>) -> Result<T> {
        unless_ended(&mut self.listener, act).await
    }

    /// Runs blocking work, which `break_off` ends early.
    pub async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        break_off: impl FnOnce(),
    ) -> Result<T> {
        run_blocking(&mut self.listener, work, break_off).await
    }

    /// Lists everything below a directory.
    pub async fn list(&mut self, directory: &str) -> Result<Vec<Entry>> {
        let request = Request::List { directory: directory.to_owned() };
        self.call(request, |call| {
            let (mut reader, mut entries) = (Reader::default(), Vec::new());
            while let Some(bytes) = call.output()? {
                entries.extend(reader.push(&bytes).map_err(|_| protocol_error())?);
                if entries.len() > MAX_ENTRIES {
                    return Err(Error::Refused(format!(
                        "cannot list the files in the sandbox: there are more than {MAX_ENTRIES}"
                    )));
                }
            }
            reader.end().map_err(|_| protocol_error())?;
            Ok(entries)
        })
        .await
    }

    /// Returns git's object names of files; `None` for missing ones.
    pub async fn digests(
        &mut self,
        directory: &str,
        algorithm: Algorithm,
        names: Vec<Vec<u8>>,
    ) -> Result<Vec<Option<String>>> {
        let request = Request::Digest { directory: directory.to_owned(), algorithm };
        self.call(request, move |call| {
            call.send_names(&names)?;
            let text = String::from_utf8(call.answer()?).map_err(|_| protocol_error())?;
            let digests: Vec<_> = text.lines().map(|line| (line != "-").then(|| line.to_owned())).collect();
            if digests.len() == names.len() { Ok(digests) } else { Err(protocol_error()) }
        })
        .await
    }

    /// Sends a question with a JSON reply, as the first request of a use: it resumes a suspended sandbox.
    pub async fn query_to_use<T: DeserializeOwned + Send + 'static>(
        &mut self,
        request: Request,
    ) -> Result<T> {
        self.call_for(agent::COMMAND, request, json_answer).await
    }

    /// Sends a request with a JSON reply.
    pub async fn query<T: DeserializeOwned + Send + 'static>(&mut self, request: Request) -> Result<T> {
        self.call(request, json_answer).await
    }

    /// Returns facts about the guest.
    pub async fn info(&mut self) -> Result<GuestInfo> {
        self.call(Request::Info, |call| match call.frame()? {
            Frame::Info(info) => Ok(info),
            Frame::Failed(failure) => Err(Error::Guest(failure)),
            _ => Err(protocol_error()),
        })
        .await
    }
}

/// Runs blocking work. A signal ends it early, by `break_off` and by killing the processes that it waits for.
pub async fn run_blocking<T: Send + 'static>(
    listener: &mut Listener,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    break_off: impl FnOnce(),
) -> Result<T> {
    let stop = Stop::default();
    let theirs = stop.clone();
    let mut task = tokio::task::spawn_blocking(move || theirs.during(work));
    let broken = |error: tokio::task::JoinError| Error::io("run a thread", io::Error::other(error));
    loop {
        tokio::select! {
            biased;
            done = &mut task => return done.map_err(broken)?,
            event = next_event(listener) => if let Some(signal) = event.ends() {
                break_off();
                stop.stop();
                return Err(clear(listener, task, signal).await);
            },
        }
    }
}

/// Waits for a thread that is cleaning up, until a second signal.
async fn clear<T>(listener: &mut Listener, task: tokio::task::JoinHandle<T>, signal: u8) -> Error {
    let cleared = tokio::time::timeout(CLEANUP_TIMEOUT, task);
    match unless_ended(listener, async { Ok(cleared.await.is_ok()) }).await {
        Ok(true) => Error::Interrupted { signal },
        _ => Error::Interrupted { signal }.with_hint(
            "temporary files may be left next to the files that were being written; their names begin with \
             `.banger-`.",
        ),
    }
}

/// Reads a reply in JSON.
fn json_answer<T: DeserializeOwned>(call: &mut Call) -> Result<T> {
    serde_json::from_slice(&call.answer()?).map_err(|_| protocol_error())
}

/// Returns the error for an agent that violates the protocol.
pub fn protocol_error() -> Error {
    Error::Attach(attach::Error::Unexpected)
}

/// A request on its own stream.
pub struct Call {
    stream: UnixStream,
    decoder: Decoder,
    /// Bytes of input that may be sent before the agent reports progress.
    credit: usize,
    /// Output that arrived while something else was awaited.
    received: Vec<u8>,
    /// Notes of the agent, one per line.
    notes: Vec<u8>,
    /// How long the agent may be silent; `None` for no limit.
    silence_limit: Option<Duration>,
    /// How long it may send no output; `None` for no limit.
    idle_limit: Option<Duration>,
    state: State,
    /// How the command ended, if this is one.
    exit: Option<Exit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Done,
}

impl Call {
    /// Sends the request.
    pub fn begin(stream: impl Into<OwnedFd>, request: &Request) -> Result<Self> {
        let stream = UnixStream::from(stream.into());
        let mut call = Self {
            stream,
            decoder: Decoder::default(),
            credit: STDIN_WINDOW as usize,
            received: Vec::new(),
            notes: Vec::new(),
            silence_limit: None,
            idle_limit: None,
            state: State::Open,
            exit: None,
        };
        let bytes = Frame::Request(request.clone()).encode();
        if bytes.len() > MAX_MESSAGE {
            return Err(Error::Refused(format!("the request is longer than {} KiB", MAX_MESSAGE >> 10)));
        }
        call.stream.set_nonblocking(false).map_err(|source| lost(attach::Error::Stream(source)))?;
        call.write_frame(&bytes)?;
        Ok(call)
    }

    /// Receives the next frame.
    pub fn frame(&mut self) -> Result<Frame> {
        let mut bytes = [0; 16 << 10];
        let since = Instant::now();
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|error| lost(error.into()))? {
                if let Frame::Started(started) = &frame {
                    self.silence_limit = self.idle_limit.or(started.silence_limit());
                    let bounded = self.stream.set_read_timeout(self.silence_limit);
                    bounded.map_err(|source| lost(attach::Error::Stream(source)))?;
                }
                return Ok(frame);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(lost(attach::Error::HungUp)),
                Ok(count) => {
                    self.decoder.push(&bytes[..count]);
                    self.check_idle(since)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let seconds = self.silence_limit.unwrap_or_default().as_secs();
                    return Err(lost(attach::Error::Silent(seconds)));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(lost(attach::Error::HungUp));
                }
                Err(error) => return Err(lost(attach::Error::Stream(error))),
            }
        }
    }

    /// Returns the next bytes of output, or `None` at the end.
    pub fn output(&mut self) -> Result<Option<Vec<u8>>> {
        if !self.received.is_empty() {
            return Ok(Some(std::mem::take(&mut self.received)));
        }
        let since = Instant::now();
        while self.state == State::Open {
            match self.take()? {
                Some(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                _ => {}
            }
            self.check_idle(since)?;
        }
        Ok(None)
    }

    fn check_idle(&self, since: Instant) -> Result<()> {
        match self.idle_limit.filter(|limit| since.elapsed() >= *limit) {
            None => Ok(()),
            Some(limit) => {
                let seconds = limit.as_secs();
                Err(Error::Refused(format!("the sandbox has sent nothing for {seconds} seconds")))
            }
        }
    }

    /// Fails when there is no output for this long, whatever else the agent sends.
    pub fn limit_idle(&mut self, limit: Duration) -> Result<()> {
        self.idle_limit = Some(limit);
        self.silence_limit = Some(limit);
        self.stream.set_read_timeout(Some(limit)).map_err(|source| lost(attach::Error::Stream(source)))
    }

    /// Returns the whole output.
    pub fn answer(&mut self) -> Result<Vec<u8>> {
        let mut answer = Vec::new();
        while let Some(bytes) = self.output()? {
            answer.extend(bytes);
            if answer.len() as u64 > MAX_ANSWER {
                return Err(protocol_error());
            }
        }
        Ok(answer)
    }

    /// Returns how the command has ended.
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Returns the agent's notes on a copy.
    pub fn notes(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.notes).lines().map(str::to_owned).collect()
    }

    /// Handles one frame. Returns its bytes if it is output.
    fn take(&mut self) -> Result<Option<Vec<u8>>> {
        match self.frame()? {
            Frame::Output(bytes) => return Ok(Some(bytes)),
            // Never more than the window, whatever the agent says.
            Frame::Window(count) => {
                self.credit = (self.credit + count as usize).min(STDIN_WINDOW as usize);
            }
            Frame::ErrorOutput(bytes) => {
                let left = MAX_NOTES - self.notes.len();
                self.notes.extend_from_slice(&bytes[..bytes.len().min(left)]);
            }
            Frame::Started(_) => {}
            Frame::Done => self.state = State::Done,
            Frame::Exit(exit) => (self.state, self.exit) = (State::Done, Some(exit)),
            Frame::Failed(failure) => {
                self.state = State::Done;
                return Err(refusal(failure));
            }
            _ => return Err(protocol_error()),
        }
        Ok(None)
    }

    /// Sends input.
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            // After the end, no credit arrives. The writer of an archive also ends it when the request failed.
            if self.state == State::Done {
                return Err(protocol_error());
            }
            while self.credit == 0 {
                if let Some(received) = self.take()? {
                    self.received.extend(received);
                }
                if self.state == State::Done || self.received.len() as u64 > MAX_ANSWER {
                    return Err(protocol_error());
                }
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.credit).min(MAX_DATA));
            self.write_frame(&Frame::Input(now.to_vec()).encode())?;
            self.credit -= now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Sends the names of files, and the end of the input.
    pub fn send_names<N: AsRef<[u8]>>(&mut self, names: &[N]) -> Result<()> {
        let mut writer = io::BufWriter::with_capacity(MAX_DATA, &mut *self);
        for name in names {
            writer.write_all(name.as_ref()).and_then(|()| writer.write_all(&[0])).map_err(from_io)?;
        }
        writer.flush().map_err(from_io)?;
        drop(writer);
        self.end_input()
    }

    /// Sends the end of the input.
    pub fn end_input(&mut self) -> Result<()> {
        self.write_frame(&Frame::InputEnd.encode())
    }

    /// Waits until the request is served.
    pub fn finish(&mut self) -> Result<()> {
        while self.output()?.is_some() {}
        Ok(())
    }

    /// Writes a frame. If the stream cannot be written, there is something to read: the reason, or the end.
    fn write_frame(&mut self, bytes: &[u8]) -> Result<()> {
        if self.stream.write_all(bytes).is_ok() {
            return Ok(());
        }
        loop {
            match self.frame()? {
                Frame::Failed(failure) => {
                    self.state = State::Done;
                    return Err(refusal(failure));
                }
                Frame::Window(_) | Frame::Output(_) => {}
                _ => return Err(protocol_error()),
            }
        }
    }
}

/// Converts a refusal. An older agent hangs up on unknown requests, and refuses known ones with a message.
fn refusal(failure: Failure) -> Error {
    let is_full = failure.kind == FailureKind::NoSpace;
    let error = Error::Guest(failure);
    if is_full {
        return error.with_hint(
            "the disk of the sandbox is full: delete files in it, or enlarge its work disk with `banger vm \
             stop NAME && banger vm set --disk-size SIZE NAME`.",
        );
    }
    error
}

impl Write for Call {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Call {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let Some(mut bytes) = self.output().map_err(io::Error::other)? else { return Ok(0) };
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.received = bytes.split_off(count);
        Ok(count)
    }
}

/// Returns the error inside an error of reading or writing, or converts any other.
pub fn from_io(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io("copy files to or from the sandbox", error),
    }
}

/// Converts an error of a copy.
pub fn from_copy(error: banger_copy::Error) -> Error {
    use banger_copy::Error as Copy;
    match error {
        Copy::Stream(source) => from_io(source),
        Copy::Read { path, source } => Error::io(format!("read {}", path.display()), source),
        Copy::Write { path, source } => Error::io(format!("write {}", path.display()), source),
        error => Error::Refused(error.to_string()),
    }
}

fn lost(error: attach::Error) -> Error {
    Error::Attach(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::thread;

    use banger_proto::guest::message::Started;

    use super::*;

    /// Connects to an agent that runs `act` once it has received the request.
    fn agent(act: impl FnOnce(&mut Call) + Send + 'static) -> Call {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut end = Call {
                stream: theirs,
                decoder: Decoder::default(),
                credit: usize::MAX,
                received: Vec::new(),
                notes: Vec::new(),
                silence_limit: None,
                idle_limit: None,
                state: State::Open,
                exit: None,
            };
            assert!(matches!(end.frame(), Ok(Frame::Request(_))));
            act(&mut end);
        });
        Call::begin(ours, &Request::Info).unwrap()
    }

    #[test]
    fn large_input_waits_for_the_window() {
        let mut call = agent(|end| {
            let mut taken = 0;
            while let Frame::Input(bytes) = end.frame().unwrap() {
                taken += bytes.len();
                end.write_frame(&Frame::Window(bytes.len() as u32).encode()).unwrap();
            }
            end.write_frame(&Frame::Output(taken.to_string().into_bytes()).encode()).unwrap();
            end.write_frame(&Frame::Done.encode()).unwrap();
        });
        call.send(&vec![1; 3_000_000]).unwrap();
        call.end_input().unwrap();
        assert_eq!(call.answer().unwrap(), b"3000000");
    }

    #[test]
    fn a_refusal_during_input_is_reported() {
        let mut call = agent(|end| {
            assert!(matches!(end.frame(), Ok(Frame::Input(_))));
            let message = "cannot unpack into /x: No space left on device (os error 28)".to_owned();
            let failure = Failure { kind: FailureKind::NoSpace, message };
            end.write_frame(&Frame::Failed(failure).encode()).unwrap();
        });
        let error = call.send(&vec![1; 3_000_000]).unwrap_err();
        assert!(error.hint().unwrap().contains("--disk-size"), "{error}");
    }

    #[test]
    fn a_guest_that_is_gone_is_reported() {
        let mut call = agent(|_| {});
        let error = call.send(&vec![1; 3_000_000]).unwrap_err();
        assert!(
            matches!(error, Error::Attach(attach::Error::HungUp | attach::Error::Stream(_))),
            "{error:?}"
        );
    }

    #[test]
    fn excess_credit_does_not_exceed_the_window() {
        let mut call = agent(|end| {
            end.write_frame(&Frame::Window(u32::MAX).encode()).unwrap();
            end.write_frame(&Frame::Done.encode()).unwrap();
        });
        call.finish().unwrap();
        assert_eq!(call.credit, STDIN_WINDOW as usize);
    }

    #[test]
    fn a_command_whose_agent_is_gone_ends() {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let mut call = agent(move |end| {
            end.write_frame(&Frame::Started(Started { pid: 7, alive_sec: 5 }).encode()).unwrap();
            // Sends nothing more, and keeps the stream open.
            let _ = released.recv();
        });
        assert!(matches!(call.frame(), Ok(Frame::Started(_))));
        assert_eq!(call.stream.read_timeout().unwrap(), Some(Duration::from_secs(30)));
        call.stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        assert!(matches!(call.frame(), Err(Error::Attach(attach::Error::Silent(30)))));
        drop(release);
    }

    #[test]
    fn an_agent_that_never_ends_a_frame_is_idle() {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let mut call = agent(move |end| {
            let frame = Frame::Output(vec![0; MAX_DATA]).encode();
            for byte in frame {
                if released.recv_timeout(Duration::from_millis(5)).is_ok()
                    || end.stream.write_all(&[byte]).is_err()
                {
                    return;
                }
            }
        });
        call.limit_idle(Duration::from_millis(50)).unwrap();
        assert!(matches!(call.output(), Err(Error::Refused(text)) if text.contains("has sent nothing for")));
        drop((release, call));
    }

    #[test]
    fn an_agent_that_only_shows_that_it_is_alive_is_idle() {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let mut call = agent(move |end| {
            // No promise, and heartbeats until the host hangs up.
            end.write_frame(&Frame::Started(Started { pid: 7, alive_sec: 0 }).encode()).unwrap();
            while released.recv_timeout(Duration::from_millis(5)).is_err() {
                if end.stream.write_all(&Frame::Window(0).encode()).is_err() {
                    return;
                }
            }
        });
        call.limit_idle(Duration::from_millis(50)).unwrap();
        assert!(matches!(call.output(), Err(Error::Refused(text)) if text.contains("has sent nothing for")));
        // The kernel rounds it up.
        assert!(call.stream.read_timeout().unwrap().is_some_and(|limit| limit < Duration::from_secs(1)));
        drop((release, call));
    }

    #[test]
    fn an_abandoned_archive_ends_at_once() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let request = Request::PutTar {
            directory: "/".to_owned(),
            placement: banger_proto::guest::message::Placement::Merge,
        };
        let mut call = Call::begin(ours, &request).unwrap();
        let failure = Failure { kind: FailureKind::Other, message: "full".to_owned() };
        theirs.write_all(&Frame::Failed(failure).encode()).unwrap();
        // Reads the input, and sends nothing more.
        let sink = theirs.try_clone().unwrap();
        let taking = thread::spawn(move || io::copy(&mut &sink, &mut io::sink()));
        let more = vec![0; STDIN_WINDOW as usize + 1];
        assert!(matches!(call.send(&more), Err(Error::Guest(_))));
        // As an archive does when it is dropped.
        assert!(call.send(b"end").is_err());
        drop(call);
        taking.join().unwrap().unwrap();
    }
}
