//! Receives the configuration of this boot from the host, over the control channel.
//!
//! This is the point at which a VMM captures a guest as a template for others. So nothing before it belongs to one
//! sandbox, and nothing random was drawn: the only process is this one, no driver has probed a disk or a network
//! interface, and the host's entropy and time replace those of the capture before the configuration is used. A capture
//! may happen while the host is connected. Its children find the connection closed, and wait for the next one.
//!
//! The configuration is accepted once. The conversation needs no token: the guest has none yet, and no other process that
//! could have connected.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use banger_proto::{
    causes::without_codes,
    guest::{
        BootConfig, CHANNEL_PREFIX, FailureKind, Frame, GuestConfig, GuestInfo, Request, VSOCK_SERVICE_PORT,
    },
};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::{
    boot,
    channels::{self, PORTS, SUBSYSTEM},
    conversation::refuse,
    entropy, log,
    port::{Greeting, Port},
    uevents::Uevents,
    vsock,
};

/// The name of the control channel among the virtio ports.
const CONTROL: &str = "0";
/// Block devices and network interfaces of the sandbox, by the prefix of the kernel's name.
const DEVICES: [(&str, &str); 2] = [("/sys/block", "vd"), ("/sys/class/net", "eth")];

/// The control channel of a VMM with virtio ports. It stays open, so that nothing that the host sends is lost.
pub struct ControlPort {
    pub path: PathBuf,
    pub fd: OwnedFd,
}

/// Waits for the configuration, however long it takes. `problems` are those of the boot so far.
pub fn receive(problems: &[String]) -> io::Result<(GuestConfig, Option<ControlPort>)> {
    let mut waiting = Waiting::begin()?;
    loop {
        if let Some(received) = waiting.try_receive(problems)? {
            return Ok(received);
        }
        waiting.wait()?;
    }
}

/// Everything by which the host may connect.
struct Waiting {
    epoll: OwnedFd,
    events: Uevents,
    listener: Option<OwnedFd>,
    port: Option<(PathBuf, Port)>,
}

impl Waiting {
    fn begin() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let events = Uevents::of(SUBSYSTEM)?;
        watch(&epoll, &events, EventFlags::IN)?;
        let listener = vsock::listen_on(VSOCK_SERVICE_PORT)?;
        match &listener {
            Some(listener) => watch(&epoll, listener, EventFlags::IN)?,
            None if Path::new(PORTS).exists() => {}
            None => return Err(io::Error::other("the kernel has neither virtio ports nor a vsock")),
        }
        Ok(Self { epoll, events, listener, port: None })
    }

    /// Returns the configuration if the host has connected and sent it.
    fn try_receive(&mut self, problems: &[String]) -> io::Result<Option<(GuestConfig, Option<ControlPort>)>> {
        if self.port.is_none() {
            self.port = self.find_port()?;
        }
        while let Some((path, mut port)) = self.port.take() {
            if !channels::is_connected(&port)? {
                self.port = Some((path, port));
                break;
            }
            if let Some(config) = hold(&mut port, problems) {
                return Ok(Some((config, Some(ControlPort { path, fd: port.into_fd() }))));
            }
            self.port = Some((path, port));
        }
        while let Some(listener) = &self.listener {
            let connection = match vsock::accept(listener) {
                Ok(Some(connection)) => connection,
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            if let Some(config) = hold(&mut Port::new(connection), problems) {
                return Ok(Some((config, None)));
            }
        }
        Ok(None)
    }

    /// Opens the control channel, once the kernel has named it.
    fn find_port(&self) -> io::Result<Option<(PathBuf, Port)>> {
        let name = format!("{CHANNEL_PREFIX}{CONTROL}");
        let Some(path) = channels::find_ports(Path::new(PORTS), |found| found == name)?.into_iter().next()
        else {
            return Ok(None);
        };
        let fd = channels::open_port(&path)?;
        watch(&self.epoll, &fd, channels::CONNECTION_CHANGES)?;
        Ok(Some((path, Port::new(fd))))
    }

    fn wait(&self) -> io::Result<()> {
        let mut events = Vec::with_capacity(3);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.events.take().map(drop)
    }
}

fn watch(epoll: &OwnedFd, fd: impl AsFd, flags: EventFlags) -> io::Result<()> {
    Ok(epoll::add(epoll, fd, EventData::new_u64(0), flags)?)
}

/// Holds a conversation with the host. Returns the configuration if the host has sent it.
fn hold(port: &mut Port, problems: &[String]) -> Option<GuestConfig> {
    match converse(port, problems, apply) {
        Ok(config) => config,
        Err(error) => {
            // The next greeting starts over.
            log::info(&format!("a conversation ended early: {error}"));
            None
        }
    }
}

fn converse(
    port: &mut Port,
    problems: &[String],
    apply: impl Fn(&BootConfig) -> io::Result<()>,
) -> io::Result<Option<GuestConfig>> {
    if port.greet_unconfigured()? == Greeting::HungUp {
        return Ok(None);
    }
    match port.wait_frame()? {
        None => {}
        Some(Frame::Configure(config)) => match apply(&config) {
            Ok(()) => {
                // The configuration counts even if the host has gone: it is accepted only once.
                let _ = port.send(&Frame::Done);
                return Ok(Some(config.guest));
            }
            Err(error) => refuse(port, FailureKind::Other, &error.to_string())?,
        },
        Some(Frame::Request(Request::Info)) => drop(port.send(&Frame::Info(info(problems)))?),
        Some(_) => refuse(port, FailureKind::BadRequest, "the guest has no configuration yet")?,
    }
    Ok(None)
}

/// Sets the random number generator and the clock of the guest to what the host says.
fn apply(config: &BootConfig) -> io::Result<()> {
    let failed =
        |what: &str, error: io::Error| io::Error::new(error.kind(), format!("cannot {what}: {error}"));
    entropy::reseed(&config.entropy).map_err(|error| failed("seed the random number generator", error))?;
    boot::set_time(config.guest.unix_usec).map_err(|error| failed("set the clock", error))
}

/// Returns the facts that do not depend on a sandbox. The boot id is left alone: the kernel draws it when it is first
/// read, so every child of a capture would have the same one.
fn info(problems: &[String]) -> GuestInfo {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    GuestInfo {
        kernel_release: release.trim().to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        problems: problems.iter().map(|problem| without_codes(problem)).collect(),
        early_devices: DEVICES.iter().any(|(directory, prefix)| has_entry(Path::new(directory), prefix)),
        ..GuestInfo::default()
    }
}

fn has_entry(directory: &Path, prefix: &str) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{cell::Cell, io::Write, os::unix::net::UnixStream};

    use banger_proto::guest::{
        Decoder,
        config::{Entropy, Init, Programs},
        hello::{self, HostHello},
    };

    use super::*;

    fn config() -> BootConfig {
        let guest = GuestConfig {
            token: "0123456789abcdef0123456789abcdef".into(),
            hostname: "box".into(),
            names: Vec::new(),
            root_device: "/dev/vda".into(),
            work_disk: None,
            module_disk: None,
            init: Init::Auto,
            unix_usec: 1,
            network: None,
            ssh: None,
            timezone: None,
            programs: Programs::default(),
            files: Vec::new(),
        };
        BootConfig { guest, entropy: Entropy([[7; 32], [8; 32]]) }
    }

    fn hello() -> HostHello {
        HostHello::new([5; 16], "00000000000000000000000000000000").unwrap()
    }

    /// Sends these bytes, and returns the result of the conversation, how often a configuration was applied, and the
    /// frames of the answer.
    fn against(
        sent: &[u8],
        apply: impl Fn() -> io::Result<()>,
    ) -> (io::Result<Option<GuestConfig>>, u32, Vec<Frame>) {
        let (mut host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        host.write_all(sent).unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        let applied = Cell::new(0);
        let held = {
            let mut port = Port::new(guest.into());
            converse(&mut port, &["it rains".to_owned()], |_| {
                applied.set(applied.get() + 1);
                apply()
            })
        };
        let mut answer = Vec::new();
        io::Read::read_to_end(&mut host, &mut answer).unwrap();
        if sent.starts_with(&hello().encode()) {
            assert_eq!(hello::take_answer(&mut answer, &hello()), Err(hello::Error::Unconfigured));
        }
        let (mut decoder, mut frames) = (Decoder::new(answer), Vec::new());
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
        (held, applied.get(), frames)
    }

    fn after_hello(frame: &Frame) -> Vec<u8> {
        [hello().encode().to_vec(), frame.encode()].concat()
    }

    #[test]
    fn a_configuration_is_applied_before_it_is_confirmed() {
        let (held, applied, answer) = against(&after_hello(&Frame::Configure(Box::new(config()))), || Ok(()));
        assert_eq!(held.unwrap(), Some(config().guest));
        assert_eq!((applied, answer), (1, vec![Frame::Done]));
    }

    #[test]
    fn a_configuration_that_cannot_be_applied_is_refused() {
        let sent = after_hello(&Frame::Configure(Box::new(config())));
        let (held, _, answer) = against(&sent, || Err(io::Error::other("cannot set the clock")));
        assert_eq!(held.unwrap(), None);
        let [Frame::Failed(failure)] = answer.as_slice() else { panic!("{answer:?}") };
        assert_eq!(failure.message, "cannot set the clock");
    }

    #[test]
    fn a_question_gets_facts_without_a_boot_id() {
        let (held, applied, answer) = against(&after_hello(&Frame::Request(Request::Info)), || Ok(()));
        assert_eq!((held.unwrap(), applied), (None, 0));
        let [Frame::Info(info)] = answer.as_slice() else { panic!("{answer:?}") };
        assert_eq!((info.boot_id.as_str(), info.phases.agent), ("", None));
        assert_eq!(info.problems, ["it rains"]);
    }

    #[test]
    fn everything_else_leaves_the_agent_without_a_configuration() {
        let whole = after_hello(&Frame::Configure(Box::new(config())));
        for (sent, expect) in [
            (after_hello(&Frame::Request(Request::Shutdown)), 1),
            (after_hello(&Frame::InputEnd), 1),
            (hello().encode().to_vec(), 0),
            (whole[..whole.len() - 1].to_vec(), 0),
            (Frame::Configure(Box::new(config())).encode(), 0),
            ([hello().encode().as_slice(), b"\xff\xff\xff\xff\x06"].concat(), 0),
        ] {
            let (held, applied, answer) = against(&sent, || Ok(()));
            assert!(!matches!(held, Ok(Some(_))), "{sent:?}");
            assert_eq!((applied, answer.len()), (0, expect), "{answer:?}");
        }
    }

    #[test]
    fn devices_are_found_by_their_prefix() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["lo", "loop0", "ram0"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert!(!has_entry(directory.path(), "vd"));
        fs::write(directory.path().join("vda"), "").unwrap();
        assert!(has_entry(directory.path(), "vd"));
        assert!(!has_entry(Path::new("/nonexistent"), "vd"));
    }
}
