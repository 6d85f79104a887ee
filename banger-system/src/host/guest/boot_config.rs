//! Sends an agent the configuration of its boot.

use banger_domain::vm::Token;
use banger_proto::guest::{BootConfig, Frame, GuestConfig, Request, config::Entropy, frame::MAX_CONFIG};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::UnixStream;

use super::{
    clock,
    link::{Failed, agent, answer, greet, nonsense, send, send_frame, unexpected},
};
use crate::ports::{
    FromHost as _,
    guest_link::{Error, Result, UnconfiguredGuest},
};

/// A greeting needs a token, and an agent without a configuration accepts any.
const ANY_TOKEN: &str = "00000000000000000000000000000000";

/// Sends the configuration over a stream on which the agent has said that it has none.
pub async fn send_config(stream: &mut UnixStream, guest: &GuestConfig) -> Result<(), Failed> {
    let unix_usec = u64::try_from(clock::unix_now()).unwrap_or_default();
    let guest = GuestConfig { unix_usec, ..guest.clone() };
    let config = BootConfig { guest, entropy: entropy().map_err(Failed::Local)? };
    let frame = Frame::Configure(Box::new(config));
    let size = frame.encode().len();
    if size > MAX_CONFIG {
        let message = format!("the configuration of the guest has {size} bytes; at most {MAX_CONFIG} fit");
        return Err(Failed::Local(agent(&message)));
    }
    send_frame(stream, &frame).await?;
    match answer(stream, &mut Default::default()).await? {
        Frame::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// Asks an agent for what it knows without a configuration.
pub async fn ask_unconfigured(mut stream: UnixStream) -> Result<UnconfiguredGuest, Failed> {
    match greet(&mut stream, &Token::from_text(ANY_TOKEN.to_owned())).await {
        Err(Failed::Unconfigured) => {}
        Err(failed) => return Err(failed),
        Ok(_) => return Err(nonsense("the guest's agent has a configuration already")),
    }
    send(&mut stream, &Request::Info).await?;
    match answer(&mut stream, &mut Default::default()).await? {
        Frame::Info(info) => Ok(UnconfiguredGuest { early_devices: info.early_devices }),
        other => Err(unexpected(&other)),
    }
}

/// Draws random bytes for a guest.
pub fn entropy() -> Result<Entropy> {
    let mut bytes = [[0; 32]; 2];
    for half in &mut bytes {
        let drawn = getrandom(&mut half[..], GetRandomFlags::empty());
        let os = |error: rustix::io::Errno| Error::os("draw random numbers", error);
        // The kernel returns up to 256 bytes at once (getrandom(2)).
        if drawn.map_err(os)? < half.len() {
            return Err(agent("the kernel of the host returned too few random bytes"));
        }
    }
    Ok(Entropy(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        collections::VecDeque,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use async_trait::async_trait;
    use banger_domain::{id::VmId, launch_spec::LaunchSpec, vmm::VmmChoice};
    use banger_proto::guest::{
        Decoder, GuestInfo,
        config::{Init, Programs},
        hello::{self, HostHello, Verdict},
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        host::guest::link::AgentLink,
        ports::{
            Check,
            disks::OverlayBy,
            guest_link::{Channel, GuestFacts, GuestLink},
            vmm::{self, JailSpec, Vmm, VmmCommand},
        },
    };

    const VM: VmId = VmId::from_bits(7);
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    /// What a guest does with one connection: the verdict on the greeting, and the answer to the frame after it. It
    /// closes the connection where there is none.
    type Turn = (Option<Verdict>, Option<Frame>);

    /// A greeting that never reaches the agent.
    const LOST: Turn = (None, Some(Frame::Done));

    /// A VMM whose guest takes these turns, and then never answers again.
    #[derive(Default)]
    struct Guest {
        turns: Mutex<VecDeque<Turn>>,
        seen: Arc<Mutex<Vec<Frame>>>,
        silent: Mutex<Vec<UnixStream>>,
    }

    impl Guest {
        fn link(turns: &[Turn]) -> (AgentLink, Arc<Mutex<Vec<Frame>>>) {
            let guest = Self { turns: Mutex::new(turns.iter().cloned().collect()), ..Self::default() };
            let seen = Arc::clone(&guest.seen);
            (AgentLink::new(Arc::new(guest)), seen)
        }
    }

    #[async_trait]
    impl Vmm for Guest {
        fn overlay_by(&self, _wish: VmmChoice, _vcpus: u32) -> OverlayBy {
            OverlayBy::Vmm
        }

        async fn jail_spec(&self, _spec: &LaunchSpec) -> vmm::Result<JailSpec> {
            Err(vmm::Error::not_ready("it runs"))
        }

        async fn prepare_launch(&self, _spec: &LaunchSpec) -> vmm::Result<VmmCommand> {
            Err(vmm::Error::not_ready("it runs"))
        }

        async fn connect(&self, _vm: VmId, channel: Channel) -> Result<UnixStream> {
            if channel != Channel::Control {
                return Err(Error::NoFreeStream);
            }
            let (host, guest) = UnixStream::pair().unwrap();
            match self.turns.lock().unwrap().pop_front() {
                Some(turn) => drop(tokio::spawn(take(guest, turn, Arc::clone(&self.seen)))),
                None => self.silent.lock().unwrap().push(guest),
            }
            Ok(host)
        }

        async fn remove_sockets(&self, _vm: VmId) -> vmm::Result<()> {
            Ok(())
        }

        async fn checks(&self) -> Vec<Check> {
            Vec::new()
        }

        async fn found(&self) -> vmm::Result<Vec<VmId>> {
            Ok(vec![VM])
        }
    }

    async fn take(mut stream: UnixStream, (verdict, reply): Turn, seen: Arc<Mutex<Vec<Frame>>>) {
        let mut greeting = vec![0; hello::HOST_LENGTH];
        stream.read_exact(&mut greeting).await.unwrap();
        let hello = HostHello::take(&mut greeting).unwrap();
        let Some(verdict) = verdict else {
            if reply.is_some() {
                std::future::pending::<()>().await;
            }
            return;
        };
        stream.write_all(&hello::answer(&hello, verdict)).await.unwrap();
        let mut decoder = Decoder::default();
        let frame = loop {
            if let Some(frame) = decoder.next_frame().unwrap() {
                break frame;
            }
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(count) => decoder.push(&bytes[..count]),
            }
        };
        seen.lock().unwrap().push(frame);
        if let Some(reply) = reply {
            stream.write_all(&reply.encode()).await.unwrap();
        }
    }

    fn config() -> GuestConfig {
        GuestConfig {
            token: TOKEN.into(),
            hostname: "box".into(),
            names: Vec::new(),
            root_device: "/dev/vda".into(),
            work_disk: None,
            module_disk: None,
            init: Init::Auto,
            unix_usec: 0,
            network: None,
            ssh: None,
            timezone: None,
            programs: Programs::default(),
            files: Vec::new(),
        }
    }

    fn ready() -> Turn {
        let info = GuestInfo { boot_id: "b".into(), ..GuestInfo::default() };
        (Some(Verdict::Welcome), Some(Frame::Info(info)))
    }

    fn takes_config() -> Turn {
        (Some(Verdict::Unconfigured), Some(Frame::Done))
    }

    async fn configure(turns: &[Turn]) -> (Result<GuestFacts>, Vec<BootConfig>) {
        let (link, seen) = Guest::link(turns);
        let timeout = Duration::from_secs(20);
        let token = Token::from_text(config().token);
        let configured = match link.configure(VM, &config(), timeout).await {
            Ok(()) => link.wait_ready(VM, &token, timeout).await,
            Err(error) => Err(error),
        };
        let seen = seen.lock().unwrap();
        let configs = seen.iter().filter_map(|frame| match frame {
            Frame::Configure(config) => Some((**config).clone()),
            _ => None,
        });
        (configured, configs.collect())
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_without_a_configuration_gets_it_once() {
        let (facts, configs) = configure(&[takes_config(), ready()]).await;
        assert_eq!(facts.unwrap().boot_id, "b");
        let [sent] = configs.as_slice() else { panic!("{configs:?}") };
        assert_eq!(sent.guest, GuestConfig { unix_usec: sent.guest.unix_usec, ..config() });
        assert!(sent.guest.unix_usec > 1_600_000_000_000_000, "the time is that of the host");
        assert_ne!(sent.entropy.0[0], sent.entropy.0[1]);
        let (_, others) = configure(&[takes_config(), ready()]).await;
        assert_ne!(others[0].entropy, sent.entropy);
    }

    #[tokio::test(start_paused = true)]
    async fn a_configured_agent_is_left_alone() {
        let (facts, configs) = configure(&[ready(), ready()]).await;
        assert_eq!((facts.unwrap().boot_id.as_str(), configs.len()), ("b", 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_is_tried_again() {
        let hangs_up = (Some(Verdict::Unconfigured), None);
        let (facts, configs) = configure(&[(None, None), hangs_up, takes_config(), ready()]).await;
        assert_eq!((facts.unwrap().boot_id.as_str(), configs.len()), ("b", 2));
        // It has taken the configuration, and the answer was lost.
        let (facts, configs) = configure(&[(Some(Verdict::Unconfigured), None), ready(), ready()]).await;
        assert_eq!((facts.unwrap().boot_id.as_str(), configs.len()), ("b", 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_greeting_is_sent_again() {
        let (facts, configs) = configure(&[LOST, takes_config(), LOST, LOST, ready()]).await;
        assert_eq!((facts.unwrap().boot_id.as_str(), configs.len()), ("b", 1));
        let token = Token::from_text(config().token);
        let done = || (Some(Verdict::Welcome), Some(Frame::Done));
        let (link, _) = Guest::link(&[LOST, done(), LOST, done(), LOST, LOST]);
        link.thaw(VM, &token, Duration::from_secs(20)).await.unwrap();
        link.shutdown(VM, &token, Duration::from_secs(20)).await.unwrap();
        let late = link.shutdown(VM, &token, Duration::from_secs(20)).await;
        assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_guest_answers_wrongly_ends_the_wait() {
        let refusal = banger_proto::guest::Failure {
            kind: banger_proto::guest::FailureKind::Other,
            message: "cannot set the clock".into(),
        };
        for (turns, expect) in [
            (vec![takes_config(), takes_config()], "has no configuration yet"),
            (vec![(Some(Verdict::WrongToken), None)], "rejected the token"),
            (vec![(Some(Verdict::Unconfigured), Some(Frame::InputEnd))], "unexpected"),
            (vec![(Some(Verdict::Unconfigured), Some(Frame::Failed(refusal)))], "cannot set the clock"),
        ] {
            let (facts, _) = configure(&turns).await;
            let Err(Error::Unavailable { message }) = facts else { panic!("{facts:?}") };
            assert!(message.contains(expect), "{message}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_guest_is_a_timeout() {
        for turns in [vec![], vec![takes_config()]] {
            let (facts, _) = configure(&turns).await;
            assert!(matches!(facts, Err(Error::Timeout { after, .. }) if after.as_secs() == 20), "{facts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_configuration_that_is_too_large_is_not_sent() {
        let (link, seen) = Guest::link(&[takes_config()]);
        let config = GuestConfig { hostname: "x".repeat(MAX_CONFIG), ..config() };
        let error = link.configure(VM, &config, Duration::from_secs(20)).await.unwrap_err();
        assert!(error.to_string().contains("at most 2097152 fit"), "{error}");
        assert_eq!(*seen.lock().unwrap(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_agent_is_asked_and_stays_without_a_configuration() {
        let info = GuestInfo { early_devices: true, ..GuestInfo::default() };
        let waits = (Some(Verdict::Unconfigured), Some(Frame::Info(info)));
        let (link, seen) = Guest::link(&[(None, None), waits, ready()]);
        let timeout = Duration::from_secs(20);
        let guest = link.wait_unconfigured(VM, timeout).await.unwrap();
        assert_eq!(guest, UnconfiguredGuest { early_devices: true });
        assert_eq!(*seen.lock().unwrap(), [Frame::Request(Request::Info)]);
        let error = link.wait_unconfigured(VM, timeout).await.unwrap_err();
        assert!(error.to_string().contains("has a configuration already"), "{error}");
        let error = link.wait_unconfigured(VM, timeout).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
}
