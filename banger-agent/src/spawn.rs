//! Starts a command as a user, in its own session, with a terminal or with pipes.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use banger_proto::guest::{Exec, FailureKind, Terminal, message::WindowSize};
use rustix::{
    fs::{Gid, Mode, OFlags, Uid},
    pipe::{PipeFlags, pipe_with},
    pty::OpenptFlags,
    termios::{Winsize, tcsetwinsize},
};

use crate::{
    account::Account,
    cgroups::Group,
    runtime_dir,
    systemd::{self, Systemd},
};

/// The search path of a login on Debian, with the administrator's directories.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running command.
pub struct Running {
    pub child: Child,
    /// The write end of its standard input.
    pub input: Option<OwnedFd>,
    /// The read end of its standard output.
    pub output: Option<OwnedFd>,
    /// The read end of its standard error; with a terminal, errors are part of the output.
    pub errors: Option<OwnedFd>,
    /// Our side of the terminal.
    pub terminal: Option<OwnedFd>,
    /// The control group that it runs in.
    pub group: Option<Group>,
}

/// Why a command does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot run as requested. The message is complete.
    #[error("{message}")]
    Refused { kind: FailureKind, message: String },
    /// The system refused. `NotFound` means the program.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Starts the command.
pub fn spawn(exec: &Exec) -> Result<Running, Error> {
    let user = exec.user.as_deref().unwrap_or("root");
    let account = Account::find(user)?.ok_or_else(|| Error::Refused {
        kind: FailureKind::BadRequest,
        message: format!("there is no user {user}"),
    })?;
    let mut command = command_of(exec, &account);
    let directory = CString::new(directory_of(exec, &account)?).map_err(io::Error::from)?;
    let (user, group) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    let (groups, has_terminal) = (groups_of(&account), exec.terminal.is_some());
    if has_terminal && systemd::is_available() {
        start_user_manager(account.uid);
    }
    let control_group = Group::new();
    let enter_group = Group::enter(control_group.as_ref())?;
    let prepare = move || {
        enter_group();
        rustix::process::setsid()?;
        if has_terminal {
            // SAFETY: descriptor 0 is open in the child: it was set to the terminal before this runs.
            #[expect(unsafe_code, reason = "the child's standard input has no owner in this process")]
            let input = unsafe { BorrowedFd::borrow_raw(0) };
            rustix::process::ioctl_tiocsctty(input)?;
        }
        // Groups come first, which only root may set. `Command` would change the user before all of this.
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_gid(group)?;
        rustix::thread::set_thread_uid(user)?;
        // As the user, who may not have access.
        rustix::process::chdir(&directory)?;
        Ok(())
    };
    // SAFETY: the closure only makes system calls; it neither allocates nor takes a lock.
    #[expect(unsafe_code, reason = "a session and its terminal can only be set up between fork and exec")]
    unsafe {
        command.pre_exec(prepare);
    }
    let mut running = match (&exec.terminal, exec.detach, &exec.session) {
        (Some(terminal), false, _) => with_terminal(command, terminal)?,
        (None, false, None) => with_pipes(command)?,
        (None, false, Some(_)) => with_input(command)?,
        (_, true, _) => with_one_output(command, Stdio::null())?,
    };
    running.group = control_group;
    Ok(running)
}

/// Starts a user's own systemd, because a terminal is a login, and does not wait: the command runs without it, too. Each
/// terminal asks, since logind may have ended it, and systemd may answer late.
fn start_user_manager(uid: u32) {
    static ASKING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
    let asking = || ASKING.lock().unwrap_or_else(PoisonError::into_inner);
    // One request at a time for each user, so that threads do not pile up if systemd hangs.
    if !asking().insert(uid) {
        return;
    }
    let ask = move || {
        // Guests may be without the unit.
        let _ = Systemd::connect().and_then(|mut systemd| systemd.start_user_manager(uid));
        asking().remove(&uid);
    };
    if thread::Builder::new().spawn(ask).is_err() {
        asking().remove(&uid);
    }
}

/// Sets the size of a terminal.
pub fn resize(terminal: &OwnedFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

fn command_of(exec: &Exec, account: &Account) -> Command {
    let mut command = match exec.argv.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        None => {
            let name = Path::new(&account.shell).file_name().unwrap_or_default().to_string_lossy();
            let mut command = Command::new(&account.shell);
            // A leading hyphen in its name makes a shell a login shell.
            command.arg0(format!("-{name}"));
            command
        }
    };
    command.env_clear();
    command.envs([
        ("HOME", account.home.as_str()),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("SHELL", &account.shell),
        ("PATH", PATH),
    ]);
    if let Some(directory) = runtime_dir::of(account) {
        command.env("XDG_RUNTIME_DIR", directory);
    }
    if let Some(terminal) = &exec.terminal {
        command.env("TERM", &terminal.term);
    }
    for name in &exec.unset {
        command.env_remove(name);
    }
    command.envs(exec.env.iter().map(|(key, value)| (key, value)));
    if !exec.path.is_empty() {
        command.env("PATH", search_path(exec));
    }
    command
}

/// Returns the search path, with the directories that were asked for first.
fn search_path(exec: &Exec) -> String {
    let set = exec.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_str());
    let usual = if exec.unset.iter().any(|name| name == "PATH") { "" } else { PATH };
    let rest = set.unwrap_or(usual);
    let parts =
        exec.path.iter().map(String::as_str).chain([rest].into_iter().filter(|path| !path.is_empty()));
    parts.collect::<Vec<_>>().join(":")
}

/// Returns the working directory of a command. A requested directory must exist, a home may be missing.
fn directory_of(exec: &Exec, account: &Account) -> Result<String, Error> {
    match &exec.cwd {
        Some(cwd) if Path::new(cwd).is_dir() => Ok(cwd.clone()),
        Some(cwd) => Err(Error::Refused {
            kind: FailureKind::NoDirectory,
            message: format!("there is no directory {cwd} in the guest"),
        }),
        None if Path::new(&account.home).is_dir() => Ok(account.home.clone()),
        None => Ok("/".to_owned()),
    }
}

fn groups_of(account: &Account) -> Vec<Gid> {
    let mut groups = account.groups.clone();
    groups.push(account.gid);
    groups.into_iter().map(Gid::from_raw).collect()
}

fn with_pipes(mut command: Command) -> io::Result<Running> {
    let (input_read, input) = pipe_with(PipeFlags::CLOEXEC)?;
    let (output, output_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, errors_write) = pipe_with(PipeFlags::CLOEXEC)?;
    for ours in [&input, &output, &errors] {
        set_nonblocking(ours.as_fd())?;
    }
    let child = command
        .stdin(Stdio::from(input_read))
        .stdout(Stdio::from(output_write))
        .stderr(Stdio::from(errors_write))
        .spawn()?;
    Ok(Running {
        child,
        input: Some(input),
        output: Some(output),
        errors: Some(errors),
        terminal: None,
        group: None,
    })
}

fn with_input(command: Command) -> io::Result<Running> {
    let (read, input) = pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(input.as_fd())?;
    Ok(Running { input: Some(input), ..with_one_output(command, Stdio::from(read))? })
}

/// Sends output and errors to the same pipe.
fn with_one_output(mut command: Command, input: Stdio) -> io::Result<Running> {
    let (output, output_write) = pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(output.as_fd())?;
    let child = command
        .stdin(input)
        .stdout(Stdio::from(output_write.try_clone()?))
        .stderr(Stdio::from(output_write))
        .spawn()?;
    Ok(Running { child, input: None, output: Some(output), errors: None, terminal: None, group: None })
}

fn with_terminal(mut command: Command, terminal: &Terminal) -> io::Result<Running> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let slave =
        File::from(rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?);
    resize(&master, terminal.size)?;
    let child = command
        .stdin(Stdio::from(slave.try_clone()?))
        .stdout(Stdio::from(slave.try_clone()?))
        .stderr(Stdio::from(slave))
        .spawn()?;
    set_nonblocking(master.as_fd())?;
    let (input, output) = (master.try_clone()?, master.try_clone()?);
    let (input, output, terminal) = (Some(input), Some(output), Some(master));
    Ok(Running { child, input, output, errors: None, terminal, group: None })
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_go_before_the_search_path_of_the_command() {
        let exec = |env: &[(&str, &str)], unset: &[&str]| Exec {
            path: vec!["/run/x/bin".to_owned()],
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            unset: unset.iter().map(|name| (*name).to_owned()).collect(),
            ..Exec::default()
        };
        assert_eq!(search_path(&exec(&[], &[])), format!("/run/x/bin:{PATH}"));
        assert_eq!(search_path(&exec(&[("PATH", "/a"), ("PATH", "/b:/c")], &[])), "/run/x/bin:/b:/c");
        assert_eq!(search_path(&exec(&[], &["PATH"])), "/run/x/bin");
    }
}
