//! The host's side of the guest protocol: greeting, readiness, shutdown, streams for clients. Guests are hostile:
//! every wait has a timeout and every length a limit.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use async_trait::async_trait;
use banger_domain::{clock::Occasion, id::VmId, idle::Use, stream::Purpose, vm::Token};
use banger_proto::guest::{
    Decoder, Frame, GuestConfig, Request,
    hello::{self, HostHello, MAX_STALE},
    rejuvenation::Identity,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{boot_config, capture, clock, usage};
use crate::ports::{
    FromHost as _,
    guest_link::{Channel, Error, GuestFacts, GuestLink, Result, UnconfiguredGuest},
    vmm::Vmm,
};

/// How long an agent may take to answer a greeting before the host connects again. A greeting can be lost: the kernel of a
/// guest drops what has arrived before it sees that the last host has hung up (`handle_control_message` in
/// `drivers/char/virtio_console.c`).
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a closed channel is tried again: most likely the sandbox has ended.
const RETRY: Duration = Duration::from_millis(50);
/// How long a guest may take to renew itself before it is asked again. After its greeting, it may still see that the host of
/// its capture has hung up, and drop the conversation.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a comparison of clocks may take.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer about the use of a guest may take, after a comparison of clocks on the same channel.
const USAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// What callers wait for while a guest boots.
const BOOT: &str = "waiting for the guest";
/// The longest accepted boot id.
const MAX_BOOT_ID: usize = 64;
/// The longest accepted message, in characters.
const MAX_MESSAGE: usize = 200;

/// Connects to agents through the channels of a VMM.
pub struct AgentLink {
    vmm: Arc<dyn Vmm>,
}

impl AgentLink {
    /// Returns a link through the channels of this VMM.
    pub fn new(vmm: Arc<dyn Vmm>) -> Self {
        Self { vmm }
    }

    /// Asks on one control stream after another until the agent answers.
    async fn until_answered<T, F>(
        &self,
        vm: VmId,
        what: &str,
        timeout: Duration,
        ask: impl Fn(UnixStream) -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>> + Send,
    {
        let answered = async {
            loop {
                let asked = match self.vmm.connect(vm, Channel::Control).await {
                    Ok(stream) => ask(stream).await,
                    Err(error) => Err(Failed::Closed(error)),
                };
                match asked {
                    Ok(answer) => return Ok(answer),
                    Err(Failed::Unanswered) => tracing::debug!(%vm, what, "a greeting had no answer"),
                    // The sandbox's task reports how it ended.
                    Err(Failed::Closed(_)) => tokio::time::sleep(RETRY).await,
                    Err(failed) => return Err(failed.into()),
                }
            }
        };
        let late = || Error::Timeout { what: what.to_owned(), after: timeout };
        tokio::time::timeout(timeout, answered).await.map_err(|_| late())?
    }

    /// Asks on a control stream, and once more if the first greeting had no answer.
    async fn twice<T, F>(&self, vm: VmId, ask: impl Fn(UnixStream) -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>> + Send,
    {
        match ask(self.vmm.connect(vm, Channel::Control).await?).await {
            Err(Failed::Unanswered) => {
                let stream = self.vmm.connect(vm, Channel::Control).await?;
                Ok(ask(stream).await?)
            }
            asked => Ok(asked?),
        }
    }

    /// Sends a request whose only answer is success or failure.
    async fn ask(&self, vm: VmId, token: &Token, request: Request) -> Result<()> {
        let request = &request;
        let ask = |mut stream: UnixStream| async move {
            let mut decoder = greet(&mut stream, token).await?;
            send(&mut stream, request).await?;
            match answer(&mut stream, &mut decoder).await? {
                Frame::Done => Ok(()),
                other => Err(unexpected(&other)),
            }
        };
        // The control stream, if commands hold every other one, or if the greeting had no answer.
        match self.vmm.connect(vm, Channel::Stream(Purpose::Question)).await {
            Ok(stream) => match ask(stream).await {
                Err(Failed::Unanswered) => self.twice(vm, ask).await,
                asked => Ok(asked?),
            },
            Err(Error::NoFreeStream) => self.twice(vm, ask).await,
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl GuestLink for AgentLink {
    async fn wait_unconfigured(&self, vm: VmId, timeout: Duration) -> Result<UnconfiguredGuest> {
        self.until_answered(vm, BOOT, timeout, boot_config::ask_unconfigured).await
    }

    async fn configure(&self, vm: VmId, config: &GuestConfig, timeout: Duration) -> Result<()> {
        let token = &Token::from_text(config.token.clone());
        let ask = |mut stream: UnixStream| async move {
            match ask_info(&mut stream, token).await {
                Err(Failed::Unconfigured) => boot_config::send_config(&mut stream, config).await,
                asked => asked.map(drop),
            }
        };
        self.until_answered(vm, BOOT, timeout, ask).await
    }

    async fn wait_ready(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<GuestFacts> {
        let ask = |mut stream: UnixStream| async move { ask_info(&mut stream, token).await };
        self.until_answered(vm, BOOT, timeout, ask).await
    }

    async fn shutdown(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<()> {
        let late = || Error::Timeout { what: "asking the guest to power off".to_owned(), after: timeout };
        let asked = self.ask(vm, token, Request::Shutdown);
        tokio::time::timeout(timeout, asked).await.map_err(|_| late())?
    }

    async fn sync_clock(&self, vm: VmId, token: &Token, occasion: Occasion) -> Result<()> {
        let late = || Error::Timeout { what: "comparing the guest's clock".to_owned(), after: CLOCK_TIMEOUT };
        // Uses the service's own channel, since clients may hold every other one.
        let compare =
            self.twice(vm, |mut stream| async move { clock::compare(&mut stream, token, occasion).await });
        let compared = tokio::time::timeout(CLOCK_TIMEOUT, compare);
        match compared.await.map_err(|_| late())? {
            // Agents of guests that were started before an upgrade may not support the comparison, but all of them
            // can set the time.
            Err(_) if occasion != Occasion::Regular => {
                let unix_usec = u64::try_from(clock::unix_now()).unwrap_or_default();
                let set = self.ask(vm, token, Request::SetTime { unix_usec });
                tokio::time::timeout(CLOCK_TIMEOUT, set).await.map_err(|_| late())?
            }
            compared => compared,
        }
    }

    async fn usage(&self, vm: VmId, token: &Token) -> Result<Use> {
        let late = || Error::Timeout { what: "asking who uses the guest".to_owned(), after: USAGE_TIMEOUT };
        let asked = self.twice(vm, |mut stream| async move { usage::ask(&mut stream, token).await });
        tokio::time::timeout(USAGE_TIMEOUT, asked).await.map_err(|_| late())?
    }

    async fn freeze(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<()> {
        let ask =
            |mut stream: UnixStream| async move { capture::ask(&mut stream, token, Request::Freeze).await };
        self.until_answered(vm, "freezing the guest", timeout, ask).await
    }

    async fn thaw(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<()> {
        let ask =
            |mut stream: UnixStream| async move { capture::ask(&mut stream, token, Request::Thaw).await };
        self.until_answered(vm, "thawing the guest", timeout, ask).await
    }

    async fn rejuvenate(
        &self,
        vm: VmId,
        old: &Token,
        new: &Token,
        identity: Option<&Identity>,
        timeout: Duration,
    ) -> Result<()> {
        let ask = |mut stream: UnixStream| async move {
            let renewed = capture::rejuvenate(&mut stream, old, new, identity);
            tokio::time::timeout(RENEWAL_TIMEOUT, renewed).await.unwrap_or(Err(Failed::Unanswered))
        };
        self.until_answered(vm, "renewing the guest", timeout, ask).await
    }

    async fn open(&self, mut stream: UnixStream, token: &Token) -> Result<OwnedFd> {
        let decoder = greet(&mut stream, token).await?;
        if !decoder.into_rest().is_empty() {
            return Err(agent("the guest's agent sent data before a request"));
        }
        let os = |error| Error::os("hand over a stream to the guest", error);
        let stream = stream.into_std().map_err(os)?;
        stream.set_nonblocking(false).map_err(os)?;
        Ok(OwnedFd::from(stream))
    }
}

/// Why a conversation failed.
pub(super) enum Failed {
    /// The channel was closed: the sandbox has ended or is about to.
    Closed(Error),
    /// The greeting had no answer in time. It may be lost, and another one is safe.
    Unanswered,
    /// The agent sent something invalid.
    Nonsense(Error),
    /// The agent has no configuration yet.
    Unconfigured,
    /// The agent knows another token.
    WrongToken,
    /// The host is at fault.
    Local(Error),
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Closed(error) | Failed::Nonsense(error) | Failed::Local(error) => error,
            Failed::Unanswered => {
                Error::Timeout { what: "waiting for the guest's agent".to_owned(), after: GREETING_TIMEOUT }
            }
            Failed::Unconfigured => agent(&hello::Error::Unconfigured.to_string()),
            Failed::WrongToken => agent(&hello::Error::WrongToken.to_string()),
        }
    }
}

async fn ask_info(stream: &mut UnixStream, token: &Token) -> Result<GuestFacts, Failed> {
    let mut decoder = greet(stream, token).await?;
    send(stream, &Request::Info).await?;
    match answer(stream, &mut decoder).await? {
        Frame::Info(info) => {
            for problem in info.problems.iter().take(20) {
                let problem = bounded(problem);
                tracing::warn!(problem, "the guest's agent reports a problem");
            }
            let boot_id: String = info.boot_id.chars().take(MAX_BOOT_ID).collect();
            let plain = boot_id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            let boot_id = if plain { boot_id } else { String::new() };
            Ok(GuestFacts { boot_id, stopping: info.stopping })
        }
        other => Err(unexpected(&other)),
    }
}

/// Greets the agent. Returns the bytes after its answer.
pub(super) async fn greet(stream: &mut UnixStream, token: &Token) -> Result<Decoder, Failed> {
    Ok(greet_with_revision(stream, token).await?.0)
}

/// Greets the agent. Returns the bytes after its answer, and its revision.
pub(super) async fn greet_with_revision(
    stream: &mut UnixStream,
    token: &Token,
) -> Result<(Decoder, u16), Failed> {
    let answered = tokio::time::timeout(GREETING_TIMEOUT, greet_untimed(stream, token)).await;
    answered.unwrap_or(Err(Failed::Unanswered))
}

async fn greet_untimed(stream: &mut UnixStream, token: &Token) -> Result<(Decoder, u16), Failed> {
    let nonce = uuid::Uuid::new_v4().into_bytes();
    let hello =
        HostHello::new(nonce, token.as_str()).ok_or_else(|| nonsense("the token has a wrong length"))?;
    stream.write_all(&hello.encode()).await.map_err(|error| closed(&error))?;
    let (mut buffer, mut seen) = (Vec::new(), 0);
    loop {
        match hello::take_answer(&mut buffer, &hello) {
            Ok(Some(revision)) => return Ok((Decoder::new(buffer), revision)),
            Ok(None) if seen > MAX_STALE => return Err(nonsense(&hello::Error::Garbage.to_string())),
            Ok(None) => seen += read(stream, &mut buffer).await?,
            // A stream will be free later, so this is like a closed channel.
            Err(hello::Error::Busy) => return Err(Failed::Closed(Error::NoFreeStream)),
            Err(hello::Error::Unconfigured) => return Err(Failed::Unconfigured),
            Err(hello::Error::WrongToken) => return Err(Failed::WrongToken),
            Err(error) => return Err(nonsense(&error.to_string())),
        }
    }
}

pub(super) async fn send(stream: &mut UnixStream, request: &Request) -> Result<(), Failed> {
    send_frame(stream, &Frame::Request(request.clone())).await
}

pub(super) async fn send_frame(stream: &mut UnixStream, frame: &Frame) -> Result<(), Failed> {
    stream.write_all(&frame.encode()).await.map_err(|error| closed(&error))
}

pub(super) async fn answer(stream: &mut UnixStream, decoder: &mut Decoder) -> Result<Frame, Failed> {
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => {}
            Err(error) => return Err(nonsense(&format!("unexpected data from the guest's agent: {error}"))),
        }
        let mut bytes = Vec::new();
        read(stream, &mut bytes).await?;
        decoder.push(&bytes);
    }
}

async fn read(stream: &mut UnixStream, into: &mut Vec<u8>) -> Result<usize, Failed> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes).await {
        Ok(0) => Err(closed(&"it closed the connection")),
        Ok(count) => {
            into.extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        Err(error) => Err(closed(&error)),
    }
}

pub(super) fn agent(message: &str) -> Error {
    Error::Unavailable { message: message.to_owned() }
}

pub(super) fn nonsense(message: &str) -> Failed {
    Failed::Nonsense(agent(message))
}

fn closed(why: &dyn std::fmt::Display) -> Failed {
    Failed::Closed(agent(&format!("lost the connection to the guest's agent: {why}")))
}

/// Returns the beginning of a message of an agent, without control characters.
pub(super) fn bounded(message: &str) -> String {
    message.chars().take(MAX_MESSAGE).filter(|c| !c.is_control()).collect()
}

pub(super) fn unexpected(frame: &Frame) -> Failed {
    match frame {
        Frame::Failed(failure) => {
            nonsense(&format!("the guest's agent refused: {}", bounded(&failure.message)))
        }
        _ => nonsense("unexpected reply from the guest's agent"),
    }
}
