//! Accepts connections, checks who asks, and answers.

use std::{io, sync::Arc, time::Duration};

use hyper::{body::Incoming, http::request::Parts, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use crate::{
    api,
    banger::Banger,
    connect,
    envd::{self, process::Processes},
    http::{Code, Refusal, Response, Result, header},
    key::Key,
    listen::{self, Listener},
    sandboxes::Sandboxes,
};

/// Limit on connections, each of which has one request at a time. The rest wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send the head of a request, and how long a connection may idle.
const HEAD: Duration = Duration::from_secs(75);
/// Limit on the head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// How long to wait when no connection can be accepted: there may be too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// What requests work on.
pub struct Server {
    /// The user's key.
    pub key: Key,
    /// The command.
    pub banger: Arc<Banger>,
    /// The sandboxes that were created here.
    pub sandboxes: Arc<Sandboxes>,
    /// The commands that run in them.
    pub processes: Arc<Processes>,
    connections: Arc<Semaphore>,
}

impl Server {
    /// Returns a server without connections.
    pub fn new(key: Key, banger: Arc<Banger>, sandboxes: Arc<Sandboxes>) -> Self {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { key, banger, sandboxes, processes: Arc::default(), connections }
    }

    /// Serves connections. Returns when the socket fails.
    pub async fn serve(self: Arc<Self>, listener: Listener) -> io::Result<()> {
        loop {
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else { return Ok(()) };
            let accepted = match &listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                    // Others would take the connections of this user, even without a key.
                    if stream.local_addr().is_ok_and(|local| listen::is_own(peer, local)) {
                        // Small messages of streams do not wait for each other.
                        let _ = stream.set_nodelay(true);
                        tokio::spawn(Arc::clone(&self).connection(stream, permit));
                    }
                }),
                Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    if stream.peer_cred().is_ok_and(|peer| listen::is_allowed(peer.uid())) {
                        tokio::spawn(Arc::clone(&self).connection(stream, permit));
                    }
                }),
            };
            match accepted {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        _permit: OwnedSemaphorePermit,
    ) {
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let server = Arc::clone(&self);
            async move {
                let (parts, body) = request.into_parts();
                Ok::<Response, io::Error>(server.answer(parts, body).await)
            }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
        // A client that goes away is no error.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    /// Answers a request. The key or the token is checked before anything else is read.
    async fn answer(&self, parts: Parts, body: Incoming) -> Response {
        if !envd::is_for_sandbox(&parts) {
            let answered = match self.check_key(&parts) {
                Ok(()) => api::answer(self, &parts, body).await,
                Err(refusal) => Err(refusal),
            };
            return answered.unwrap_or_else(|refusal| refusal.response());
        }
        match self.sandbox(&parts) {
            Ok(sandbox) => envd::answer(self, sandbox, &parts, body).await,
            Err(refusal) if envd::is_call(&parts) => connect::refuse(&parts, refusal),
            Err(refusal) => refusal.response(),
        }
    }

    fn check_key(&self, parts: &Parts) -> Result<()> {
        match header(parts, "x-api-key") {
            Some(key) if self.key.is(key) => Ok(()),
            _ => Err(Refusal::new(
                Code::Unauthenticated,
                "The API key is wrong or missing. `banger-e2b env` prints it.",
            )),
        }
    }

    /// Returns the id of the sandbox that a request is for.
    fn sandbox<'a>(&self, parts: &'a Parts) -> Result<&'a str> {
        let named = header(parts, "e2b-sandbox-id").unwrap_or_default();
        match header(parts, "x-access-token") {
            Some(token) if self.key.is_token(named, token) => Ok(named),
            _ => Err(Refusal::new(
                Code::Unauthenticated,
                "The access token of the sandbox is wrong or missing; connect to the sandbox again.",
            )),
        }
    }
}
