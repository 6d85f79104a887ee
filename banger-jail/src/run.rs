//! Starts the VMM and waits for it.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    thread::{self, JoinHandle},
};

use rustix::{
    io::{Errno, FdFlags, fcntl_dupfd_cloexec},
    process::{
        Pid, PidfdFlags, Signal, getpid, getppid, kill_process, pidfd_open, pidfd_send_signal,
        set_parent_process_death_signal,
    },
};
use signal_hook::{
    consts::{SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
};

use super::{
    capabilities, filter, jail,
    message::{self, Answer, FIRST_FILE, Order},
    proof,
    ring::Writer,
};

/// The stack of a thread that copies output or forwards signals.
const STACK: usize = 64 << 10;
/// Signals that ask the VMM to end are forwarded to it: the shim stays to log its last output.
const FORWARDED: [i32; 5] = [SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// Executes the order from this socket, and exits as the VMM does: with its status, or by its signal.
pub fn run(socket: OwnedFd) -> ExitCode {
    let started = close_inherited_on_exec()
        .and_then(|()| message::receive::<Order>(&socket))
        .and_then(|order| order.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
        .and_then(|(order, files)| Vmm::start(&order, files));
    let mut vmm = match started {
        Ok(vmm) => vmm,
        Err(error) => {
            let message = error.to_string();
            eprintln!("banger-shim: {message}");
            // The service may be gone; the status says it too.
            let _ = message::send(&socket, &Answer::Failed { message }, &[]);
            return ExitCode::FAILURE;
        }
    };
    let answer = Answer::Started { pid: vmm.child.id() };
    if let Err(error) = message::send(&socket, &answer, &[]) {
        eprintln!("banger-shim: cannot report that the VMM runs: {error}");
    }
    drop(socket);
    vmm.wait()
}

/// Marks inherited descriptors close-on-exec, so that the VMM gets only those listed in the order.
fn close_inherited_on_exec() -> io::Result<()> {
    let numbers = fs::read_dir("/proc/self/fd")?.map(|entry| Ok(entry?.file_name()));
    for number in numbers.collect::<io::Result<Vec<_>>>()? {
        let Some(number) = number.to_str().and_then(|number| number.parse().ok()) else { continue };
        // SAFETY: the process has one thread and closes only the directory that was read. Its number is then unused,
        // so that the call fails and changes nothing.
        #[expect(unsafe_code, reason = "nobody owns what was inherited")]
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        match rustix::io::fcntl_setfd(file, FdFlags::CLOEXEC) {
            Ok(()) | Err(Errno::BADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

struct Vmm {
    child: Child,
    copies: Vec<JoinHandle<()>>,
    /// Where to write the exit status, for processes that cannot wait for the VMM.
    end: Option<File>,
}

impl Vmm {
    fn start(order: &Order, mut files: Vec<OwnedFd>) -> io::Result<Self> {
        let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidData, message.to_owned());
        if files.len() != order.files.len() + order.unnamed() {
            return Err(invalid("the number of files does not match the order"));
        }
        let mut logs = files.split_off(order.files.len());
        let end = order.jail.is_some().then(|| logs.pop()).flatten().map(File::from);
        let files = (FIRST_FILE..).zip(files).map(|(number, file)| move_to(file, number));
        let files: Vec<OwnedFd> = files.collect::<io::Result<_>>()?;
        let argv = order.argv.iter().map(|argument| substitute_numbers(argument, &order.files, &files));
        let argv: Vec<String> = argv.collect::<Option<_>>().ok_or_else(|| invalid("a file is missing"))?;
        let (program, arguments) = argv.split_first().ok_or_else(|| invalid("the order names no program"))?;
        for file in &files {
            rustix::io::fcntl_setfd(file, FdFlags::empty())?;
        }
        if let Some(jail) = &order.jail {
            jail::enter(jail)?;
        }
        capabilities::give_up()?;
        filter::apply()?;
        proof::check()?;
        let signals = Signals::new(FORWARDED)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shim = getpid();
        // SAFETY: the closure makes two system calls; it neither allocates nor takes a lock.
        #[expect(unsafe_code, reason = "the VMM must not outlive the shim, which only the child can arrange")]
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // The shim may have died in the meantime.
                if getppid() == Some(shim) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let mut child = command
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot start {program}: {error}")))?;
        drop(files);
        forward_signals(signals, &child)?;
        let output = child.stdout.take().map(OwnedFd::from);
        let errors = child.stderr.take().map(OwnedFd::from);
        let mut copies = Vec::new();
        for (pipe, log) in [output, errors].into_iter().flatten().zip(logs) {
            copies.push(thread::Builder::new().stack_size(STACK).spawn(move || copy(pipe.into(), log))?);
        }
        Ok(Self { child, copies, end })
    }

    /// Waits for the VMM and for the end of its output.
    fn wait(&mut self) -> ExitCode {
        let status = self.child.wait();
        for copy in self.copies.drain(..) {
            // A thread that panicked has nothing left to copy.
            let _ = copy.join();
        }
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                eprintln!("banger-shim: cannot wait for the VMM: {error}");
                return ExitCode::FAILURE;
            }
        };
        if let Some(file) = &mut self.end
            && let Err(error) = file.write_all(describe(status).as_bytes())
        {
            eprintln!("banger-shim: cannot write how the VMM ended: {error}");
        }
        exit_like(status)
    }
}

/// Returns how the VMM ended, in the form that `ports::Ended` of banger-system parses.
fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("killed:{signal}"),
        None => format!("exited:{}", status.code().unwrap_or(1)),
    }
}

/// Ends this process as another one ended, so that its parent sees the same status.
fn exit_like(status: ExitStatus) -> ExitCode {
    match status.signal() {
        Some(9) => {
            let _ = kill_process(getpid(), Signal::KILL);
        }
        Some(signal) => {
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
        None => {}
    }
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Forwards signals to the VMM from now on.
fn forward_signals(mut signals: Signals, child: &Child) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    // Nobody has waited for the child yet, so the pid is still its own.
    let vmm = pidfd_open(pid, PidfdFlags::empty())?;
    thread::Builder::new().stack_size(STACK).spawn(move || {
        for signal in signals.forever() {
            if let Some(signal) = Signal::from_named_raw(signal) {
                // It may have ended, as the signal asked.
                let _ = pidfd_send_signal(&vmm, signal);
            }
        }
    })?;
    Ok(())
}

/// Moves a file to a free number.
fn move_to(file: OwnedFd, number: i32) -> io::Result<OwnedFd> {
    let moved = fcntl_dupfd_cloexec(&file, number)?;
    if moved.as_raw_fd() == number {
        Ok(moved)
    } else {
        Err(io::Error::other("the number of a file is in use"))
    }
}

/// Replaces the names of files by their numbers. `None` if a file is missing.
fn substitute_numbers(argument: &str, names: &[String], files: &[OwnedFd]) -> Option<String> {
    let mut done = String::new();
    let mut rest = argument;
    while let Some((before, after)) = rest.split_once("{fd:") {
        let (name, behind) = after.split_once('}')?;
        let index = names.iter().position(|known| known == name)?;
        done.push_str(before);
        done.push_str(&files.get(index)?.as_raw_fd().to_string());
        rest = behind;
    }
    done.push_str(rest);
    Some(done)
}

/// Copies until the pipe is closed. If the log cannot be written, the pipe is read nevertheless: a full disk must not
/// stop a guest.
fn copy(mut pipe: File, log: OwnedFd) {
    let mut log = Writer::open(log.into());
    let mut bytes = vec![0; 16 << 10];
    loop {
        match pipe.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => {
                if let Ok(log) = &mut log {
                    let _ = log.write(&bytes[..count]);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_files_become_numbers() {
        let file = tempfile::tempfile().unwrap();
        let number = file.as_raw_fd();
        let (names, files) = (vec!["disk".to_owned()], vec![OwnedFd::from(file)]);
        let check = |text: &str, expect: Option<String>| {
            assert_eq!(substitute_numbers(text, &names, &files), expect, "{text}");
        };
        check("plain", Some("plain".into()));
        check("fd={fd:disk},again=/{fd:disk}", Some(format!("fd={number},again=/{number}")));
        check("fd={fd:other}", None);
        check("fd={fd:disk", None);
    }
}
