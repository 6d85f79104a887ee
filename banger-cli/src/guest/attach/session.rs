//! The client's side of a command: one request to the agent.

use std::{convert::Infallible, io, time::Duration};

use banger_proto::guest::{
    Decoder, Exec, Frame, Request, STDIN_WINDOW,
    frame::{self, MAX_DATA, MAX_MESSAGE},
    message::{Attach, Exit, WindowSize},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{answer_keys::AnswerKeys, detach_keys::DetachKeys};
use crate::{
    error::{self, Result},
    ui::signals::{Event, Listener, next_event},
};

/// Length of the queue of frames to send. The agent always reads, so they do not wait long.
const QUEUE: usize = 4;
/// How long a command may continue after the reader of its output has gone.
const PIPE_GRACE: Duration = Duration::from_secs(2);
/// How long the agent may be silent after the user has asked to end.
const END_TIMEOUT: Duration = Duration::from_secs(12);
const SIGHUP: u8 = 1;
const SIGINT: u8 = 2;
const SIGPIPE: u8 = 13;

/// Why a stream to the agent was lost.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent hung up before the command had ended.
    #[error("the sandbox has stopped, or its agent has closed the connection")]
    HungUp,
    /// The agent was silent for this many seconds, although it had promised heartbeats.
    #[error("the agent of the sandbox has said nothing for {0} seconds")]
    Silent(u64),
    /// The agent sent an invalid frame.
    #[error("the agent in the guest violates the protocol")]
    Frame(#[from] frame::Error),
    /// The agent sent a frame that has no meaning in this conversation.
    #[error("the agent in the guest sent an unexpected message")]
    Unexpected,
    /// The stream failed.
    #[error("the connection to the sandbox broke")]
    Stream(#[source] io::Error),
}

/// The caller's streams for a command.
#[derive(Debug)]
pub struct Streams<I, O, E> {
    /// Its standard input.
    pub input: I,
    /// Where its standard output goes.
    pub output: O,
    /// Where its standard error goes.
    pub errors: E,
}

/// A stream with a pending request.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    request: Vec<u8>,
    attachment: Attachment,
    lifetime: Lifetime,
    part: Part,
    end_of_input: EndOfInput,
    answers: Option<AnswerKeys>,
}

/// What a client does with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Passes on input and signals.
    Use,
    /// Only shows the output.
    Watch,
}

/// What happens at the end of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndOfInput {
    /// The input of the command ends, too.
    Passed,
    /// The same, if there was any input.
    PassedAfterInput,
    /// The input of the command stays open.
    Dropped,
}

/// How long a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    /// As long as its client, at most.
    Client,
    /// As long as it likes, in a session.
    Session,
}

/// How a client's part in a command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The command has ended with this status.
    Exit(u8),
    /// The user has left a session, which continues.
    Left,
}

impl Ended {
    /// Returns the exit status of the client.
    pub const fn status(self) -> u8 {
        match self {
            Self::Exit(status) => status,
            Self::Left => 0,
        }
    }
}

/// What a command is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attachment {
    /// A terminal that mirrors the caller's.
    Terminal,
    /// Behind pipes.
    Pipes,
}

impl Session {
    /// Creates a session for this command.
    pub fn new(stream: UnixStream, exec: &Exec) -> Result<Self> {
        let request = Frame::Request(Request::Exec(exec.clone())).encode();
        if request.len() > MAX_MESSAGE {
            // Not an invalid command line: the sandbox may have been made for it.
            return Err(error::Error::Refused(format!(
                "the command line and its environment are longer than {} KiB",
                MAX_MESSAGE >> 10
            )));
        }
        let attachment = if exec.terminal.is_some() { Attachment::Terminal } else { Attachment::Pipes };
        let lifetime = if exec.session.is_some() { Lifetime::Session } else { Lifetime::Client };
        let end_of_input = EndOfInput::Passed;
        Ok(Self { stream, request, attachment, lifetime, part: Part::Use, end_of_input, answers: None })
    }

    /// Attaches to a session that has started. A client without input does not end the input of the session.
    pub fn resume(stream: UnixStream, wanted: Attach, has_terminal: bool, part: Part) -> Self {
        let request = Frame::Request(Request::Attach(wanted)).encode();
        let attachment = if has_terminal { Attachment::Terminal } else { Attachment::Pipes };
        let end_of_input = match part {
            Part::Use => EndOfInput::PassedAfterInput,
            Part::Watch => EndOfInput::Dropped,
        };
        let lifetime = Lifetime::Session;
        Self { stream, request, attachment, lifetime, part, end_of_input, answers: None }
    }

    /// Takes the input from a terminal in raw mode. It ends only when the terminal is gone, and a session outlives that.
    pub fn with_raw_input(self) -> Self {
        match self.lifetime {
            Lifetime::Session => Self { end_of_input: EndOfInput::Dropped, ..self },
            Lifetime::Client => self,
        }
    }

    /// Looks for answers in what the user types.
    pub fn with_answers(self, keys: AnswerKeys) -> Self {
        Self { answers: Some(keys), ..self }
    }

    /// Returns whether the command continues without its client.
    pub fn is_kept(&self) -> bool {
        self.lifetime == Lifetime::Session
    }

    /// Starts a detached command. Returns its number, or `None` if the agent is older than that.
    pub async fn detached(self) -> Result<Option<u64>> {
        let (reader, mut writer) = self.stream.into_split();
        // If it cannot be written, the reason or the end can be read.
        let _ = writer.write_all(&self.request).await;
        let (mut frames, mut id) = (Frames::new(reader), None);
        loop {
            match frames.next().await? {
                Frame::Output(text) => {
                    id = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok())
                }
                Frame::Done => return Ok(id),
                Frame::Failed(failure) => return Err(error::Error::Guest(failure)),
                _ => return Err(lost(Error::Unexpected)),
            }
        }
    }

    /// Runs a command to its end, or until the user leaves its session.
    pub async fn run<I, O, E>(
        self,
        ends: Streams<I, O, E>,
        listener: &mut Listener,
        window_size: impl Fn() -> WindowSize,
    ) -> Result<Ended>
    where
        I: AsyncRead + Unpin,
        O: AsyncWrite + Unpin,
        E: AsyncWrite + Unpin,
    {
        let is_session = self.is_kept();
        let (reader, writer) = self.stream.into_split();
        let (outbox, queue) = mpsc::channel(QUEUE);
        let credit = Semaphore::new(STDIN_WINDOW as usize);
        let signals = (!is_session).then(|| outbox.clone());
        let output = Output { output: ends.output, errors: ends.errors, signals };
        let heard = watch::Sender::new(Liveness::Nothing);
        let detach = (is_session && self.attachment == Attachment::Terminal).then(DetachKeys::default);
        let keys = Keys { detach, answers: self.answers };
        let passed_on = async {
            match self.part {
                Part::Use => forward(self.attachment, listener, &outbox, &heard, window_size).await,
                Part::Watch => next_end(listener).await,
            }
        };
        let ended = tokio::select! {
            // Received output comes before signals that arrived meanwhile.
            biased;
            ended = receive(Frames::new(reader), output, &credit, &heard) => {
                ended.map(|exit| Ended::Exit(exit.status()))
            }
            signal = passed_on => match (self.part, signal) {
                (Part::Watch, SIGINT) => Ok(Ended::Left),
                _ => Err(left_error(self.attachment, self.lifetime, signal)),
            },
            () = feed(ends.input, &outbox, &credit, keys, self.end_of_input) => Ok(Ended::Left),
            never = send(writer, self.request, queue) => match never {},
        };
        match ended {
            Err(error::Error::Attach(Error::HungUp))
                if is_session && *heard.borrow() == Liveness::Nothing =>
            {
                Err(too_old())
            }
            ended => ended,
        }
    }
}

/// What the user types for this client, and not for the command.
struct Keys {
    detach: Option<DetachKeys>,
    answers: Option<AnswerKeys>,
}

impl Keys {
    /// Returns what the command gets of the typed bytes, and whether the user wants to leave.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let (passed, leaves) = match &mut self.detach {
            Some(keys) => keys.take(typed),
            None => (typed.to_vec(), false),
        };
        let passed = match &mut self.answers {
            Some(keys) => keys.take(&passed),
            None => passed,
        };
        (passed, leaves)
    }
}

/// Frames of a stream.
struct Frames {
    reader: OwnedReadHalf,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Frames {
    fn new(reader: OwnedReadHalf) -> Self {
        Self { reader, decoder: Decoder::default(), buffer: vec![0; MAX_DATA] }
    }

    /// Returns the next frame. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|error| lost(error.into()))? {
                return Ok(frame);
            }
            match self.reader.read(&mut self.buffer).await {
                Ok(0) => return Err(lost(Error::HungUp)),
                Ok(count) => self.decoder.push(&self.buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(lost(Error::HungUp));
                }
                Err(error) => return Err(lost(Error::Stream(error))),
            }
        }
    }
}

/// When the agent was last heard from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Liveness {
    /// Nothing yet.
    Nothing,
    /// Some time ago. It may be silent as long as the command is.
    Something,
    /// At this time, and it has promised heartbeats.
    Promised(Instant),
}

impl Liveness {
    /// Returns whether an agent that is alive would have sent something since `then`.
    fn is_silent_since(self, then: Instant) -> bool {
        match self {
            Liveness::Nothing => true,
            Liveness::Something => false,
            Liveness::Promised(last) => last <= then,
        }
    }
}

/// Receives the output of the command until it has ended.
async fn receive<O, E>(
    mut frames: Frames,
    mut output: Output<O, E>,
    credit: &Semaphore,
    heard: &watch::Sender<Liveness>,
) -> Result<Exit>
where
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    // Set once the reader of the output has gone.
    let mut give_up = None;
    // Set once the agent has promised heartbeats.
    let mut silence_limit = None;
    loop {
        let silent = silence_limit.map(|silence_limit| Instant::now() + silence_limit);
        let frame = tokio::select! {
            // What has arrived while this process was stopped counts.
            biased;
            frame = frames.next() => frame?,
            () = until(give_up) => return Ok(Exit::Signal(SIGPIPE)),
            () = until(silent) => {
                return Err(lost(Error::Silent(silence_limit.unwrap_or_default().as_secs())));
            }
        };
        if let Frame::Started(started) = frame {
            silence_limit = started.silence_limit();
        }
        heard.send_replace(match silence_limit {
            Some(_) => Liveness::Promised(Instant::now()),
            None => Liveness::Something,
        });
        let written = match frame {
            Frame::Started(_) => Written::Taken,
            Frame::Output(bytes) => output.write_output(&bytes).await?,
            Frame::ErrorOutput(bytes) => output.write_errors(&bytes).await?,
            Frame::Window(count) => {
                // Never more than the window, whatever the agent says.
                let room = (STDIN_WINDOW as usize).saturating_sub(credit.available_permits());
                credit.add_permits(room.min(count as usize));
                Written::Taken
            }
            Frame::Exit(exit) => return Ok(exit),
            Frame::Failed(failure) => return Err(error::Error::Guest(failure)),
            _ => return Err(lost(Error::Unexpected)),
        };
        if written == Written::SessionIsLeft {
            return Ok(Exit::Signal(SIGPIPE));
        }
        if written == Written::NobodyReads && give_up.is_none() {
            give_up = Some(Instant::now() + PIPE_GRACE);
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Writes the output of a command.
struct Output<O, E> {
    output: O,
    errors: E,
    /// Where signals to the command go. A session gets none.
    signals: Option<mpsc::Sender<Frame>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Taken,
    /// The output has no reader, and the command got the signal for that.
    NobodyReads,
    /// The output of a session has no reader. The session continues.
    SessionIsLeft,
}

impl<O, E> Output<O, E>
where
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    async fn write_output(&mut self, bytes: &[u8]) -> Result<Written> {
        let written = write(&mut self.output, bytes).await;
        self.check_write(written, "output").await
    }

    async fn write_errors(&mut self, bytes: &[u8]) -> Result<Written> {
        let written = write(&mut self.errors, bytes).await;
        self.check_write(written, "error").await
    }

    /// Sends the command the signal that it would have got for writing there itself. A session continues.
    async fn check_write(&self, written: io::Result<()>, what: &str) -> Result<Written> {
        match written {
            Ok(()) => Ok(Written::Taken),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                let Some(signals) = &self.signals else { return Ok(Written::SessionIsLeft) };
                // If it cannot be sent, the stream is at its end, which `receive` notices.
                let _ = signals.send(Frame::Signal(SIGPIPE)).await;
                Ok(Written::NobodyReads)
            }
            Err(source) => Err(error::Error::io(format!("write to standard {what}"), source)),
        }
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Forwards the user's signals. Returns at the second signal to end, when the caller's terminal has gone and the
/// command's must go with it, or when the first signal to end gets no response from the agent.
async fn forward(
    attachment: Attachment,
    listener: &mut Listener,
    outbox: &mpsc::Sender<Frame>,
    heard: &watch::Sender<Liveness>,
    window_size: impl Fn() -> WindowSize,
) -> u8 {
    let mut end_request: Option<(u8, Instant)> = None;
    loop {
        let silent = end_request.filter(|(_, at)| heard.borrow().is_silent_since(*at));
        let event = tokio::select! {
            event = next_event(listener) => event,
            () = until(silent.map(|(_, at)| at + END_TIMEOUT)) => match end_request {
                Some((signal, at)) if heard.borrow().is_silent_since(at) => return signal,
                _ => continue,
            },
        };
        if let Some(signal) = event.ends() {
            // The agent hangs up the command's terminal when this process leaves.
            let gone = signal == SIGHUP && attachment == Attachment::Terminal;
            if gone || end_request.replace((signal, Instant::now())).is_some() {
                return signal;
            }
        }
        let frame = match event {
            Event::Signal(number) => Frame::Signal(number),
            Event::Resized => Frame::Resize(window_size()),
        };
        // If it cannot be sent, the stream is at its end, which `receive` notices.
        let _ = outbox.send(frame).await;
    }
}

/// Waits for a signal to end.
async fn next_end(listener: &mut Listener) -> u8 {
    loop {
        if let Some(signal) = next_event(listener).await.ends() {
            return signal;
        }
    }
}

/// Returns the error for leaving a command.
fn left_error(attachment: Attachment, lifetime: Lifetime, signal: u8) -> error::Error {
    let error = error::Error::Interrupted { signal };
    match (attachment, lifetime) {
        (Attachment::Terminal, _) | (_, Lifetime::Session) => error,
        (Attachment::Pipes, Lifetime::Client) => error.with_hint(
            "the command was ended, too; `banger vm exec --detach` runs one that continues without you.",
        ),
    }
}

/// Returns the error for an agent that closes the connection instead of serving a session.
fn too_old() -> error::Error {
    error::Error::Refused(
        "the guest was started by an earlier version of banger, which has no sessions".to_owned(),
    )
    .with_hint("`banger vm restart NAME` starts the agent of this version.")
}

/// Sends input, as much as the agent accepts. Returns once the user has typed the keys to leave.
async fn feed(
    mut input: impl AsyncRead + Unpin,
    outbox: &mpsc::Sender<Frame>,
    credit: &Semaphore,
    mut keys: Keys,
    end_of_input: EndOfInput,
) {
    let mut buffer = vec![0; MAX_DATA];
    let mut passes_end = end_of_input == EndOfInput::Passed;
    loop {
        let Ok(first) = credit.acquire().await else { break };
        first.forget();
        let more = credit.available_permits().min(buffer.len() - 1);
        let allowed = match credit.try_acquire_many(more as u32) {
            Ok(permits) => {
                permits.forget();
                1 + more
            }
            Err(_) => 1,
        };
        // An input that cannot be read has ended.
        let count = input.read(&mut buffer[..allowed]).await.unwrap_or_default();
        let (typed, leaves) = keys.take(&buffer[..count]);
        credit.add_permits(allowed.saturating_sub(typed.len()));
        passes_end |= count > 0 && end_of_input == EndOfInput::PassedAfterInput;
        let frame = match count {
            0 => passes_end.then_some(Frame::InputEnd),
            _ => (!typed.is_empty()).then_some(Frame::Input(typed)),
        };
        if let Some(frame) = frame
            && outbox.send(frame).await.is_err()
        {
            break;
        }
        if leaves {
            return;
        }
        if count == 0 {
            break;
        }
    }
    std::future::pending().await
}

/// Writes the request and then the queue. If the stream cannot be written, there is something to read: the agent's
/// last frames, or the end.
async fn send(mut writer: OwnedWriteHalf, request: Vec<u8>, mut queue: mpsc::Receiver<Frame>) -> Infallible {
    let mut writable = writer.write_all(&request).await.is_ok();
    while let Some(frame) = queue.recv().await {
        writable = writable && writer.write_all(&frame.encode()).await.is_ok();
    }
    std::future::pending().await
}

fn lost(error: Error) -> error::Error {
    error::Error::Attach(error)
}

#[cfg(test)]
mod tests;
