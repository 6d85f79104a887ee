//! Runs a command: its input, output, terminal, signals and exit.
//!
//! When the command has ended, the output written by then is sent, and then its exit. Output of its background
//! processes is not waited for. When the host hangs up, the command's session gets a hangup, and is killed if that
//! does not end it.

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{Child, ExitStatus},
    sync::Arc,
    time::{Duration, Instant},
};

use banger_proto::guest::{
    Exec, FailureKind, Frame, STDIN_WINDOW,
    frame::MAX_DATA,
    message::{Exit, Started},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::{
    boot_wait::EarlyInput,
    cgroups::Group,
    channels::InitKind,
    conversation::{kind_of, refuse},
    detached::{self, session::Session},
    port::{Port, Received},
    spawn::{self, Running},
};

/// Limit on output queued for the host, before reading from the command pauses.
const MAX_QUEUED: usize = 4 * MAX_DATA;
/// Interval of heartbeats, so that the host notices when the guest is gone.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
const HEARTBEAT_POLL: Timespec = Timespec { tv_sec: HEARTBEAT.as_secs() as _, tv_nsec: 0 };
/// How long a session may take to end after a hangup.
const HANGUP_GRACE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Runs a command until it has ended or the host has hung up.
pub fn run(port: &mut Port, command: Exec, early: EarlyInput, init: InitKind) -> io::Result<()> {
    if let Some(name) = &command.session {
        return detached::session::start(port, &command, name, early, init);
    }
    if command.detach {
        return detached::start(port, &command, init);
    }
    let running = match spawn::spawn(&command) {
        Ok(running) => running,
        Err(error) => return refuse_start(port, &command, &error),
    };
    let pid = running.child.id();
    port.queue(&Frame::Started(Started { pid, alive_sec: HEARTBEAT.as_secs() as u32 }));
    Exchange::begin(running, early)?.run(port)
}

/// Replies why a command could not be started.
pub fn refuse_start(port: &mut Port, command: &Exec, error: &spawn::Error) -> io::Result<()> {
    match error {
        spawn::Error::Refused { kind, message } => refuse(port, *kind, message),
        spawn::Error::System(error) => {
            let program = command.argv.first().map_or("the login shell", String::as_str);
            refuse(port, kind_of(error), &format!("cannot run {program}: {error}"))
        }
    }
}

/// A conversation with a command: its input and output.
pub struct Exchange {
    group: Pid,
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    command: Command,
    /// Input that the command has not read.
    pending: VecDeque<u8>,
    input_ended: bool,
}

enum Command {
    /// A child, which ends with the conversation. Its group is removed with it.
    Child { child: Child, pidfd: OwnedFd, _group: Option<Group>, ended: bool },
    /// A session. The output ends when the session or this host's part in it has.
    Session { session: Arc<Session>, host: u64 },
}

/// A session to which a host is attached.
pub struct Attached {
    pub group: Pid,
    pub input: Option<OwnedFd>,
    pub output: OwnedFd,
    pub terminal: Option<OwnedFd>,
    /// The session, and the number of the host.
    pub session: (Arc<Session>, u64),
}

/// How a conversation ends.
pub enum Outcome {
    Exit(Exit),
    /// The command runs on without this host.
    Refused(String),
}

/// The result of one poll.
struct Round {
    port: PollFlags,
    input: PollFlags,
    output: PollFlags,
    errors: PollFlags,
    ended: PollFlags,
}

impl Exchange {
    fn begin(running: Running, early: EarlyInput) -> io::Result<Self> {
        let Running { child, input, output, errors, terminal, group: held } = running;
        let group = Pid::from_child(&child);
        let pidfd = pidfd_open(group, PidfdFlags::empty())?;
        let command = Command::Child { child, pidfd, _group: held, ended: false };
        let EarlyInput { input: pending, ended: input_ended } = early;
        Ok(Self { group, input, output, errors, terminal, command, pending, input_ended })
    }

    /// Attaches to a session.
    pub fn attached(attached: Attached, early: EarlyInput) -> Self {
        let Attached { group, input, output, terminal, session: (session, host) } = attached;
        let command = Command::Session { session, host };
        let EarlyInput { input: pending, ended: input_ended } = early;
        let (output, errors) = (Some(output), None);
        Self { group, input, output, errors, terminal, command, pending, input_ended }
    }

    /// Serves the host until the command has ended, or the host has hung up.
    pub fn run(mut self, port: &mut Port) -> io::Result<()> {
        let result = self.exchange(port);
        self.hang_up()?;
        result
    }

    fn exchange(&mut self, port: &mut Port) -> io::Result<()> {
        // Data that came together with the request causes no further event.
        if !self.listen(port)? {
            return Ok(());
        }
        self.feed(port)?;
        let mut last_sent = Instant::now();
        loop {
            if port.queued() == 0 && last_sent.elapsed() >= HEARTBEAT {
                port.queue(&Frame::Window(0));
            }
            if port.queued() > 0 {
                last_sent = Instant::now();
            }
            if !port.flush()? {
                return Ok(());
            }
            let round = self.poll(port)?;
            if !self.listen(port)? || round.port.contains(PollFlags::ERR) {
                return Ok(());
            }
            if !round.input.is_empty() || !self.pending.is_empty() || self.input_ended {
                self.feed(port)?;
            }
            if port.queued() < MAX_QUEUED {
                if !round.output.is_empty() {
                    self.drain_output(port)?;
                }
                if !round.errors.is_empty() {
                    self.drain_errors(port)?;
                }
            }
            if let Some(outcome) = self.outcome(&round)? {
                return self.finish(port, outcome);
            }
        }
    }

    /// Returns how the conversation ends, once it does.
    fn outcome(&mut self, round: &Round) -> io::Result<Option<Outcome>> {
        match &mut self.command {
            Command::Child { child, ended, .. } if !round.ended.is_empty() => {
                let status = child.try_wait()?;
                *ended = status.is_some();
                Ok(status.map(|status| Outcome::Exit(exit_of(status))))
            }
            Command::Session { session, host } if self.output.is_none() => Ok(Some(session.outcome(*host))),
            _ => Ok(None),
        }
    }

    fn poll(&self, port: &Port) -> io::Result<Round> {
        let port_events = if port.queued() == 0 { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::new(port, port_events)];
        let room = port.queued() < MAX_QUEUED;
        let ended = match &self.command {
            Command::Child { pidfd, .. } => {
                fds.push(PollFd::new(pidfd, PollFlags::IN));
                Some(1)
            }
            Command::Session { .. } => None,
        };
        let output = add(&mut fds, &self.output, room, PollFlags::IN);
        let errors = add(&mut fds, &self.errors, room, PollFlags::IN);
        let input = add(&mut fds, &self.input, !self.pending.is_empty(), PollFlags::OUT);
        match poll(&mut fds, Some(&HEARTBEAT_POLL)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let at = |index: Option<usize>| index.map_or(PollFlags::empty(), |index| fds[index].revents());
        Ok(Round {
            port: at(Some(0)),
            ended: at(ended),
            output: at(output),
            errors: at(errors),
            input: at(input),
        })
    }

    /// Handles what the host has sent. Returns `false` if it has hung up.
    fn listen(&mut self, port: &mut Port) -> io::Result<bool> {
        match port.receive()? {
            Received::HungUp => return Ok(false),
            Received::Nothing | Received::Bytes => {}
        }
        while let Some(frame) = port.next_frame()? {
            match frame {
                Frame::Input(bytes) => {
                    self.pending.extend(bytes);
                    if self.pending.len() > STDIN_WINDOW as usize + MAX_DATA {
                        return Err(invalid("the host sends more input than it may"));
                    }
                }
                Frame::InputEnd => self.input_ended = true,
                Frame::Resize(size) => {
                    if let Some(terminal) = &self.terminal {
                        spawn::resize(terminal, size)?;
                    }
                }
                Frame::Signal(number) => self.signal(number)?,
                _ => return Err(invalid("the host sends a frame that has no meaning here")),
            }
        }
        Ok(true)
    }

    fn signal(&self, number: u8) -> io::Result<()> {
        let signal =
            Signal::from_named_raw(i32::from(number)).ok_or_else(|| invalid("there is no such signal"))?;
        match kill_process_group(self.group, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes pending input that the command is ready to read.
    fn feed(&mut self, port: &mut Port) -> io::Result<()> {
        let Some(input) = &self.input else {
            // The command has closed its input, so further input is dropped.
            let dropped = self.pending.len() as u32;
            self.pending.clear();
            if dropped > 0 {
                port.queue(&Frame::Window(dropped));
            }
            return Ok(());
        };
        let mut given = 0u32;
        while !self.pending.is_empty() {
            match rustix::io::write(input, self.pending.as_slices().0) {
                Ok(count) => {
                    self.pending.drain(..count);
                    given += count as u32;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::IO) => {
                    self.input = None;
                    return self.feed(port);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if given > 0 {
            port.queue(&Frame::Window(given));
        }
        if self.input_ended && self.pending.is_empty() {
            self.end_input();
        }
        Ok(())
    }

    fn end_input(&mut self) {
        if let (Some(_), Some(input)) = (&self.terminal, &self.input) {
            // A terminal has no end of file except for the character that means it (termios(3): VEOF).
            let _ = rustix::io::write(input, &[4]);
        }
        if let Command::Session { session, .. } = &self.command {
            session.close_input();
        }
        self.input = None;
    }

    fn drain_output(&mut self, port: &mut Port) -> io::Result<()> {
        drain(&mut self.output, |bytes| port.queue(&Frame::Output(bytes)))
    }

    fn drain_errors(&mut self, port: &mut Port) -> io::Result<()> {
        drain(&mut self.errors, |bytes| port.queue(&Frame::ErrorOutput(bytes)))
    }

    /// Sends the remaining output of a command, and then how it ended.
    fn finish(&mut self, port: &mut Port, outcome: Outcome) -> io::Result<()> {
        loop {
            let before = port.queued();
            self.drain_output(port)?;
            self.drain_errors(port)?;
            if port.queued() == before {
                break;
            }
            if !port.flush()? {
                return Ok(());
            }
        }
        match outcome {
            Outcome::Exit(exit) => port.send(&Frame::Exit(exit)).map(drop),
            Outcome::Refused(why) => refuse(port, FailureKind::Other, &why),
        }
    }

    /// Ends a child that still runs, because the host has hung up. A session runs on.
    fn hang_up(&mut self) -> io::Result<()> {
        if matches!(self.command, Command::Session { .. } | Command::Child { ended: true, .. }) {
            return Ok(());
        }
        (self.input, self.output, self.errors, self.terminal) = (None, None, None, None);
        for signal in [Signal::HUP, Signal::CONT] {
            self.signal(signal.as_raw() as u8)?;
        }
        if let Command::Child { pidfd, .. } = &self.command {
            poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&HANGUP_GRACE))?;
        }
        self.signal(Signal::KILL.as_raw() as u8)?;
        if let Command::Child { child, ended, .. } = &mut self.command {
            child.wait()?;
            *ended = true;
        }
        Ok(())
    }
}

/// Returns how a process has ended.
pub fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code as u8),
        (None, signal) => Exit::Signal(signal.unwrap_or_default() as u8),
    }
}

/// Adds a descriptor to a poll if it is open and wanted. Returns its index.
fn add<'a>(
    fds: &mut Vec<PollFd<'a>>,
    fd: &'a Option<OwnedFd>,
    wanted: bool,
    events: PollFlags,
) -> Option<usize> {
    let fd = fd.as_ref().filter(|_| wanted)?;
    fds.push(PollFd::new(fd, events));
    Some(fds.len() - 1)
}

/// Reads once. At the end of the stream, closes the descriptor.
fn drain(from: &mut Option<OwnedFd>, mut give: impl FnMut(Vec<u8>)) -> io::Result<()> {
    let Some(fd) = from else { return Ok(()) };
    let mut bytes = vec![0; MAX_DATA];
    match rustix::io::read(&*fd, &mut bytes[..]) {
        // A terminal whose last process has exited reports this as an error.
        Ok(0) | Err(Errno::IO) => *from = None,
        Ok(count) => {
            bytes.truncate(count);
            give(bytes);
        }
        Err(Errno::AGAIN | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

pub fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
