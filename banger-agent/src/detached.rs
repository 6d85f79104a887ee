//! Commands that go on without a host. What they write is kept on the guest's disk, the last of it, with how they ended.
//! The host can list them, read what they wrote, and stop them.

mod log;
mod store;

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use banger_proto::guest::{
    Exec, FailureKind, Frame,
    message::{DetachedLog, Exit},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

pub use self::store::{begin, facts};
use self::{
    log::{Read, Reader, Writer},
    store::{About, Entry},
};
use crate::{
    cgroups,
    conversation::{kind_of, refuse},
    exec,
    port::{Port, Received},
    spawn::{self, Running},
};

/// Commands that may run at once. Each takes a thread of the agent and a pipe.
const MOST_RUNNING: usize = 64;
/// As much of a command line as is remembered, in bytes.
const MOST_COMMAND: usize = 1024;
/// How long a command may take to end after it was asked to, as long as with `docker stop`, and after it was killed.
const PATIENCE: [(Signal, Duration); 2] =
    [(Signal::TERM, Duration::from_secs(10)), (Signal::KILL, Duration::from_secs(5))];
/// Between two looks whether a command has ended, or has written more.
const LOOK: Duration = Duration::from_millis(100);
const STACK: usize = 64 << 10;

/// The threads that keep what commands write.
static KEEPERS: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Starts a command. Answered by its number and `Done`.
pub fn start(port: &mut Port, command: &Exec) -> io::Result<()> {
    match begin_command(command) {
        Ok(id) => {
            port.queue(&Frame::Output(id.to_string().into_bytes()));
            port.send(&Frame::Done).map(drop)
        }
        Err(error) => exec::refuse_start(port, command, &error),
    }
}

fn begin_command(command: &Exec) -> io::Result<u64> {
    store::prune();
    let running = |entry: &Entry| entry.about().is_ok_and(|about| about.is_running());
    if store::all().iter().filter(|entry| running(entry)).count() >= MOST_RUNNING {
        let message = format!("{MOST_RUNNING} detached commands run already");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let entry = store::make()?;
    let begun = spawn::spawn(command).and_then(|running| {
        let pid = running.child.id();
        let about = About {
            command: shortened(&command.argv.join(" ")),
            user: command.user.clone().unwrap_or_else(|| "root".to_owned()),
            pid,
            begun_ticks: store::begun_ticks(pid).unwrap_or_default(),
            boot_id: store::boot_id(),
            group: running.group.as_ref().map(|group| group.name().to_owned()),
            started_usec: now(),
            ended_usec: 0,
            exit: None,
        };
        entry.remember(&about)?;
        let id = entry.id;
        let kept = entry.clone();
        let keeper = thread::Builder::new().stack_size(STACK).spawn(move || {
            if let Err(error) = keep(running, &kept, about) {
                crate::log::error(&format!("the output of the detached command {id} is lost: {error}"));
            }
        })?;
        let mut keepers = KEEPERS.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.retain(|keeper| !keeper.is_finished());
        keepers.push(keeper);
        Ok(id)
    });
    if begun.is_err() {
        let _ = entry.forget();
    }
    begun
}

/// Waits until every command that was started has ended and closed its output.
pub fn wait() {
    let keepers = std::mem::take(&mut *KEEPERS.lock().unwrap_or_else(PoisonError::into_inner));
    for keeper in keepers {
        // One that panicked has said so.
        let _ = keeper.join();
    }
}

/// Keeps what a command writes, and how it ends. What it leaves running in the background may write on.
fn keep(mut running: Running, entry: &Entry, mut about: About) -> io::Result<()> {
    let pidfd = pidfd_open(Pid::from_child(&running.child), PidfdFlags::empty())?;
    let mut writer = Writer::new(&entry.directory, entry.most);
    while about.exit.is_none() || running.output.is_some() {
        let mut fds = Vec::with_capacity(2);
        fds.extend(running.output.as_ref().map(|output| PollFd::new(output, PollFlags::IN)));
        if about.exit.is_none() {
            fds.push(PollFd::new(&pidfd, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = about.exit.is_none() && fds.last().is_some_and(|last| !last.revents().is_empty());
        drop(fds);
        // Its output is written before its end is recorded.
        drain(&mut running.output, &mut writer)?;
        if ended && let Some(status) = running.child.try_wait()? {
            about.exit = Some(match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code as u8),
                (None, signal) => Exit::Signal(signal.unwrap_or_default() as u8),
            });
            about.ended_usec = now();
            entry.remember(&about)?;
            running.group = None;
        }
    }
    store::prune();
    Ok(())
}

/// Takes what is in the pipe, at most as much as one holds: there may be more at once.
fn drain(output: &mut Option<OwnedFd>, writer: &mut Writer) -> io::Result<()> {
    let mut bytes = vec![0; 16 << 10];
    for _ in 0..8 {
        let Some(fd) = output else { break };
        match rustix::io::read(&*fd, &mut bytes[..]) {
            Ok(0) => *output = None,
            Ok(count) => writer.write(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sends what a command wrote; with `follow`, until it has ended.
pub fn send_log(port: &mut Port, wanted: &DetachedLog) -> io::Result<()> {
    let Some(entry) = store::find(wanted.id) else { return refuse_unknown(port, wanted.id) };
    let failed = |port: &mut Port, error: io::Error| {
        refuse(port, kind_of(&error), &format!("cannot read what the command {} wrote: {error}", wanted.id))
    };
    let mut reader = match Reader::new(&entry.directory, wanted.lines) {
        Ok(reader) => reader,
        Err(error) => return failed(port, error),
    };
    loop {
        // Looked at first: all that it wrote is there once it has ended.
        let goes_on = wanted.follow && entry.about().is_ok_and(|about| about.is_running());
        loop {
            let frame = match reader.next() {
                Ok(Read::Bytes(bytes)) => Frame::Output(bytes),
                Ok(Read::Cut(bytes)) => Frame::ErrorOutput(format!("{bytes} bytes were cut here\n").into()),
                Ok(Read::End) => break,
                Err(error) => return failed(port, error),
            };
            if !port.send(&frame)? {
                return Ok(());
            }
        }
        if !goes_on {
            return port.send(&Frame::Done).map(drop);
        }
        if port.receive()? == Received::HungUp {
            return Ok(());
        }
        thread::sleep(LOOK);
    }
}

/// Ends a command: asks it first, and kills it with all that it started when it does not end.
pub fn stop(port: &mut Port, id: u64) -> io::Result<()> {
    let Some(entry) = store::find(id) else { return refuse_unknown(port, id) };
    let about = match entry.about() {
        Ok(about) => about,
        Err(error) => {
            return refuse(port, kind_of(&error), &format!("cannot stop the command {id}: {error}"));
        }
    };
    for (signal, patience) in PATIENCE {
        if !about.is_running() {
            break;
        }
        if let Some(group) = Pid::from_raw(about.pid as i32) {
            // It may have ended just now.
            let _ = kill_process_group(group, signal);
            let _ = kill_process_group(group, Signal::CONT);
        }
        let mut waited = Duration::ZERO;
        while waited < patience && entry.about().is_ok_and(|about| about.is_running()) {
            thread::sleep(LOOK);
            waited += LOOK;
        }
    }
    // What it left in the background.
    if let Some(group) = about.group.as_deref().filter(|_| about.is_of_this_boot()) {
        cgroups::kill(group);
    }
    match entry.about().is_ok_and(|about| about.is_running()) {
        true => refuse(port, FailureKind::Other, &format!("the command {id} does not end")),
        false => port.send(&Frame::Done).map(drop),
    }
}

fn refuse_unknown(port: &mut Port, id: u64) -> io::Result<()> {
    refuse(port, FailureKind::NotFound, &format!("there is no detached command {id}"))
}

/// What can be remembered of a command line.
fn shortened(command: &str) -> String {
    let end = (0..=MOST_COMMAND.min(command.len())).rev().find(|end| command.is_char_boundary(*end));
    command[..end.unwrap_or_default()].to_owned()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::guest::{Request, facts::Detached};

    use super::*;
    use crate::test_host::{Host, command};

    fn detach(script: &str) -> u64 {
        let exec = Exec { detach: true, ..command(&["sh", "-c", script]) };
        let (id, end) = Host::ask(Request::Exec(exec)).bytes();
        assert_eq!(end, Frame::Done);
        String::from_utf8(id).unwrap().parse().unwrap()
    }

    fn fact(id: u64) -> Detached {
        let (json, end) = Host::ask(Request::Detached).bytes();
        assert_eq!(end, Frame::Done);
        let facts: Vec<Detached> = serde_json::from_slice(&json).unwrap();
        facts.into_iter().find(|fact| fact.id == id).unwrap()
    }

    fn log(id: u64, lines: Option<u32>, follow: bool) -> (String, Frame) {
        let mut host = Host::ask(Request::DetachedLog(DetachedLog { id, lines, follow }));
        let (bytes, end) = host.bytes();
        (String::from_utf8(bytes).unwrap(), end)
    }

    #[test]
    fn what_a_detached_command_wrote_and_how_it_ended_is_kept() {
        let id = detach("echo out; echo err >&2; sleep 0.3; echo last; exit 7");
        // Followed to its end.
        assert_eq!(log(id, None, true), ("out\nerr\nlast\n".into(), Frame::Done));
        let fact = fact(id);
        assert_eq!((fact.running, fact.exit, fact.written), (false, Some(Exit::Code(7)), 13));
        assert!(fact.ended_usec > fact.started_usec && fact.command.starts_with("sh -c echo out"));
        assert_eq!(log(id, Some(1), false), ("last\n".into(), Frame::Done));
        for request in [
            Request::StopDetached(u64::MAX),
            Request::DetachedLog(DetachedLog { id: 0, lines: None, follow: true }),
        ] {
            let Frame::Failed(failure) = Host::ask(request).bytes().1 else { panic!() };
            assert_eq!(failure.kind, FailureKind::NotFound);
        }
        store::find(id).unwrap().forget().unwrap();
    }

    #[test]
    fn a_command_that_writes_without_end_fills_no_disk_and_can_be_stopped() {
        let id = detach("trap '' HUP; while :; do echo 0123456789012345678901234567890123456789; done");
        let most = 2 * store::find(id).unwrap().most;
        while fact(id).written < 2 * most {
            thread::sleep(LOOK);
        }
        assert!(fact(id).running && fact(id).kept <= most);
        assert_eq!(Host::ask(Request::StopDetached(id)).bytes().1, Frame::Done);
        let fact = fact(id);
        assert_eq!((fact.running, fact.exit), (false, Some(Exit::Signal(15))));
        let mut host = Host::ask(Request::DetachedLog(DetachedLog { id, lines: None, follow: false }));
        let (bytes, remarks, end) = host.copied();
        assert_eq!((bytes.len() as u64, end), (fact.kept, Frame::Done));
        assert_eq!(remarks, [format!("{} bytes were cut here", fact.written - fact.kept)]);
        store::find(id).unwrap().forget().unwrap();
    }

    #[test]
    fn a_command_that_cannot_be_started_is_refused_as_any_other() {
        let exec = Exec { detach: true, ..command(&["/nonexistent"]) };
        let Frame::Failed(failure) = Host::ask(Request::Exec(exec)).bytes().1 else { panic!() };
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert!(failure.message.starts_with("cannot run /nonexistent"), "{failure:?}");
    }
}
