//! Runs a command: its input, output, terminal, signals and exit.
//!
//! When the command has ended, the output written by then is sent, and then its exit. Output of its background
//! processes is not waited for. When the host hangs up, the command's session gets a hangup, and is killed if that
//! does not end it.

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::ExitStatus,
    time::{Duration, Instant},
};

use banger_proto::guest::{
    Exec, Frame, STDIN_WINDOW,
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
    channels::InitKind,
    conversation::{kind_of, refuse},
    detached,
    port::{Port, Received},
    spawn::{self, Running},
};

/// Limit on output queued for the host, before reading from the command pauses.
const MAX_QUEUED: usize = 4 * MAX_DATA;
/// Interval of heartbeats, so that the host notices when the guest is gone.
const HEARTBEAT: Duration = Duration::from_secs(5);
const HEARTBEAT_POLL: Timespec = Timespec { tv_sec: HEARTBEAT.as_secs() as _, tv_nsec: 0 };
/// How long a session may take to end after a hangup.
const HANGUP_GRACE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Runs a command until it has ended or the host has hung up.
pub fn run(port: &mut Port, command: Exec, early: EarlyInput, init: InitKind) -> io::Result<()> {
    if command.detach {
        return detached::start(port, &command, init);
    }
    let running = match spawn::spawn(&command) {
        Ok(running) => running,
        Err(error) => return refuse_start(port, &command, &error),
    };
    let pid = running.child.id();
    port.queue(&Frame::Started(Started { pid, alive_sec: HEARTBEAT.as_secs() as u32 }));
    Session::new(running, early)?.run(port)
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

struct Session {
    running: Running,
    group: Pid,
    pidfd: OwnedFd,
    /// Input that the command has not read.
    pending: VecDeque<u8>,
    input_ended: bool,
    ended: Option<ExitStatus>,
}

/// The result of one poll.
struct Round {
    port: PollFlags,
    input: PollFlags,
    output: PollFlags,
    errors: PollFlags,
    ended: PollFlags,
}

impl Session {
    fn new(running: Running, early: EarlyInput) -> io::Result<Self> {
        let group = Pid::from_child(&running.child);
        let pidfd = pidfd_open(group, PidfdFlags::empty())?;
        let EarlyInput { input: pending, ended: input_ended } = early;
        Ok(Self { running, group, pidfd, pending, input_ended, ended: None })
    }

    fn run(mut self, port: &mut Port) -> io::Result<()> {
        let result = self.exchange(port);
        if self.ended.is_none() {
            self.hang_up()?;
        }
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
            if !round.ended.is_empty() {
                self.ended = self.running.child.try_wait()?;
            }
            if let Some(status) = self.ended {
                return self.finish(port, status);
            }
        }
    }

    fn poll(&self, port: &Port) -> io::Result<Round> {
        let port_events = if port.queued() == 0 { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::new(port, port_events), PollFd::new(&self.pidfd, PollFlags::IN)];
        let room = port.queued() < MAX_QUEUED;
        let output = add(&mut fds, &self.running.output, room, PollFlags::IN);
        let errors = add(&mut fds, &self.running.errors, room, PollFlags::IN);
        let input = add(&mut fds, &self.running.input, !self.pending.is_empty(), PollFlags::OUT);
        match poll(&mut fds, Some(&HEARTBEAT_POLL)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let at = |index: Option<usize>| index.map_or(PollFlags::empty(), |index| fds[index].revents());
        Ok(Round {
            port: at(Some(0)),
            ended: at(Some(1)),
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
                    if let Some(terminal) = &self.running.terminal {
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
        let Some(input) = &self.running.input else {
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
                    self.running.input = None;
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
        if let (Some(_), Some(input)) = (&self.running.terminal, &self.running.input) {
            // A terminal has no end of file except for the character that means it (termios(3): VEOF).
            let _ = rustix::io::write(input, &[4]);
        }
        self.running.input = None;
    }

    fn drain_output(&mut self, port: &mut Port) -> io::Result<()> {
        drain(&mut self.running.output, |bytes| port.queue(&Frame::Output(bytes)))
    }

    fn drain_errors(&mut self, port: &mut Port) -> io::Result<()> {
        drain(&mut self.running.errors, |bytes| port.queue(&Frame::ErrorOutput(bytes)))
    }

    /// Sends the remaining output of an ended command, and then how it ended.
    fn finish(&mut self, port: &mut Port, status: ExitStatus) -> io::Result<()> {
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
        let exit = match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code as u8),
            (None, signal) => Exit::Signal(signal.unwrap_or_default() as u8),
        };
        port.send(&Frame::Exit(exit)).map(drop)
    }

    /// Ends the session after the host has hung up.
    fn hang_up(&mut self) -> io::Result<()> {
        self.running.input = None;
        self.running.output = None;
        self.running.errors = None;
        self.running.terminal = None;
        for signal in [Signal::HUP, Signal::CONT] {
            self.signal(signal.as_raw() as u8)?;
        }
        poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&HANGUP_GRACE))?;
        self.signal(Signal::KILL.as_raw() as u8)?;
        self.ended = Some(self.running.child.wait()?);
        Ok(())
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
