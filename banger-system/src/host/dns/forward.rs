//! Forwards questions about other names to the resolvers of the host.
//!
//! Every question is sent from a socket of its own, and so from a port that nobody can guess. Only a reply from the
//! server that was asked, with the same id and question, is accepted (RFC 5452).

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_server::proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    gate::Gate,
    message::{self, Question},
    quota::Permit,
};

/// How long one server may take. Stubs repeat a question after five seconds, which leaves time for two servers.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
/// A larger datagram is not a reply to our question.
const MAX_DATAGRAM: usize = 4096;

/// A question to forward.
pub(super) struct Forward {
    pub(super) question: Box<Question>,
    pub(super) servers: Vec<SocketAddr>,
    /// The client's share of the server, held until the question is answered.
    pub(super) permit: Permit,
    /// What the answer has to pass; none for a guest that reaches everything.
    pub(super) gate: Option<Gate>,
}

impl Forward {
    /// Asks one server after the other. Returns the reply for the guest.
    pub(super) async fn run(self) -> Option<Vec<u8>> {
        let Self { question, servers, permit: _held, gate } = self;
        let asked = question.upstream_query()?;
        for server in servers {
            let reply = match question.is_datagram() {
                true => timeout(SERVER_TIMEOUT, query_udp(server, &asked)).await,
                false => timeout(SERVER_TIMEOUT, query_tcp(server, &asked)).await,
            };
            match reply {
                Ok(Ok(reply)) => {
                    return match &gate {
                        Some(gate) => gate.pass(&question, &reply).await,
                        None => reply_for_guest(&question, reply),
                    };
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "a resolver of the host failed"),
                Err(_) => tracing::debug!(%server, "a resolver of the host did not answer in time"),
            }
        }
        question.with_code(ResponseCode::ServFail)
    }
}

/// Turns a server's reply into the reply for the guest.
fn reply_for_guest(question: &Question, mut reply: Vec<u8>) -> Option<Vec<u8>> {
    if reply.len() > usize::from(question.max_length()) {
        return question.truncated();
    }
    reply[..2].copy_from_slice(&question.id().to_be_bytes());
    Some(reply)
}

async fn query_udp(server: SocketAddr, asked: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(asked).await?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if message::answers(&buffer[..length], asked) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn query_tcp(server: SocketAddr, asked: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed(asked)).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).await?;
    match message::answers(&reply, asked) {
        true => Ok(reply),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "the reply does not match the question")),
    }
}

/// Frames a message for a connection: its length comes first. Messages over 65535 bytes cannot be built here.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or_default();
    [&length.to_be_bytes(), message].concat()
}
