//! Commands that run without a host. The last part of their output and their exit are kept on the guest's disk. The
//! host can list them, read their output, and stop them.

mod log;
mod recorder;
pub mod session;
mod store;

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use banger_proto::{
    count::counted,
    guest::{Exec, FailureKind, Frame, message::DetachedLog},
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};

pub use self::store::{facts, is_in_guest};
use self::{
    log::{Read, Reader},
    session::Session,
    store::{Entry, Metadata},
};
use crate::{
    cgroups,
    channels::InitKind,
    conversation::{kind_of, refuse},
    exec,
    port::{Port, Received},
    power,
    spawn::{self, Running},
};

/// Limit on commands that run at the same time. Each takes a thread of the agent and a pipe.
const MAX_RUNNING: usize = 64;
/// Limit on the recorded command line, in bytes.
const MAX_COMMAND_TEXT: usize = 1024;
/// Signals that stop a command, and how long to wait after each; the first as long as `docker stop` does.
const STOP_SEQUENCE: [(Signal, Duration); 2] =
    [(Signal::TERM, Duration::from_secs(10)), (Signal::KILL, Duration::from_secs(5))];
/// Poll interval for the end of a command and for new output.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const THREAD_STACK: usize = 64 << 10;
/// How long the hosts that wait for an exit may take to receive it before the guest powers off.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// The threads that record output.
static RECORDERS: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());
/// How many hosts wait for an exit.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Keeps records on the guest's disk from now on. Powers the guest off if an earlier boot ran a command that was to
/// do that at its end, and did not see it end.
pub fn begin(init: InitKind) -> io::Result<()> {
    store::begin();
    let mut is_over = false;
    for entry in store::all() {
        if let Ok(metadata) = entry.metadata()
            && metadata.power_off
            && metadata.exit.is_none()
        {
            // Once: the sandbox may be started again on purpose.
            is_over |= entry.save(&Metadata { power_off: false, ..metadata }).is_ok();
        }
    }
    if is_over {
        thread::Builder::new().stack_size(THREAD_STACK).spawn(move || power_off(init))?;
    }
    Ok(())
}

/// Starts a command. Replies with its number and `Done`.
pub fn start(port: &mut Port, command: &Exec, init: InitKind) -> io::Result<()> {
    match begin_command(command, None, init) {
        Ok((id, _)) => {
            port.queue(&Frame::Output(id.to_string().into_bytes()));
            port.send(&Frame::Done).map(drop)
        }
        Err(error) => exec::refuse_start(port, command, &error),
    }
}

/// Starts a command, or a session with this name. Returns its number.
fn begin_command(
    command: &Exec,
    session: Option<&str>,
    init: InitKind,
) -> Result<(u64, Option<Arc<Session>>), spawn::Error> {
    // Names and limits are checked by one at a time.
    static STARTING: Mutex<()> = Mutex::new(());
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    store::prune();
    session.map_or(Ok(()), session::admit)?;
    let running = |entry: &Entry| entry.metadata().is_ok_and(|metadata| metadata.is_running());
    if store::all().iter().filter(|entry| running(entry)).count() >= MAX_RUNNING {
        let message = format!("{MAX_RUNNING} detached commands run already");
        return Err(spawn::Error::Refused { kind: FailureKind::BadRequest, message });
    }
    let entry = store::create()?;
    let begun =
        spawn::spawn(command).and_then(|running| Ok(keep_or_end(running, &entry, command, session, init)?));
    if begun.is_err() {
        let _ = entry.remove();
    }
    begun
}

/// Keeps a started command, or ends it with everything that it started if that fails.
fn keep_or_end(
    running: Running,
    entry: &Entry,
    command: &Exec,
    session: Option<&str>,
    init: InitKind,
) -> io::Result<(u64, Option<Arc<Session>>)> {
    let pid = Pid::from_child(&running.child);
    let group = running.group.as_ref().map(|group| group.name().to_owned());
    let kept = keep(running, entry, command, session, init);
    if kept.is_err() {
        session::forget(entry.id);
        // It may have ended just now.
        let _ = kill_process_group(pid, Signal::KILL);
        if let Some(group) = group {
            cgroups::kill(&group);
        }
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
    kept
}

/// Records a command in a thread of its own.
fn keep(
    mut running: Running,
    entry: &Entry,
    command: &Exec,
    session: Option<&str>,
    init: InitKind,
) -> io::Result<(u64, Option<Arc<Session>>)> {
    let pid = running.child.id();
    let metadata = Metadata {
        command: truncated(&command.argv.join(" ")),
        user: command.user.clone().unwrap_or_else(|| "root".to_owned()),
        pid,
        start_ticks: store::start_ticks(pid).unwrap_or_default(),
        boot_id: store::boot_id(),
        group: running.group.as_ref().map(|group| group.name().to_owned()),
        started_usec: now(),
        ended_usec: 0,
        exit: None,
        power_off: command.power_off,
        session: session.map(str::to_owned),
        terminal: running.terminal.is_some(),
    };
    entry.save(&metadata)?;
    let id = entry.id;
    let kept = entry.clone();
    let session = session.map(|name| Session::begin(id, name, &mut running)).transpose()?;
    let recorded = session.clone();
    let recorder = thread::Builder::new().stack_size(THREAD_STACK).spawn(move || {
        if let Err(error) = recorder::record(running, recorded.as_deref(), &kept, metadata, init) {
            crate::log::error(&format!("the output of the detached command {id} is lost: {error}"));
        }
        if let Some(session) = recorded {
            session.drop_host();
        }
        session::forget(id);
    })?;
    let mut keepers = RECORDERS.lock().unwrap_or_else(PoisonError::into_inner);
    keepers.retain(|recorder| !recorder.is_finished());
    keepers.push(recorder);
    Ok((id, session))
}

/// Waits until every started command has ended and closed its output.
pub fn wait() {
    let keepers = std::mem::take(&mut *RECORDERS.lock().unwrap_or_else(PoisonError::into_inner));
    for recorder in keepers {
        // A panic has been reported by the thread.
        let _ = recorder.join();
    }
}

/// Powers the guest off, after the hosts that wait for an exit had time to receive it.
fn power_off(init: InitKind) {
    let mut waited = Duration::ZERO;
    while WAITING.load(Ordering::Relaxed) > 0 && waited < FAREWELL_TIMEOUT {
        thread::sleep(POLL_INTERVAL);
        waited += POLL_INTERVAL;
    }
    // Outside a guest, this program serves tests.
    if is_in_guest() {
        rustix::fs::sync();
        if let Err(error) = power::power_off_guest(init) {
            crate::log::error(&format!("cannot power off after the last command: {error}"));
        }
    }
}

/// Sends the output of a command; with `follow`, until it has ended.
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
        // Checked first: the output is complete once the command has ended.
        let still_running = wanted.follow && entry.metadata().is_ok_and(|metadata| metadata.is_running());
        loop {
            let frame = match reader.next() {
                Ok(Read::Bytes(bytes)) => Frame::Output(bytes),
                Ok(Read::Cut(bytes)) => {
                    let verb = if bytes == 1 { "was" } else { "were" };
                    Frame::ErrorOutput(format!("{} {verb} cut here\n", counted(bytes, "byte")).into())
                }
                Ok(Read::End) => break,
                Err(error) => return failed(port, error),
            };
            if !port.send(&frame)? {
                return Ok(());
            }
        }
        if !still_running {
            return port.send(&Frame::Done).map(drop);
        }
        if port.receive()? == Received::HungUp {
            return Ok(());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Sends the exit of a command, once it has ended.
pub fn send_exit(port: &mut Port, id: u64) -> io::Result<()> {
    WAITING.fetch_add(1, Ordering::Relaxed);
    let sent = wait_and_send_exit(port, id);
    WAITING.fetch_sub(1, Ordering::Relaxed);
    sent
}

fn wait_and_send_exit(port: &mut Port, id: u64) -> io::Result<()> {
    let Some(entry) = store::find(id) else { return refuse_unknown(port, id) };
    loop {
        match entry.state() {
            Ok((Metadata { exit: Some(exit), .. }, _)) => return port.send(&Frame::Exit(exit)).map(drop),
            Ok((_, true)) => {}
            Ok((_, false)) => {
                let message = format!("the command {id} was lost with the guest");
                return refuse(port, FailureKind::Other, &message);
            }
            Err(error) => {
                let message = format!("cannot wait for the command {id}: {error}");
                return refuse(port, kind_of(&error), &message);
            }
        }
        if port.receive()? == Received::HungUp {
            return Ok(());
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Stops a command: signals it first, and kills it with everything that it started if it does not end.
pub fn stop(port: &mut Port, id: u64) -> io::Result<()> {
    let Some(entry) = store::find(id) else { return refuse_unknown(port, id) };
    let metadata = match entry.metadata() {
        Ok(metadata) => metadata,
        Err(error) => {
            return refuse(port, kind_of(&error), &format!("cannot stop the command {id}: {error}"));
        }
    };
    for (signal, timeout) in STOP_SEQUENCE {
        if !metadata.is_running() {
            break;
        }
        if let Some(group) = Pid::from_raw(metadata.pid as i32) {
            // It may have ended just now.
            let _ = kill_process_group(group, signal);
            if metadata.session.is_some() {
                // A shell with a terminal ignores the first of them.
                let _ = kill_process_group(group, Signal::HUP);
            }
            let _ = kill_process_group(group, Signal::CONT);
        }
        let mut waited = Duration::ZERO;
        while waited < timeout && entry.metadata().is_ok_and(|metadata| metadata.is_running()) {
            thread::sleep(POLL_INTERVAL);
            waited += POLL_INTERVAL;
        }
    }
    // Its background processes.
    if let Some(group) = metadata.group.as_deref().filter(|_| metadata.is_of_this_boot()) {
        cgroups::kill(group);
    }
    match entry.metadata().is_ok_and(|metadata| metadata.is_running()) {
        true => refuse(port, FailureKind::Other, &format!("the command {id} does not end")),
        false => port.send(&Frame::Done).map(drop),
    }
}

fn refuse_unknown(port: &mut Port, id: u64) -> io::Result<()> {
    refuse(port, FailureKind::NotFound, &format!("there is no detached command {id}"))
}

/// Truncates a command line to what is recorded.
fn truncated(command: &str) -> String {
    let end = (0..=MAX_COMMAND_TEXT.min(command.len())).rev().find(|end| command.is_char_boundary(*end));
    command[..end.unwrap_or_default()].to_owned()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::guest::{Request, facts::Detached, message::Exit};

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
    fn the_output_and_exit_of_a_detached_command_are_kept() {
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
        store::find(id).unwrap().remove().unwrap();
    }

    #[test]
    fn a_host_that_waits_for_a_command_gets_its_exit() {
        let id = detach("sleep 0.3; exit 7");
        for _ in 0..2 {
            assert_eq!(Host::ask(Request::WaitDetached(id)).bytes().1, Frame::Exit(Exit::Code(7)));
        }
        let entry = store::find(id).unwrap();
        let lost = Metadata { exit: None, boot_id: "earlier".into(), ..entry.metadata().unwrap() };
        entry.save(&lost).unwrap();
        for (id, kind) in [(id, FailureKind::Other), (u64::MAX, FailureKind::NotFound)] {
            let Frame::Failed(failure) = Host::ask(Request::WaitDetached(id)).bytes().1 else { panic!() };
            assert_eq!(failure.kind, kind, "{failure:?}");
        }
        entry.remove().unwrap();
    }

    #[test]
    fn the_exit_of_a_command_is_known_when_it_does_not_run() {
        for _ in 0..50 {
            let entry = store::find(detach("exit 7")).unwrap();
            let metadata = loop {
                if let (metadata, false) = entry.state().unwrap() {
                    break metadata;
                }
            };
            assert_eq!(metadata.exit, Some(Exit::Code(7)));
            entry.remove().unwrap();
        }
    }

    #[test]
    fn a_command_that_ends_its_guest_is_recorded_so() {
        let exec = Exec { detach: true, power_off: true, ..command(&["true"]) };
        let id: u64 = String::from_utf8(Host::ask(Request::Exec(exec)).bytes().0).unwrap().parse().unwrap();
        assert_eq!(Host::ask(Request::WaitDetached(id)).bytes().1, Frame::Exit(Exit::Code(0)));
        let entry = store::find(id).unwrap();
        assert!(entry.metadata().unwrap().power_off && !is_in_guest());
        entry.remove().unwrap();
    }

    #[test]
    fn an_endless_writer_does_not_fill_the_disk_and_can_be_stopped() {
        let id = detach("trap '' HUP; while :; do echo 0123456789012345678901234567890123456789; done");
        let most = 2 * store::find(id).unwrap().max_size;
        while fact(id).written < 2 * most {
            thread::sleep(POLL_INTERVAL);
        }
        assert!(fact(id).running && fact(id).kept <= most);
        assert_eq!(Host::ask(Request::StopDetached(id)).bytes().1, Frame::Done);
        let fact = fact(id);
        assert_eq!((fact.running, fact.exit), (false, Some(Exit::Signal(15))));
        let mut host = Host::ask(Request::DetachedLog(DetachedLog { id, lines: None, follow: false }));
        let (bytes, remarks, end) = host.copied();
        assert_eq!((bytes.len() as u64, end), (fact.kept, Frame::Done));
        assert_eq!(remarks, [format!("{} bytes were cut here", fact.written - fact.kept)]);
        store::find(id).unwrap().remove().unwrap();
    }

    #[test]
    fn a_detached_command_that_cannot_start_is_refused() {
        let exec = Exec { detach: true, ..command(&["/nonexistent"]) };
        let Frame::Failed(failure) = Host::ask(Request::Exec(exec)).bytes().1 else { panic!() };
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert!(failure.message.starts_with("cannot run /nonexistent"), "{failure:?}");
    }

    #[test]
    fn a_command_that_cannot_be_kept_is_ended() {
        let exec = Exec { detach: true, ..command(&["sleep", "600"]) };
        let running = spawn::spawn(&exec).unwrap();
        let pid = running.child.id();
        let entry = Entry { id: u64::MAX, directory: "/nonexistent".into(), max_size: 1 };
        assert!(keep_or_end(running, &entry, &exec, None, InitKind::Agent).is_err());
        assert_eq!(store::start_ticks(pid), None);
    }
}
