//! Sessions: detached commands with an input, to which a host attaches as often as it likes.
//!
//! A session is recorded as every detached command. Its recorder also passes the output on to the attached host, by a
//! pipe: for the host's conversation, an attached session is a command with pipes ([`exec`]). When the host hangs up,
//! nothing happens to the command. A host that reads slowly slows the command down, as a terminal does; without a host,
//! the command never waits.
//!
//! One host is attached at a time. The next one takes over, because the connection of the first may be half open.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use banger_proto::guest::{
    Exec, FailureKind, Frame,
    frame::MAX_DATA,
    message::{Attach, Exit, Started, WindowSize, is_session_name},
};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process_group},
    termios::tcgetpgrp,
};

use super::{
    log::{Read, Reader},
    store,
};
use crate::{
    boot_wait::EarlyInput,
    channels::InitKind,
    conversation::refuse,
    exec::{self, Attached, Exchange, HEARTBEAT, Outcome},
    port::Port,
    spawn::{self, Running},
};

/// Limit on sessions that run at the same time; the other detached commands are for what needs no input.
const MAX_SESSIONS: usize = 32;
/// How much of the earlier output a host gets when it attaches.
const REPLAY: usize = 64 << 10;
/// Limit on output that waits for the attached host.
const MAX_PENDING: usize = 4 * MAX_DATA;

/// The sessions that run, by the numbers of their commands.
static SESSIONS: Mutex<BTreeMap<u64, Arc<Session>>> = Mutex::new(BTreeMap::new());

/// A running session.
pub struct Session {
    name: String,
    pid: Pid,
    terminal: Option<OwnedFd>,
    /// Interrupts the recorder's wait.
    wake: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    input: Option<OwnedFd>,
    /// The end of the output so far.
    tail: VecDeque<u8>,
    host: Option<Host>,
    last_host: u64,
    exit: Option<Exit>,
}

/// The attached host.
struct Host {
    number: u64,
    /// The write end of its pipe.
    pipe: Arc<OwnedFd>,
    pending: VecDeque<u8>,
}

fn all() -> MutexGuard<'static, BTreeMap<u64, Arc<Session>>> {
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether a host is attached to the session with this number.
pub fn is_attached(id: u64) -> bool {
    all().get(&id).is_some_and(|session| session.state().host.is_some())
}

/// Starts a session and attaches the host to it. Without a command, attaches it to the session if it runs already.
pub fn start(
    port: &mut Port,
    command: &Exec,
    name: &str,
    early: EarlyInput,
    init: InitKind,
) -> io::Result<()> {
    if !is_session_name(name) {
        return refuse(port, FailureKind::BadRequest, "the name of the session is not valid");
    }
    if let Some(session) = find(name) {
        if command.argv.is_empty() && !command.of_image {
            let size = command.terminal.as_ref().map(|terminal| terminal.size);
            return session.serve(port, size, early);
        }
        return refuse(port, FailureKind::AlreadyExists, &format!("a session {name} runs already"));
    }
    match super::begin_command(command, Some(name), init) {
        Ok((_, Some(session))) => session.serve(port, None, early),
        Ok((_, None)) => refuse(port, FailureKind::Other, &format!("the session {name} was not kept")),
        Err(error) => exec::refuse_start(port, command, &error),
    }
}

/// Attaches the host to a session. One that has ended replies with the end of its output, and how it ended.
pub fn attach(port: &mut Port, wanted: &Attach) -> io::Result<()> {
    if let Some(session) = find(&wanted.session) {
        return session.serve(port, wanted.size, EarlyInput::default());
    }
    let is_wanted = |entry: &store::Entry| {
        entry.metadata().is_ok_and(|found| found.session.as_deref() == Some(wanted.session.as_str()))
    };
    let Some(entry) = store::all().into_iter().rfind(is_wanted) else {
        let message = format!("there is no session {}", wanted.session);
        return refuse(port, FailureKind::NotFound, &message);
    };
    let Some(exit) = entry.metadata()?.exit else {
        let message = format!("the session {} was lost with the guest", wanted.session);
        return refuse(port, FailureKind::NotFound, &message);
    };
    port.queue(&Frame::Started(Started::new(0)));
    let mut reader = Reader::of_last_bytes(&entry.directory, REPLAY as u64);
    loop {
        match reader.next()? {
            Read::Bytes(bytes) => {
                if !port.send(&Frame::Output(bytes))? {
                    return Ok(());
                }
            }
            Read::Cut(_) => {}
            Read::End => break,
        }
    }
    port.send(&Frame::Exit(exit)).map(drop)
}

fn find(name: &str) -> Option<Arc<Session>> {
    all().values().find(|session| session.name == name).cloned()
}

/// Forgets a session whose recorder has ended.
pub fn forget(id: u64) {
    all().remove(&id);
}

/// Checks that a session may start.
pub fn admit(name: &str) -> Result<(), spawn::Error> {
    let (kind, message) = match (find(name), all().len()) {
        (Some(_), _) => (FailureKind::AlreadyExists, format!("a session {name} runs already")),
        (None, MAX_SESSIONS..) => (FailureKind::BadRequest, format!("{MAX_SESSIONS} sessions run already")),
        (None, _) => return Ok(()),
    };
    Err(spawn::Error::Refused { kind, message })
}

impl Session {
    /// Registers a session. Takes the input of its command, which keeps its output.
    pub fn begin(id: u64, name: &str, running: &mut Running) -> io::Result<Arc<Self>> {
        let state = State { input: running.input.take(), ..State::default() };
        let session = Arc::new(Self {
            name: name.to_owned(),
            pid: Pid::from_child(&running.child),
            terminal: running.terminal.take(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: Mutex::new(state),
        });
        all().insert(id, Arc::clone(&session));
        Ok(session)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a host until the command ends, another host takes over, or this one hangs up.
    fn serve(
        self: &Arc<Self>,
        port: &mut Port,
        size: Option<WindowSize>,
        early: EarlyInput,
    ) -> io::Result<()> {
        let (number, output) = self.enter()?;
        let pid = self.pid.as_raw_nonzero().get().unsigned_abs();
        port.queue(&Frame::Started(Started { pid, alive_sec: HEARTBEAT.as_secs() as u32 }));
        if let (Some(terminal), Some(size)) = (&self.terminal, size) {
            spawn::resize(terminal, size)?;
            redraw(terminal);
        }
        let clone = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        let running = Attached {
            group: self.pid,
            input: clone(&self.state().input)?,
            output,
            terminal: clone(&self.terminal)?,
            session: (Arc::clone(self), number),
        };
        let served = Exchange::attached(running, early).run(port);
        self.leave(number);
        served
    }

    /// Attaches a host instead of the one before. Returns its number, and where its output comes from.
    fn enter(&self) -> io::Result<(u64, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let mut state = self.state();
        state.last_host += 1;
        let (number, pending) = (state.last_host, replay(&state.tail));
        state.host = Some(Host { number, pipe: Arc::new(write), pending });
        if state.exit.is_some() {
            state.flush();
        }
        drop(state);
        self.interrupt();
        Ok((number, read))
    }

    fn leave(&self, number: u64) {
        let mut state = self.state();
        if state.host.as_ref().is_some_and(|host| host.number == number) {
            state.host = None;
        }
        drop(state);
        self.interrupt();
    }

    /// Returns why the output of a host has ended.
    pub fn outcome(&self, number: u64) -> Outcome {
        let state = self.state();
        match state.exit {
            Some(exit) if state.last_host == number => Outcome::Exit(exit),
            None if state.last_host == number => {
                Outcome::Refused(format!("the output of the session {} is lost", self.name))
            }
            _ => Outcome::Refused(format!("another client has attached to the session {}", self.name)),
        }
    }

    /// Interrupts the wait of the recorder.
    fn interrupt(&self) {
        // It cannot be full.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Ends the input of a command without a terminal.
    pub fn close_input(&self) {
        if self.terminal.is_none() {
            self.state().input = None;
        }
    }

    // What follows is the recorder's part.

    /// Returns whether more output can be passed on.
    pub fn has_room(&self) -> bool {
        self.state().host.as_ref().is_none_or(|host| host.pending.len() < MAX_PENDING)
    }

    /// Returns what the recorder has to wait for besides the output: a wish to interrupt it, and room in the pipe.
    pub fn waits_for(&self) -> (&OwnedFd, Option<Arc<OwnedFd>>) {
        let state = self.state();
        let pipe = state.host.as_ref().filter(|host| !host.pending.is_empty());
        (&self.wake, pipe.map(|host| Arc::clone(&host.pipe)))
    }

    /// Takes note of an interruption.
    pub fn was_interrupted(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8][..]);
    }

    /// Passes output on.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.tail.extend(bytes);
        let excess = state.tail.len().saturating_sub(REPLAY);
        state.tail.drain(..excess);
        if let Some(host) = &mut state.host {
            host.pending.extend(bytes);
        }
    }

    /// Writes to the pipe of the host what it takes now.
    pub fn flush(&self) {
        self.state().flush();
    }

    /// Ends the session: hosts that attach later find its record. Its name is free before its host learns of the end.
    pub fn end(&self, id: u64, exit: Exit) {
        forget(id);
        let mut state = self.state();
        state.exit = Some(exit);
        state.input = None;
        state.flush();
    }

    /// Drops the host: nothing passes output on to it any more.
    pub fn drop_host(&self) {
        self.state().host = None;
    }

    /// Returns whether the host has not got everything yet.
    pub fn is_pending(&self) -> bool {
        self.state().host.is_some()
    }
}

impl State {
    fn flush(&mut self) {
        let Some(host) = &mut self.host else { return };
        while !host.pending.is_empty() {
            match rustix::io::write(&*host.pipe, host.pending.as_slices().0) {
                Ok(count) => drop(host.pending.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // It has gone.
                Err(_) => {
                    self.host = None;
                    return;
                }
            }
        }
        if self.exit.is_some() {
            // The end of the pipe tells the host's conversation.
            self.host = None;
        }
    }
}

/// Returns the kept output from the beginning of a line or of a control sequence.
fn replay(tail: &VecDeque<u8>) -> VecDeque<u8> {
    if tail.len() < REPLAY {
        return tail.clone();
    }
    let begin = tail.iter().position(|byte| matches!(byte, b'\n' | 0x1b)).unwrap_or_default();
    tail.range(begin..).copied().collect()
}

/// Has the program in a terminal draw everything again.
fn redraw(terminal: &OwnedFd) {
    if let Ok(group) = tcgetpgrp(terminal) {
        // It may have ended just now.
        let _ = kill_process_group(group, Signal::WINCH);
    }
}

#[cfg(test)]
mod tests;
