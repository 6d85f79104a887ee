//! Waits for the boot before a command starts, and buffers what the host sends meanwhile.

use std::{collections::VecDeque, io};

use banger_proto::guest::{
    Exec, Frame, STDIN_WINDOW,
    frame::MAX_DATA,
    message::{Exit, Phase},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::Signal,
};

use crate::{
    exec::invalid,
    log,
    phases::{PhaseTracker, Waited},
    port::{PAUSE, Port, Received},
};

/// The key that interrupts a program in a terminal.
const INTERRUPT: u8 = 3;
/// Signals that do not end a program by default.
const HARMLESS: [Signal; 8] = [
    Signal::CHILD,
    Signal::CONT,
    Signal::STOP,
    Signal::TSTP,
    Signal::TTIN,
    Signal::TTOU,
    Signal::URG,
    Signal::WINCH,
];

/// Input that has arrived for a command before it started.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EarlyInput {
    pub input: VecDeque<u8>,
    pub ended: bool,
}

/// Waits until the guest has reached the phase that the command requires. Returns `None` if the command is no longer
/// wanted: the host has hung up, or has sent a signal that would end it.
pub fn wait(port: &mut Port, command: &mut Exec, phases: &PhaseTracker) -> io::Result<Option<EarlyInput>> {
    let mut early = EarlyInput::default();
    let mut waited = false;
    let ended = phases.wait(command.wait, || {
        waited = true;
        early.listen(port, command)
    })?;
    match ended {
        Waited::HungUp => return Ok(None),
        Waited::Late if waited => warn_late(port, command),
        Waited::Late | Waited::Reached => {}
    }
    Ok(Some(early))
}

/// Warns that the boot hangs. The command starts anyway, so that the user can find out why.
fn warn_late(port: &mut Port, command: &Exec) {
    let phase = match command.wait {
        Phase::Agent | Phase::Init => "the early part of its boot",
        Phase::Boot => "its boot",
    };
    let note = format!("the guest has not finished {phase} in time; the command begins anyway");
    log::error(&note);
    // Nobody reads the output of a detached command here.
    if !command.detach {
        let end = if command.terminal.is_some() { "\r\n" } else { "\n" };
        port.queue(&Frame::ErrorOutput(format!("banger: {note}{end}").into_bytes()));
    }
}

impl EarlyInput {
    /// Handles what the host sends within a while. Returns whether the command is still wanted.
    fn listen(&mut self, port: &mut Port, command: &mut Exec) -> io::Result<bool> {
        match poll(&mut [PollFd::new(&*port, PollFlags::IN)], Some(&PAUSE)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let hung_up = port.receive()? == Received::HungUp;
        while let Some(frame) = port.next_frame()? {
            if let Some(signal) = self.take(frame, command)? {
                port.send(&Frame::Exit(Exit::Signal(signal)))?;
                return Ok(false);
            }
        }
        Ok(!hung_up)
    }

    /// Handles a frame. Returns the signal that has ended the command before it started.
    fn take(&mut self, frame: Frame, command: &mut Exec) -> io::Result<Option<u8>> {
        match frame {
            Frame::Input(bytes) => {
                if command.terminal.is_some() && bytes.contains(&INTERRUPT) {
                    return Ok(Some(Signal::INT.as_raw() as u8));
                }
                self.input.extend(bytes);
                if self.input.len() > STDIN_WINDOW as usize + MAX_DATA {
                    return Err(invalid("the host sends more input than it may"));
                }
            }
            Frame::InputEnd => self.ended = true,
            Frame::Resize(size) => {
                if let Some(terminal) = &mut command.terminal {
                    terminal.size = size;
                }
            }
            Frame::Signal(number) => {
                let signal = Signal::from_named_raw(i32::from(number))
                    .ok_or_else(|| invalid("there is no such signal"))?;
                return Ok((!HARMLESS.contains(&signal)).then_some(number));
            }
            _ => return Err(invalid("the host sends a frame that has no meaning here")),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Write, os::unix::net::UnixStream};

    use banger_proto::guest::{Terminal, message::WindowSize};

    use super::*;
    use crate::{phases::InitSystem, test_host::command};

    /// Waits in a guest that never reaches the phase, while the host sends these frames and hangs up.
    fn check(exec: &mut Exec, frames: &[Frame]) -> (Option<EarlyInput>, Vec<u8>) {
        let (mut host, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        for frame in frames {
            host.write_all(&frame.encode()).unwrap();
        }
        host.shutdown(std::net::Shutdown::Write).unwrap();
        let phases = PhaseTracker::begin(InitSystem::OpenRc);
        let mut port = Port::new(theirs.into());
        let early = wait(&mut port, exec, &phases).unwrap();
        drop(port);
        let mut answer = Vec::new();
        io::Read::read_to_end(&mut host, &mut answer).unwrap();
        (early, answer)
    }

    fn in_terminal() -> Exec {
        let size = WindowSize { rows: 1, columns: 2 };
        Exec { terminal: Some(Terminal { term: "dumb".into(), size }), ..command(&["sh"]) }
    }

    #[test]
    fn a_signal_ends_a_command_that_has_not_begun() {
        let by = |signal| Frame::Exit(Exit::Signal(signal)).encode();
        let window = Frame::Signal(28);
        assert_eq!(check(&mut command(&["x"]), &[window, Frame::Signal(15)]), (None, by(15)));
        assert_eq!(check(&mut in_terminal(), &[Frame::Input(vec![b'x', 3])]), (None, by(2)));
        assert_eq!(check(&mut command(&["x"]), &[Frame::Input(vec![3])]), (None, Vec::new()));
    }

    #[test]
    fn a_terminal_that_changes_meanwhile_has_its_new_size() {
        let mut exec = in_terminal();
        let size = WindowSize { rows: 7, columns: 8 };
        assert_eq!(check(&mut exec, &[Frame::Resize(size)]).0, None);
        assert_eq!(exec.terminal.unwrap().size, size);
    }

    #[test]
    fn input_is_kept_and_bounded() {
        let mut early = EarlyInput::default();
        let mut exec = command(&["cat"]);
        assert_eq!(early.take(Frame::Input(b"abc".to_vec()), &mut exec).unwrap(), None);
        assert_eq!(early.take(Frame::InputEnd, &mut exec).unwrap(), None);
        assert_eq!(early, EarlyInput { input: b"abc".to_vec().into(), ended: true });
        let too_much = Frame::Input(vec![0; STDIN_WINDOW as usize + MAX_DATA]);
        assert!(early.take(too_much, &mut exec).is_err());
        assert!(early.take(Frame::Done, &mut exec).is_err());
    }

    #[test]
    fn a_command_that_waits_for_nothing_begins_at_once() {
        let (_host, theirs) = UnixStream::pair().unwrap();
        let mut exec = Exec { wait: Phase::Agent, ..command(&["true"]) };
        let phases = PhaseTracker::begin(InitSystem::OpenRc);
        let early = wait(&mut Port::new(theirs.into()), &mut exec, &phases).unwrap();
        assert_eq!(early, Some(EarlyInput::default()));
    }
}
