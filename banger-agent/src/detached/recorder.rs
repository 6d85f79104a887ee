//! Records what a detached command writes and how it ends, in a thread of its own.

use std::{io, os::fd::OwnedFd};

use banger_proto::guest::message::Exit;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid},
};

use super::{
    log::Writer,
    now, power_off,
    session::Session,
    store::{self, Entry, Metadata},
};
use crate::{channels::InitKind, spawn::Running};

/// Records the output of a command and how it ended, and passes the output of a session on. Background processes of the
/// command may continue to write.
pub fn record(
    mut running: Running,
    session: Option<&Session>,
    entry: &Entry,
    mut metadata: Metadata,
    init: InitKind,
) -> io::Result<()> {
    let pidfd = pidfd_open(Pid::from_child(&running.child), PidfdFlags::empty())?;
    let mut writer = Writer::new(&entry.directory, entry.max_size);
    while metadata.exit.is_none() || running.output.is_some() || session.is_some_and(Session::is_pending) {
        let ended = wait_for_command(&running, &pidfd, session, metadata.exit.is_none())?;
        // Its output is written before its end is recorded.
        if ended || session.is_none_or(Session::has_room) {
            drain(&mut running.output, |bytes| {
                writer.write(bytes);
                if let Some(session) = session {
                    session.push(bytes);
                }
            })?;
        }
        if let Some(session) = session {
            session.flush();
        }
        if ended && let Some(exit) = exit_of(&running)? {
            metadata.exit = Some(exit);
            metadata.ended_usec = now();
            if let Err(error) = entry.save_end(&metadata) {
                crate::log::error(&format!(
                    "cannot save how the detached command {} ended: {error}",
                    entry.id
                ));
            }
            // A command whose process is gone has a recorded exit.
            running.child.wait()?;
            if let Some(session) = session {
                session.end(entry.id, exit);
            }
            if metadata.power_off {
                power_off(init);
            }
            running.group = None;
        }
    }
    store::prune();
    Ok(())
}

/// Returns how a command has ended, if it has. Its process stays.
fn exit_of(running: &Running) -> io::Result<Option<Exit>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let Some(status) = waitid(WaitId::Pid(Pid::from_child(&running.child)), options)? else {
        return Ok(None);
    };
    Ok(Some(match status.exit_status() {
        Some(code) => Exit::Code(code as u8),
        None => Exit::Signal(status.terminating_signal().unwrap_or_default() as u8),
    }))
}

/// Waits until there is something to do for a command. Returns whether it has ended.
fn wait_for_command(
    running: &Running,
    pidfd: &OwnedFd,
    session: Option<&Session>,
    runs: bool,
) -> io::Result<bool> {
    let mut fds = Vec::with_capacity(4);
    if runs {
        fds.push(PollFd::new(pidfd, PollFlags::IN));
    }
    let output = running.output.as_ref().filter(|_| session.is_none_or(Session::has_room));
    fds.extend(output.map(|output| PollFd::new(output, PollFlags::IN)));
    let waits = session.map(Session::waits_for);
    if let Some((wake, pipe)) = &waits {
        fds.push(PollFd::new(*wake, PollFlags::IN));
        fds.extend(pipe.as_ref().map(|pipe| PollFd::new(&**pipe, PollFlags::OUT)));
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ended = runs && fds.first().is_some_and(|first| !first.revents().is_empty());
    drop(fds);
    if let Some(session) = session {
        session.was_interrupted();
    }
    Ok(ended)
}

/// Reads from the pipe, at most its capacity, because a writer may add more all the time.
fn drain(output: &mut Option<OwnedFd>, mut write: impl FnMut(&[u8])) -> io::Result<()> {
    let mut bytes = vec![0; 16 << 10];
    for _ in 0..8 {
        let Some(fd) = output else { break };
        match rustix::io::read(&*fd, &mut bytes[..]) {
            // A terminal whose last process has exited reports this as an error.
            Ok(0) | Err(Errno::IO) => *output = None,
            Ok(count) => write(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
