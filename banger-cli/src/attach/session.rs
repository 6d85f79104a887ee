//! The client's side of one request to the agent: a command.

use std::{convert::Infallible, io, time::Duration};

use banger_proto::guest::{
    Decoder, Exec, Frame, Request, STDIN_WINDOW,
    frame::{self, MAX_DATA, MAX_MESSAGE},
    message::{Exit, WindowSize},
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

use crate::{
    error::{self, Result},
    signals::{Event, Listener, next_event},
};

/// Frames that wait to be sent. The agent always reads, so that they do not wait long.
const QUEUE: usize = 4;
/// How long a command may go on whose output nobody reads.
const PIPE_GRACE: Duration = Duration::from_secs(2);
/// How long an agent may take to say anything after we were asked to end.
const LAST_WORD: Duration = Duration::from_secs(12);
const SIGHUP: u8 = 1;
const SIGPIPE: u8 = 13;

/// Why a stream was lost.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side hung up before the command had ended.
    #[error("the sandbox has stopped, or its agent has closed the connection")]
    HungUp,
    /// Nothing came for so many seconds, although more was promised.
    #[error("the agent of the sandbox has said nothing for {0} seconds")]
    Silent(u64),
    /// It sends what is no frame.
    #[error("the agent in the guest violates the protocol")]
    Frame(#[from] frame::Error),
    /// It sends a frame that has no meaning here.
    #[error("the agent in the guest sent an unexpected message")]
    Unexpected,
    /// The stream is broken.
    #[error("the connection to the sandbox broke")]
    Stream(#[source] io::Error),
}

/// What a command is connected to on our side.
#[derive(Debug)]
pub struct Ends<I, O, E> {
    /// Its standard input.
    pub input: I,
    /// Where its standard output goes.
    pub output: O,
    /// Where its standard error goes.
    pub errors: E,
}

/// A stream on which a request was put.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    request: Vec<u8>,
    place: Place,
}

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a terminal that shows what ours does.
    Terminal,
    /// Behind pipes.
    Pipes,
}

impl Session {
    /// A session for this command.
    pub fn new(stream: UnixStream, exec: &Exec) -> Result<Self> {
        let request = Frame::Request(Request::Exec(exec.clone())).encode();
        if request.len() > MAX_MESSAGE {
            return Err(error::Error::Usage(format!(
                "the command line and its environment are longer than {} KiB",
                MAX_MESSAGE >> 10
            )));
        }
        let place = if exec.terminal.is_some() { Place::Terminal } else { Place::Pipes };
        Ok(Self { stream, request, place })
    }

    /// Starts a command that goes on without us, and returns its number. An agent of an earlier version gives none.
    pub async fn detached(self) -> Result<Option<u64>> {
        let (reader, mut writer) = self.stream.into_split();
        // When it cannot be written, there is an answer that tells why, or the end.
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

    /// Runs a command to its end, and returns its status.
    pub async fn run<I, O, E>(
        self,
        ends: Ends<I, O, E>,
        listener: &mut Listener,
        window_size: impl Fn() -> WindowSize,
    ) -> Result<u8>
    where
        I: AsyncRead + Unpin,
        O: AsyncWrite + Unpin,
        E: AsyncWrite + Unpin,
    {
        let (reader, writer) = self.stream.into_split();
        let (outbox, queue) = mpsc::channel(QUEUE);
        let credit = Semaphore::new(STDIN_WINDOW as usize);
        let output = Output { output: ends.output, errors: ends.errors, outbox: outbox.clone() };
        let heard = watch::Sender::new(Heard::Nothing);
        tokio::select! {
            // What has come is told before what we are told meanwhile.
            biased;
            ended = receive(Frames::new(reader), output, &credit, &heard) => ended.map(Exit::status),
            signal = forward(self.place, listener, &outbox, &heard, window_size) => Err(left(self.place, signal)),
            never = feed(ends.input, &outbox, &credit) => match never {},
            never = send(writer, self.request, queue) => match never {},
        }
    }
}

/// Frames as they come.
struct Frames {
    reader: OwnedReadHalf,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Frames {
    fn new(reader: OwnedReadHalf) -> Self {
        Self { reader, decoder: Decoder::default(), buffer: vec![0; MAX_DATA] }
    }

    /// The next frame. Nothing is lost when this is dropped.
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

/// What was heard of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Nothing yet.
    Nothing,
    /// Something. It may say nothing for as long as the command does.
    Something,
    /// Something at this time, and it said that it would say more.
    Promised(Instant),
}

impl Heard {
    /// Whether an agent that is there would have been heard of since.
    fn is_silent_since(self, then: Instant) -> bool {
        match self {
            Heard::Nothing => true,
            Heard::Something => false,
            Heard::Promised(last) => last <= then,
        }
    }
}

/// Takes what the command writes, until it has ended.
async fn receive<O, E>(
    mut frames: Frames,
    mut output: Output<O, E>,
    credit: &Semaphore,
    heard: &watch::Sender<Heard>,
) -> Result<Exit>
where
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    // Set once nobody reads the output any more.
    let mut give_up = None;
    // Set once the agent has said how often it is heard of.
    let mut silence_limit = None;
    loop {
        let silent = silence_limit.map(|silence_limit| Instant::now() + silence_limit);
        let frame = tokio::select! {
            // What has come while we were stopped has come.
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
            Some(_) => Heard::Promised(Instant::now()),
            None => Heard::Something,
        });
        let written = match frame {
            Frame::Started(_) => Written::Taken,
            Frame::Output(bytes) => output.write_output(&bytes).await?,
            Frame::ErrorOutput(bytes) => output.write_errors(&bytes).await?,
            Frame::Window(count) => {
                // No more than the window, whatever the agent says.
                let room = (STDIN_WINDOW as usize).saturating_sub(credit.available_permits());
                credit.add_permits(room.min(count as usize));
                Written::Taken
            }
            Frame::Exit(exit) => return Ok(exit),
            Frame::Failed(failure) => return Err(error::Error::Guest(failure)),
            _ => return Err(lost(Error::Unexpected)),
        };
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

/// Where the output of a command goes.
struct Output<O, E> {
    output: O,
    errors: E,
    outbox: mpsc::Sender<Frame>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Taken,
    NobodyReads,
}

impl<O, E> Output<O, E>
where
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    async fn write_output(&mut self, bytes: &[u8]) -> Result<Written> {
        let written = write(&mut self.output, bytes).await;
        self.judge(written, "output").await
    }

    async fn write_errors(&mut self, bytes: &[u8]) -> Result<Written> {
        let written = write(&mut self.errors, bytes).await;
        self.judge(written, "error").await
    }

    /// The command gets the signal that it would have got had it written there itself.
    async fn judge(&self, written: io::Result<()>, what: &str) -> Result<Written> {
        match written {
            Ok(()) => Ok(Written::Taken),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                // When it cannot be sent, the stream is at its end, which `receive` sees.
                let _ = self.outbox.send(Frame::Signal(SIGPIPE)).await;
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

/// Sends on what comes from the user's side. Returns at the second signal that asks us to end, when our terminal is
/// gone and the command's has to go with it, or when we were asked to end and the agent is not there to pass it on.
async fn forward(
    place: Place,
    listener: &mut Listener,
    outbox: &mpsc::Sender<Frame>,
    heard: &watch::Sender<Heard>,
    window_size: impl Fn() -> WindowSize,
) -> u8 {
    let mut asked: Option<(u8, Instant)> = None;
    loop {
        let silent = asked.filter(|(_, at)| heard.borrow().is_silent_since(*at));
        let event = tokio::select! {
            event = next_event(listener) => event,
            () = until(silent.map(|(_, at)| at + LAST_WORD)) => match asked {
                Some((signal, at)) if heard.borrow().is_silent_since(at) => return signal,
                _ => continue,
            },
        };
        if let Some(signal) = event.ends() {
            // The agent hangs the command's terminal up when we leave.
            let gone = signal == SIGHUP && place == Place::Terminal;
            if gone || asked.replace((signal, Instant::now())).is_some() {
                return signal;
            }
        }
        let frame = match event {
            Event::Signal(number) => Frame::Signal(number),
            Event::Resized => Frame::Resize(window_size()),
        };
        // When it cannot be sent, the stream is at its end, which `receive` sees.
        let _ = outbox.send(frame).await;
    }
}

/// Why a command was left.
fn left(place: Place, signal: u8) -> error::Error {
    let error = error::Error::Interrupted { signal };
    match place {
        Place::Terminal => error,
        Place::Pipes => error.advise(
            "the command was ended, too; `banger vm exec --detach` runs one that continues without you.",
        ),
    }
}

/// Sends our input, as much as the agent takes.
async fn feed(
    mut input: impl AsyncRead + Unpin,
    outbox: &mpsc::Sender<Frame>,
    credit: &Semaphore,
) -> Infallible {
    let mut buffer = vec![0; MAX_DATA];
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
        credit.add_permits(allowed - count);
        let frame = if count == 0 { Frame::InputEnd } else { Frame::Input(buffer[..count].to_vec()) };
        if outbox.send(frame).await.is_err() || count == 0 {
            break;
        }
    }
    std::future::pending().await
}

/// Writes the request and then what is queued. A stream that cannot be written has something to read: the
/// agent's last words, or its end.
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
