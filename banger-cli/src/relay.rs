//! A connection that the agent holds in a sandbox, carried to one on this side.

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
    attach,
    error::{Error, Result},
};

/// The agent does not keep to the protocol.
pub fn garbage() -> Error {
    Error::Attach(attach::Error::Unexpected)
}

/// A stream on which a request was put, and granted.
pub struct Relay {
    frames: Frames,
    writer: OwnedWriteHalf,
}

struct Frames {
    reader: OwnedReadHalf,
    decoder: Decoder,
}

impl Frames {
    async fn next(&mut self) -> Result<Frame> {
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

impl Relay {
    /// Puts the request, and waits until it is granted.
    pub async fn begin(stream: OwnedFd, request: &Request) -> Result<Self> {
        let stream = StdStream::from(stream);
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        let stream = stream.map_err(|source| Error::io("use the connection to the sandbox", source))?;
        let (reader, mut writer) = stream.into_split();
        // When it cannot be written, there is an answer that tells why, or the end.
        let _ = writer.write_all(&Frame::Request(request.clone()).encode()).await;
        let mut frames = Frames { reader, decoder: Decoder::default() };
        match frames.next().await? {
            Frame::Started(_) => Ok(Self { frames, writer }),
            Frame::Failed(failure) => Err(Error::Guest(failure)),
            _ => Err(garbage()),
        }
    }

    /// The next bytes; `None` at their end.
    pub async fn output(&mut self) -> Result<Option<Vec<u8>>> {
        match self.frames.next().await? {
            Frame::Output(bytes) => Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
            Frame::Failed(failure) => Err(Error::Guest(failure)),
            _ => Err(garbage()),
        }
    }

    /// Carries bytes both ways until both sides have ended, or one of them is gone. That this side is gone, or that we
    /// leave, becomes a reset in the sandbox: the agent sees that we hung up before the end.
    pub async fn carry(self, local: impl AsyncRead + AsyncWrite) -> Result<Carried> {
        let Self { mut frames, mut writer } = self;
        let (mut from, mut to) = tokio::io::split(local);
        let credit = Semaphore::new(STDIN_WINDOW as usize);
        let into_sandbox = async {
            let mut buffer = vec![0; MAX_DATA];
            loop {
                let Ok(first) = credit.acquire().await else { break };
                first.forget();
                let allowed = 1 + credit.available_permits().min(buffer.len() - 1);
                let Ok(count) = from.read(&mut buffer[..allowed]).await else { return Carried::LocalGone };
                // One was taken before; this side alone takes, so that the others are still there.
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
            // The agent tells when all is over.
            std::future::pending().await
        };
        let out_of_sandbox = async {
            loop {
                match frames.next().await? {
                    Frame::Output(bytes) if bytes.is_empty() => {
                        // Whoever has gone already has ended, too.
                        let _ = to.shutdown().await;
                    }
                    Frame::Output(bytes) => {
                        if to.write_all(&bytes).await.is_err() {
                            return Ok(Carried::LocalGone);
                        }
                    }
                    Frame::Window(count) => {
                        // No more than the window, whatever the agent says.
                        let room = (STDIN_WINDOW as usize).saturating_sub(credit.available_permits());
                        credit.add_permits(room.min(count as usize));
                    }
                    Frame::Done => return Ok(Carried::Ended),
                    Frame::Failed(failure) if failure.kind == FailureKind::Reset => {
                        return Ok(Carried::Reset);
                    }
                    Frame::Failed(failure) => return Err(Error::Guest(failure)),
                    _ => return Err(garbage()),
                }
            }
        };
        tokio::select! {
            ended = out_of_sandbox => ended,
            gone = into_sandbox => Ok(gone),
        }
    }
}

/// How a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Both sides have said that nothing more comes.
    Ended,
    /// The sandbox's side was reset, and so ours has to be.
    Reset,
    /// Ours is gone.
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

    /// A connection that is carried, the other end of it, and the agent's end of the stream.
    async fn carried() -> (JoinHandle<Result<Carried>>, TcpStream, UnixStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        let (ours, agent) = StdStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        let mut agent = UnixStream::from_std(agent).unwrap();
        agent.write_all(&Frame::Started(Started::new(0)).encode()).await.unwrap();
        let request = Request::Connect(Endpoint::Unix("/x".into()));
        let relay = Relay::begin(ours.into(), &request).await.unwrap();
        let mut asked = vec![0; Frame::Request(request).encode().len()];
        agent.read_exact(&mut asked).await.unwrap();
        (tokio::spawn(relay.carry(near)), far, agent)
    }

    #[tokio::test]
    async fn a_reset_in_the_sandbox_is_told() {
        let (carrying, _far, mut agent) = carried().await;
        let failure = Failure { kind: FailureKind::Reset, message: String::new() };
        agent.write_all(&Frame::Failed(failure).encode()).await.unwrap();
        assert_eq!(carrying.await.unwrap().unwrap(), Carried::Reset);
    }

    #[tokio::test]
    async fn a_reset_on_this_side_hangs_up_without_an_end() {
        let (carrying, far, mut agent) = carried().await;
        rustix::net::sockopt::set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
        drop(far);
        assert_eq!(carrying.await.unwrap().unwrap(), Carried::LocalGone);
        let mut told = Vec::new();
        agent.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, b"", "an end was told");
    }

    #[tokio::test]
    async fn an_end_of_one_direction_leaves_the_other_open() {
        let (carrying, mut far, mut agent) = carried().await;
        far.shutdown().await.unwrap();
        let mut told = vec![0; Frame::InputEnd.encode().len()];
        agent.read_exact(&mut told).await.unwrap();
        assert_eq!(told, Frame::InputEnd.encode());
        for frame in [Frame::Output(b"late".to_vec()), Frame::Output(Vec::new()), Frame::Done] {
            agent.write_all(&frame.encode()).await.unwrap();
        }
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"late");
        assert_eq!(carrying.await.unwrap().unwrap(), Carried::Ended);
    }
}
