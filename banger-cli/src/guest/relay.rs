//! Relays a connection of the agent in a sandbox to a connection on the host.

use std::{os::fd::OwnedFd, os::unix::net::UnixStream as StdStream};

use banger_proto::guest::{Decoder, FailureKind, Frame, Request, STDIN_WINDOW, frame::MAX_DATA};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Semaphore,
};

use crate::{
    error::{Error, Result},
    guest::attach,
};

/// Returns the error for an agent that violates the protocol.
pub fn protocol_error() -> Error {
    Error::Attach(attach::Error::Unexpected)
}

/// A stream with a granted request.
pub struct Relay {
    frames: Frames,
    writer: OwnedWriteHalf,
}

/// What the agent sends on a stream.
pub struct Frames {
    reader: OwnedReadHalf,
    decoder: Decoder,
}

impl Frames {
    /// Returns the next frame. The end of the stream is an error.
    pub async fn next(&mut self) -> Result<Frame> {
        let mut bytes = vec![0; MAX_DATA];
        loop {
            let frame = self.decoder.next_frame().map_err(|error| Error::Attach(error.into()))?;
            if let Some(frame) = frame {
                return Ok(frame);
            }
            match self.reader.read(&mut bytes).await {
                Ok(0) => return Err(Error::Attach(attach::Error::HungUp)),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) => return Err(Error::Attach(attach::Error::Stream(error))),
            }
        }
    }
}

/// The connections that come in at a listener in the sandbox.
pub struct Incoming {
    relay: Relay,
    line: Vec<u8>,
}

/// Limit on a line with the number of a connection.
const MAX_LINE: usize = 32;

impl Incoming {
    /// Takes a stream on which a request to listen was granted.
    pub fn new(relay: Relay) -> Self {
        Self { relay, line: Vec::new() }
    }

    /// Returns the number of the next connection.
    pub async fn next(&mut self) -> Result<u64> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                let number = std::str::from_utf8(&line).ok().and_then(|line| line.trim().parse().ok());
                return number.ok_or_else(protocol_error);
            }
            if self.line.len() > MAX_LINE {
                return Err(protocol_error());
            }
            self.line.extend(self.relay.output().await?.ok_or_else(protocol_error)?);
        }
    }
}

impl Relay {
    /// Sends the request, and waits until it is granted.
    pub async fn begin(stream: OwnedFd, request: &Request) -> Result<Self> {
        let stream = StdStream::from(stream);
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        let stream = stream.map_err(|source| Error::io("use the connection to the sandbox", source))?;
        let (reader, mut writer) = stream.into_split();
        // If it cannot be written, the reason or the end can be read.
        let _ = writer.write_all(&Frame::Request(request.clone()).encode()).await;
        let mut frames = Frames { reader, decoder: Decoder::default() };
        match frames.next().await? {
            Frame::Started(_) => Ok(Self { frames, writer }),
            Frame::Failed(failure) => Err(Error::Guest(failure)),
            _ => Err(protocol_error()),
        }
    }

    /// Returns the next bytes, or `None` at their end.
    pub async fn output(&mut self) -> Result<Option<Vec<u8>>> {
        match self.frames.next().await? {
            Frame::Output(bytes) => Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
            Frame::Failed(failure) => Err(Error::Guest(failure)),
            _ => Err(protocol_error()),
        }
    }

    /// Splits it, for a request that is served frame by frame.
    pub fn into_parts(self) -> (Frames, OwnedWriteHalf) {
        (self.frames, self.writer)
    }

    /// Relays bytes in both directions until both sides have ended, or one of them is gone. If the host's side is
    /// gone or this process exits, the connection in the sandbox is reset: the agent notices that the stream was
    /// closed before the end.
    pub async fn carry(self, local: impl AsyncRead + AsyncWrite) -> Result<RelayEnd> {
        let Self { mut frames, mut writer } = self;
        let (mut from, mut to) = tokio::io::split(local);
        let credit = Semaphore::new(STDIN_WINDOW as usize);
        let into_sandbox = async {
            let mut buffer = vec![0; MAX_DATA];
            loop {
                let Ok(first) = credit.acquire().await else { break };
                first.forget();
                let allowed = 1 + credit.available_permits().min(buffer.len() - 1);
                let Ok(count) = from.read(&mut buffer[..allowed]).await else { return RelayEnd::LocalGone };
                // One was taken before. Only this task takes permits, so the others are still there.
                if count == 0 {
                    credit.add_permits(1);
                } else {
                    credit.forget_permits(count - 1);
                }
                let frame = if count == 0 { Frame::InputEnd } else { Frame::Input(buffer[..count].to_vec()) };
                if writer.write_all(&frame.encode()).await.is_err() || count == 0 {
                    break;
                }
            }
            // The agent reports the end.
            std::future::pending().await
        };
        let out_of_sandbox = async {
            loop {
                match frames.next().await? {
                    Frame::Output(bytes) if bytes.is_empty() => {
                        // A side that has gone has also ended.
                        let _ = to.shutdown().await;
                    }
                    Frame::Output(bytes) => {
                        if to.write_all(&bytes).await.is_err() {
                            return Ok(RelayEnd::LocalGone);
                        }
                    }
                    Frame::Window(count) => {
                        // Never more than the window, whatever the agent says.
                        let room = (STDIN_WINDOW as usize).saturating_sub(credit.available_permits());
                        credit.add_permits(room.min(count as usize));
                    }
                    Frame::Done => return Ok(RelayEnd::Ended),
                    Frame::Failed(failure) if failure.kind == FailureKind::Reset => {
                        return Ok(RelayEnd::Reset);
                    }
                    Frame::Failed(failure) => return Err(Error::Guest(failure)),
                    _ => return Err(protocol_error()),
                }
            }
        };
        tokio::select! {
            ended = out_of_sandbox => ended,
            gone = into_sandbox => Ok(gone),
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayEnd {
    /// Both sides have closed their direction.
    Ended,
    /// The sandbox's side was reset, so the host's must be, too.
    Reset,
    /// The host's side is gone.
    LocalGone,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{os::unix::net::UnixStream as StdStream, time::Duration};

    use banger_proto::guest::{
        Failure,
        message::{Endpoint, Started},
    };
    use tokio::{
        net::{TcpListener, TcpStream},
        task::JoinHandle,
    };

    use super::*;

    /// Returns a relayed connection, its other end, and the agent's end of the stream.
    async fn carried() -> (JoinHandle<Result<RelayEnd>>, TcpStream, UnixStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        let (ours, agent) = StdStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        let mut agent = UnixStream::from_std(agent).unwrap();
        agent.write_all(&Frame::Started(Started::new(0)).encode()).await.unwrap();
        let request = Request::Connect(Endpoint::Unix("/x".into()));
        let relay = Relay::begin(ours.into(), &request).await.unwrap();
        let mut received = vec![0; Frame::Request(request).encode().len()];
        agent.read_exact(&mut received).await.unwrap();
        (tokio::spawn(relay.carry(near)), far, agent)
    }

    #[tokio::test]
    async fn a_reset_in_the_sandbox_is_reported() {
        let (carrying, _far, mut agent) = carried().await;
        let failure = Failure { kind: FailureKind::Reset, message: String::new() };
        agent.write_all(&Frame::Failed(failure).encode()).await.unwrap();
        assert_eq!(carrying.await.unwrap().unwrap(), RelayEnd::Reset);
    }

    #[tokio::test]
    async fn a_reset_on_the_host_hangs_up_without_an_end() {
        let (carrying, far, mut agent) = carried().await;
        rustix::net::sockopt::set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
        drop(far);
        assert_eq!(carrying.await.unwrap().unwrap(), RelayEnd::LocalGone);
        let mut sent = Vec::new();
        agent.read_to_end(&mut sent).await.unwrap();
        assert_eq!(sent, b"", "an end was sent");
    }

    #[tokio::test]
    async fn an_end_of_one_direction_leaves_the_other_open() {
        let (carrying, mut far, mut agent) = carried().await;
        far.shutdown().await.unwrap();
        let mut sent = vec![0; Frame::InputEnd.encode().len()];
        agent.read_exact(&mut sent).await.unwrap();
        assert_eq!(sent, Frame::InputEnd.encode());
        for frame in [Frame::Output(b"late".to_vec()), Frame::Output(Vec::new()), Frame::Done] {
            agent.write_all(&frame.encode()).await.unwrap();
        }
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"late");
        assert_eq!(carrying.await.unwrap().unwrap(), RelayEnd::Ended);
    }
}
