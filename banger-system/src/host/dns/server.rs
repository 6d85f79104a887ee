//! The server: sockets on the host's addresses in the guest network, and the conversation on them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use banger_domain::{
    dns::{
        limits::MAX_QUESTION,
        question::{Answer, Kind},
        table::{Client, NamedVm, Table},
    },
    egress::host_name::HostName,
    net::nic::Nat,
};
use hickory_server::{net::xfer::Protocol, proto::op::ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    time::timeout,
};

use super::{
    forward::{Forward, framed},
    gate::Gate,
    lookups::Lookups,
    message::{self, Question, Received},
    quota::{Permit, Quotas, User},
    refused::Refused,
    upstream::Upstreams,
    waking::Waking,
};
use crate::ports::{network::Network, wake::Wakes};

/// How long a connection may be silent, and how long a client may take to read an answer.
const IDLE: Duration = Duration::from_secs(10);
/// How many questions one connection may ask.
const MAX_QUESTIONS: usize = 100;
/// How long to wait if the process has no descriptor left for a connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What all sockets share.
pub(super) struct Server {
    pub(super) names: watch::Receiver<Option<Arc<Table>>>,
    pub(super) quotas: Quotas,
    pub(super) refused: Refused,
    pub(super) lookups: Lookups,
    pub(super) network: Arc<dyn Network>,
    pub(super) upstreams: Upstreams,
    pub(super) wakes: Arc<Wakes>,
}

/// What to do about a message.
enum Reaction {
    Nothing,
    Answer(Vec<u8>),
    Forward(Forward),
    Wake(Waking),
}

impl Server {
    /// Decides what to do about a message from this address. Takes microseconds and never waits.
    fn react(&self, bytes: &[u8], from: SocketAddr, protocol: Protocol) -> Reaction {
        let Some(names) = self.names.borrow().clone() else { return Reaction::Nothing };
        let Some(client) = names.client(from.ip()) else { return Reaction::Nothing };
        // Check the quota before parsing anything.
        if bytes.len() > MAX_QUESTION || !self.quotas.may_query(User::of(client)) {
            self.lookups.limited();
            return Reaction::Nothing;
        }
        let question = match message::read(bytes, from, protocol) {
            Received::Question(question) => question,
            Received::Wrong(answer) => return Reaction::Answer(answer),
            Received::Noise => return Reaction::Nothing,
        };
        let answer = match question.kind() {
            _ if question.has_unknown_version() => question.with_code(ResponseCode::BADVERS),
            None => question.with_code(ResponseCode::Refused),
            Some(kind) => match (names.answer(client, &question.labels(), kind), client) {
                (Answer::NotOurs, Client::Guest(guest)) if guest.nat == Nat::On => {
                    return self.forward(&names, guest, question, None);
                }
                (Answer::NotOurs, Client::Guest(guest)) if !guest.allowed.is_empty() => {
                    return self.forward_allowed(&names, guest, question);
                }
                (answer @ Answer::Asleep(..), client) => return self.wake(&names, client, question, answer),
                (answer, client) => {
                    if let (Answer::NotOurs, Client::Guest(guest), Kind::A | Kind::Aaaa) =
                        (&answer, client, kind)
                    {
                        self.refused.add(guest.vm);
                        self.lookups.refused();
                    } else {
                        self.lookups.answered();
                    }
                    question.authoritative(names.subnet(), &answer)
                }
            },
        };
        answer.map_or(Reaction::Nothing, Reaction::Answer)
    }

    /// Answers once a sandbox runs, if not too many questions of the client wait already.
    fn wake(&self, names: &Table, client: Client<'_>, question: Box<Question>, answer: Answer) -> Reaction {
        let Answer::Asleep(vm, _) = answer else { return Reaction::Nothing };
        match self.quotas.wake(User::of(client)) {
            Some(permit) => {
                self.lookups.answered();
                let (subnet, wakes) = (names.subnet(), Arc::clone(&self.wakes));
                Reaction::Wake(Waking { vm, question, answer, subnet, wakes, permit })
            }
            None => {
                self.lookups.limited();
                question.with_code(ResponseCode::ServFail).map_or(Reaction::Nothing, Reaction::Answer)
            }
        }
    }

    /// Forwards a question, if the guest has not forwarded too many.
    fn forward(
        &self,
        names: &Table,
        guest: &NamedVm,
        question: Box<Question>,
        gate: Option<Gate>,
    ) -> Reaction {
        let (gateway4, gateway6) = names.subnet().gateway();
        let own = [IpAddr::from(gateway4), IpAddr::from(gateway6)];
        match self.quotas.forward(User::of(Client::Guest(guest))) {
            Some(permit) => {
                self.lookups.forwarded();
                let servers = self.upstreams.servers(&own);
                Reaction::Forward(Forward { question, servers, permit, gate })
            }
            None => {
                self.lookups.limited();
                question.with_code(ResponseCode::ServFail).map_or(Reaction::Nothing, Reaction::Answer)
            }
        }
    }

    /// Forwards a question about a name that a restricted guest may reach. Others are refused and go nowhere: a question
    /// carries data, too.
    fn forward_allowed(&self, names: &Table, guest: &NamedVm, question: Box<Question>) -> Reaction {
        let name = HostName::of_labels(&question.labels());
        if let Some(name) = &name
            && !guest.allowed.ports_of(name).is_empty()
        {
            // Its answer may have addresses. Without one, clients ask for them.
            if question.is_about_services() {
                return question.with_code(ResponseCode::NoError).map_or(Reaction::Nothing, Reaction::Answer);
            }
            let (allowed, network) = (Arc::clone(&guest.allowed), Arc::clone(&self.network));
            let gate = Gate { vm: guest.vm, name: name.clone(), allowed, network };
            return self.forward(names, guest, question, Some(gate));
        }
        self.refused.add(guest.vm);
        self.lookups.refused();
        if let Some(name) = &name {
            self.network.deny(guest.vm, name);
        }
        question.with_code(ResponseCode::Refused).map_or(Reaction::Nothing, Reaction::Answer)
    }

    /// Returns the client at this address and its permit to connect.
    fn admit(&self, from: IpAddr) -> Option<Permit> {
        let names = self.names.borrow().clone()?;
        self.quotas.connect(User::of(names.client(from)?))
    }
}

/// Answers datagrams until the socket fails.
pub(super) async fn serve_datagrams(server: &Arc<Server>, socket: UdpSocket) -> io::Result<()> {
    let socket = Arc::new(socket);
    // One byte more than the limit, to recognise longer messages.
    let mut buffer = [0; MAX_QUESTION + 1];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        match server.react(&buffer[..length], from, Protocol::Udp) {
            Reaction::Nothing => {}
            // A client that does not read its answers loses them; others do not wait for it.
            Reaction::Answer(answer) => drop(socket.try_send_to(&answer, from)),
            Reaction::Forward(forward) => {
                let socket = Arc::clone(&socket);
                // The number of these tasks is limited by the permits.
                tokio::spawn(async move {
                    if let Some(answer) = forward.run().await {
                        let _ = socket.send_to(&answer, from).await;
                    }
                });
            }
            Reaction::Wake(waking) => {
                let socket = Arc::clone(&socket);
                // So is the number of these.
                tokio::spawn(async move {
                    if let Some(answer) = waking.run().await {
                        let _ = socket.send_to(&answer, from).await;
                    }
                });
            }
        }
    }
}

/// Answers connections until the socket fails.
pub(super) async fn serve_connections(server: &Arc<Server>, listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The client is gone, or no descriptor is left for it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) if is_exhausted(&error) => {
                tokio::time::sleep(EXHAUSTED).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(permit) = server.admit(from.ip()) {
            let server = Arc::clone(server);
            tokio::spawn(async move {
                // Errors of a connection concern nobody else.
                let _ = serve_connection(&server, stream, from).await;
                drop(permit);
            });
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| exhausted.iter().any(|errno| errno.raw_os_error() == code))
}

async fn serve_connection(server: &Server, mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
    for _ in 0..MAX_QUESTIONS {
        // The whole question has to arrive in that time: single bytes do not keep a connection open.
        let bytes = timeout(IDLE, receive(&mut stream)).await??;
        let answer = match server.react(&bytes, from, Protocol::Tcp) {
            Reaction::Nothing => return Ok(()),
            Reaction::Answer(answer) => answer,
            Reaction::Forward(forward) => match forward.run().await {
                Some(answer) => answer,
                None => return Ok(()),
            },
            Reaction::Wake(waking) => match waking.run().await {
                Some(answer) => answer,
                None => return Ok(()),
            },
        };
        timeout(IDLE, stream.write_all(&framed(&answer))).await??;
    }
    Ok(())
}

async fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_QUESTION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
