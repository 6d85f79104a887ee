//! One conversation: a greeting, a request, and its answer.

use std::{
    fs, io,
    path::Path,
    sync::{PoisonError, RwLock},
};

use banger_proto::{
    causes::without_codes,
    guest::{
        Failure, FailureKind, Frame, GuestInfo, Request,
        config::Programs,
        frame::MAX_DATA,
        hello::{HostHello, Verdict},
        message::Phase,
    },
};
use serde::Serialize;

use crate::{
    activity, archive, boot, boot_wait,
    channels::InitKind,
    clock, commit, copies, detached, exec, files, forward, freezer, locale, mount,
    phases::{PhaseTracker, Waited},
    port::{Greeting, Port},
    ports, power, programs, registry_helper, rejuvenation, stats, stopping, terminfo,
};

/// Where the work disk is mounted.
pub const WORK_DISK: &str = "/root";

/// What a conversation knows about the guest.
pub struct Guest {
    pub token: Token,
    /// Problems during the boot.
    pub problems: Vec<String>,
    pub init: InitKind,
    /// The image's defaults for running programs.
    pub programs: Programs,
    /// The phases of the boot.
    pub phases: PhaseTracker,
}

/// The token of this boot. A guest that continues from a capture gets another one.
pub struct Token(RwLock<String>);

impl Token {
    pub fn new(text: String) -> Self {
        Self(RwLock::new(text))
    }

    /// Checks a greeting.
    pub fn judge(&self, hello: &HostHello) -> Verdict {
        hello.judge(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the token: greetings need this one from now on.
    pub fn replace(&self, text: String) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

/// Holds a conversation. Returns when it is over or the host has hung up.
pub fn hold(port: &mut Port, guest: &Guest) -> io::Result<()> {
    if port.greet(|hello| guest.token.judge(hello))? == Greeting::HungUp {
        return Ok(());
    }
    let request = match port.wait_frame()? {
        None => return Ok(()),
        Some(Frame::Request(request)) => request,
        Some(Frame::Configure(_)) => {
            return refuse(port, FailureKind::AlreadyExists, "the guest has its configuration already");
        }
        Some(Frame::Rejuvenate(rejuvenation)) => return rejuvenation::serve(port, guest, *rejuvenation),
        Some(_) => return refuse(port, FailureKind::BadRequest, "a request was expected"),
    };
    let _served = activity::Served::begin(&request);
    if !freezer::may_be_served(&request) && freezer::wait_thawed(port)? == Waited::HungUp {
        return Ok(());
    }
    // A host that hangs up meanwhile needs no answer.
    if must_wait_for_boot(&request) && guest.phases.wait_quietly(Phase::Init, port)? == Waited::HungUp {
        return Ok(());
    }
    match request {
        Request::Exec(mut command) => {
            let Some(early) = boot_wait::wait(port, &mut command, &guest.phases)? else { return Ok(()) };
            match programs::complete(&guest.programs, command) {
                Some(command) => exec::run(port, locale::complete(command), early, guest.init),
                None => refuse(port, FailureKind::BadRequest, "the image names no program of its own"),
            }
        }
        Request::Info => port.send(&Frame::Info(info(guest))).map(drop),
        Request::SetTime { unix_usec } => match boot::set_time(unix_usec) {
            Ok(()) => port.send(&Frame::Done).map(drop),
            Err(error) => refuse(port, kind_of(&error), &format!("cannot set the clock: {error}")),
        },
        Request::Clock => clock::serve(port),
        Request::PutTar { directory, placement } => archive::put(port, &directory, placement),
        Request::CopyIn(copy) => copies::receive(port, &copy, guest.programs.user.as_deref()),
        Request::CopyOut(copy) => copies::send(port, &copy, guest.programs.user.as_deref()),
        Request::List { directory } => files::list(port, &directory),
        Request::Digest { directory, algorithm } => files::digest(port, &directory, algorithm),
        Request::GetFiles { directory } => files::get(port, &directory),
        Request::Remove { directory } => files::remove(port, &directory),
        Request::Connect(endpoint) => forward::connect(port, &endpoint),
        Request::Listen(endpoint) => forward::listen(port, &endpoint),
        Request::Accept(number) => forward::accept(port, number),
        Request::RegistryHelper(wanted) => registry_helper::offer(port, &wanted),
        Request::Ports => reply_json(port, &ports::listening()),
        Request::Stats => reply_json(port, &stats::now()),
        Request::Use => reply_json(port, &activity::now()),
        Request::Terminal(terminal) => {
            let name = terminfo::ensure("/", &terminal);
            port.send(&Frame::Output(name.into_bytes()))?;
            port.send(&Frame::Done).map(drop)
        }
        Request::Detached => reply_json(port, &detached::facts()),
        Request::Attach(wanted) => detached::session::attach(port, &wanted),
        Request::DetachedLog(wanted) => detached::send_log(port, &wanted),
        Request::WaitDetached(id) => detached::send_exit(port, id),
        Request::StopDetached(id) => detached::stop(port, id),
        Request::PrepareCommit => commit::prepare(port),
        Request::Complete { path } => {
            reply_json(port, &copies::complete(&path, guest.programs.user.as_deref()))
        }
        Request::Mount(wanted) => mount::serve(port, &wanted, guest.programs.user.as_deref()),
        Request::Wait(phase) => match guest.phases.wait_quietly(phase, port)? {
            Waited::Reached => port.send(&Frame::Done).map(drop),
            Waited::Late => refuse(port, FailureKind::Other, "the boot of the guest takes too long"),
            Waited::HungUp => Ok(()),
        },
        Request::Freeze => freezer::freeze(port),
        Request::Thaw => {
            freezer::thaw_all();
            port.send(&Frame::Done).map(drop)
        }
        Request::Shutdown => {
            // The init waits for its services.
            freezer::thaw_all();
            rustix::fs::sync();
            // The host waits for nothing else; whether it receives this does not matter.
            let _ = port.send(&Frame::Done);
            power::power_off_guest(guest.init)
        }
    }
}

/// Returns whether the early boot could undo the request. It leaves the home of root alone, which is on a disk that
/// the agent has mounted before, so requests there need not wait.
fn must_wait_for_boot(request: &Request) -> bool {
    match request {
        Request::PutTar { directory, .. } => !Path::new(directory).starts_with(WORK_DISK),
        Request::CopyIn(_) | Request::PrepareCommit | Request::Mount(_) => true,
        _ => false,
    }
}

/// Replies in JSON.
fn reply_json(port: &mut Port, answer: &impl Serialize) -> io::Result<()> {
    for piece in serde_json::to_vec(answer)?.chunks(MAX_DATA) {
        if !port.send(&Frame::Output(piece.to_vec()))? {
            return Ok(());
        }
    }
    port.send(&Frame::Done).map(drop)
}

/// Replies that a request failed.
pub fn refuse(port: &mut Port, kind: FailureKind, message: &str) -> io::Result<()> {
    port.send(&Frame::Failed(Failure { kind, message: without_codes(message) })).map(drop)
}

/// Returns the kind of failure for an error of the system.
pub fn kind_of(error: &io::Error) -> FailureKind {
    match error.kind() {
        io::ErrorKind::NotFound => FailureKind::NotFound,
        io::ErrorKind::PermissionDenied => FailureKind::NotPermitted,
        io::ErrorKind::InvalidInput => FailureKind::BadRequest,
        io::ErrorKind::AlreadyExists => FailureKind::AlreadyExists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::NoSpace,
        _ => FailureKind::Other,
    }
}

fn info(guest: &Guest) -> GuestInfo {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    GuestInfo {
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel_release: read("/proc/sys/kernel/osrelease"),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        problems: guest.problems.iter().map(|problem| without_codes(problem)).collect(),
        stopping: stopping::has_begun(),
        phases: guest.phases.now(),
        early_devices: false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use banger_proto::guest::{
        Exec, Terminal, hello,
        message::{Exit, Placement, WindowSize},
    };
    use rustix::{
        io::Errno,
        process::{Pid, Signal, kill_process},
    };

    use super::*;
    use crate::{
        exec::HEARTBEAT,
        test_host::{Host, TOKEN, command},
    };

    fn check(script: &str, output: &str, errors: &str, exit: Exit) {
        let ended = Host::exec(&["sh", "-c", script]).collect();
        assert_eq!(ended, (output.into(), errors.into(), Frame::Exit(exit)), "{script}");
    }

    #[test]
    fn output_errors_and_status_arrive_unchanged() {
        check("exit 42", "", "", Exit::Code(42));
        check("echo out; echo err >&2; exit 1", "out\n", "err\n", Exit::Code(1));
        check("kill -9 $$", "", "", Exit::Signal(9));
        check("printf %s \"$HOME $USER\"", "/root root", "", Exit::Code(0));
    }

    #[test]
    fn input_reaches_the_command_and_ends() {
        let mut host = Host::exec(&["cat"]);
        host.send(&Frame::Input(b"hello".to_vec()));
        host.send(&Frame::InputEnd);
        assert_eq!(host.collect(), ("hello".into(), String::new(), Frame::Exit(Exit::Code(0))));
    }

    #[test]
    fn much_output_to_a_slow_host_is_complete() {
        let mut host = Host::exec(&["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"]);
        let (output, _, end) = host.collect();
        assert_eq!((output.len(), end), (3_000_000, Frame::Exit(Exit::Code(0))));
    }

    #[test]
    fn a_silent_command_sends_heartbeats() {
        let mut host = Host::exec(&["sleep", "1000"]);
        let Frame::Started(started) = host.next() else { panic!("it does not run") };
        assert_eq!(u64::from(started.alive_sec), HEARTBEAT.as_secs());
        assert_eq!(host.next_or_heartbeat(), Frame::Window(0));
    }

    #[test]
    fn a_signal_passes_input_that_nobody_reads() {
        let mut host =
            Host::exec(&["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done"]);
        assert!(matches!(host.next(), Frame::Started(_)));
        assert_eq!(host.next(), Frame::Output(b"ready\n".to_vec()));
        for _ in 0..STDIN_FRAMES {
            host.send(&Frame::Input(vec![0; MAX_DATA]));
        }
        host.send(&Frame::Signal(15));
        assert_eq!(host.collect().2, Frame::Exit(Exit::Code(7)));
    }

    /// As many as fit the window.
    const STDIN_FRAMES: usize = banger_proto::guest::STDIN_WINDOW as usize / MAX_DATA;

    #[test]
    fn a_missing_program_user_and_directory_are_distinguished() {
        let failure = |exec: Exec| match Host::ask(Request::Exec(exec)).collect().2 {
            Frame::Failed(failure) => (failure.kind, failure.message),
            other => panic!("{other:?}"),
        };
        assert_eq!(failure(command(&["/nonexistent"])).0, FailureKind::NotFound);
        assert_eq!(failure(command(&["/etc/passwd"])).0, FailureKind::NotPermitted);
        let (kind, message) = failure(Exec { user: Some("nobody-here".into()), ..command(&["true"]) });
        assert_eq!((kind, message.as_str()), (FailureKind::BadRequest, "there is no user nobody-here"));
        let (kind, message) = failure(Exec { cwd: Some("/nowhere".into()), ..command(&["true"]) });
        assert_eq!(kind, FailureKind::NoDirectory);
        assert!(message.contains("/nowhere"), "{message}");
    }

    #[test]
    fn a_full_disk_has_a_kind_of_its_own() {
        for (errno, expect) in [
            (Errno::NOSPC, FailureKind::NoSpace),
            (Errno::DQUOT, FailureKind::NoSpace),
            (Errno::ACCESS, FailureKind::NotPermitted),
            (Errno::IO, FailureKind::Other),
        ] {
            assert_eq!(kind_of(&errno.into()), expect, "{errno}");
        }
    }

    #[test]
    fn a_terminal_has_a_size_that_changes() {
        let size = WindowSize { rows: 11, columns: 22 };
        let terminal = Some(Terminal { term: "dumb".into(), size });
        let script = "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.02; done";
        let mut host = Host::ask(Request::Exec(Exec { terminal, ..command(&["sh", "-c", script]) }));
        let mut seen = String::new();
        while !seen.contains("ready") {
            if let Frame::Output(bytes) = host.next() {
                seen.push_str(&String::from_utf8(bytes).unwrap());
            }
        }
        assert!(seen.starts_with("11 22"), "{seen}");
        host.send(&Frame::Resize(WindowSize { rows: 33, columns: 44 }));
        let (output, _, end) = host.collect();
        assert!(output.contains("33 44"), "{output}");
        assert_eq!(end, Frame::Exit(Exit::Code(0)));
    }

    #[test]
    fn a_session_ends_when_its_host_hangs_up() {
        let mut host = Host::exec(&["sh", "-c", "echo $$; sleep 1000"]);
        assert!(matches!(host.next(), Frame::Started(_)));
        let Frame::Output(pid) = host.next() else { panic!("no process id") };
        let pid = String::from_utf8(pid).unwrap();
        drop(host); // Waits for the agent's thread, and so for the end of the session.
        assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists());
    }

    #[test]
    fn a_background_process_does_not_hold_up_the_exit() {
        let (output, _, end) = Host::exec(&["sh", "-c", "sleep 1000 & echo $!"]).collect();
        assert_eq!(end, Frame::Exit(Exit::Code(0)));
        let pid = Pid::from_raw(output.trim().parse().unwrap()).unwrap();
        // It would outlive the tests and keep inherited descriptors open.
        kill_process(pid, Signal::KILL).unwrap();
    }

    #[test]
    fn a_wrong_token_is_refused_and_the_right_one_accepted_after_it() {
        let mut host = Host::new();
        assert_eq!(host.greet("ffffffffffffffffffffffffffffffff"), Err(hello::Error::WrongToken));
        assert_eq!(host.greet(TOKEN), Ok(true));
        host.send(&Frame::Request(Request::Info));
        assert!(matches!(host.next(), Frame::Info(info) if !info.boot_id.is_empty()));
    }

    #[test]
    fn an_interrupted_conversation_does_not_affect_the_next() {
        let mut host = Host::new();
        assert_eq!(host.greet(TOKEN), Ok(true));
        host.stream.write_all(b"\xff\xff\xff\xff garbage").unwrap();
        assert_eq!(host.greet(TOKEN), Ok(true));
        host.send(&Frame::Request(Request::Info));
        assert!(matches!(host.next(), Frame::Info(_)));
    }

    #[test]
    fn files_go_in() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o640);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_data(&mut header, "sub/file", &b"hello"[..]).unwrap();
        let directory = dir.path().join("in").to_str().unwrap().to_owned();

        let mut host =
            Host::ask(Request::PutTar { directory: directory.clone(), placement: Placement::Merge });
        host.send(&Frame::Input(archive.into_inner().unwrap()));
        host.send(&Frame::InputEnd);
        assert_eq!(host.collect().2, Frame::Done);
        assert_eq!(fs::read_to_string(format!("{directory}/sub/file")).unwrap(), "hello");
    }

    #[test]
    fn a_directory_appears_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("path");
        let put = |name: &str, placement, cut: usize| {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(2000);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            archive.append_data(&mut header, name, &[b'x'; 2000][..]).unwrap();
            let bytes = archive.into_inner().unwrap();
            let directory = path.to_str().unwrap().to_owned();
            let mut host = Host::ask(Request::PutTar { directory, placement });
            host.feed(&bytes[..bytes.len() - cut]);
            host.bytes().1
        };
        let names = |path: &Path| {
            let names =
                fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<Vec<_>>()
        };
        assert!(matches!(put("cut", Placement::New, 3000), Frame::Failed(_)));
        assert!(names(dir.path()).is_empty(), "something is left of what did not come whole");
        assert_eq!(put("first", Placement::New, 0), Frame::Done);
        let Frame::Failed(failure) = put("second", Placement::New, 0) else { panic!("it was replaced") };
        assert_eq!(failure.kind, FailureKind::AlreadyExists, "{failure:?}");
        assert!(matches!(put("cut", Placement::Replace, 3000), Frame::Failed(_)));
        assert_eq!(names(&path), ["first"]);
        assert_eq!(put("second", Placement::Replace, 0), Frame::Done);
        assert_eq!((names(&path), names(dir.path())), (vec!["second".into()], vec!["path".into()]));
    }
}
