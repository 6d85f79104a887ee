//! The connection of ssh to a remote host, which channels share.
//!
//! The first command logs in, in the foreground, so that ssh can ask for what it needs, and leaves a process of ssh behind
//! that keeps the connection (ControlMaster in ssh_config(5)). It ends once it is not used for [`KEEP`] seconds. Channels
//! never ask, and ignore the keys that the user presses for this program. When there is no such process any more, or the
//! server wants no more channels in one connection, a channel connects by itself.

use std::{
    env,
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::fs::{FlockOperation, MemfdFlags, SealFlags, fcntl_add_seals, flock, memfd_create};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::{
    error::{Error, Said},
    server::Server,
};
use crate::{error::Result, user::dirs::UserDirs};

/// How long a connection stays without a channel, in seconds.
const KEEP: u32 = 120;
/// How long a login may take that asks nothing. Servers wait no longer (LoginGraceTime in sshd_config(5)).
const LOGIN_TIMEOUT: Duration = Duration::from_secs(150);
/// How long a process of ssh may take to end after its channel.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process of ssh may take to notice that its connection is lost, once nothing comes through it.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(1);
/// Limit on the path of the socket: that of the system, less what ssh appends while it makes it.
const MAX_SOCKET: usize = 90;
/// Limit on what is kept of the words of ssh.
const MAX_SAID: u64 = 64 << 10;
/// The command at the remote end.
const PROXY: [&str; 2] = ["banger", "remote-proxy"];

/// Settings that channels need, whatever the user's configuration of ssh says. A broken connection is noticed within a
/// minute.
const SETTINGS: [&str; 10] = [
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "Tunnel=no",
    "ConnectTimeout=20",
    "ServerAliveInterval=20",
    "ServerAliveCountMax=3",
];

/// Whether ssh may ask the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Questions {
    /// On the terminal.
    Ask,
    /// Never.
    Never,
}

/// The way to a remote host.
#[derive(Debug, Clone)]
pub struct Ssh {
    server: Server,
    socket: PathBuf,
}

impl Ssh {
    /// Returns the way to a host, without using it.
    pub fn to(server: Server) -> Result<Self> {
        let directory = directory()?;
        let socket = directory.join(server.file_name());
        let failed = |source| Error::NoPlace { directory: directory.display().to_string(), source };
        if socket.as_os_str().len() > MAX_SOCKET {
            return Err(failed(io::Error::other("its path is too long")).into());
        }
        make_private(&directory).map_err(failed)?;
        Ok(Self { server, socket })
    }

    /// Logs in, unless there is a connection.
    pub async fn log_in(&self, questions: Questions) -> Result<()> {
        // Two logins at once would leave two connections.
        let _lock = self.lock().await?;
        if self.is_connected().await? {
            return Ok(());
        }
        let errors = memory()?;
        let mut master = self.command(questions);
        master.args(["-o", "ControlMaster=auto", "-o", &format!("ControlPersist={KEEP}"), "-f", "-N"]);
        master.args(self.server.arguments()).stdout(Stdio::null()).kill_on_drop(true);
        master.stdin(if questions == Questions::Ask { Stdio::inherit() } else { Stdio::null() });
        let mut master = spawn(&mut master, &errors)?;
        let status = match questions {
            Questions::Ask => master.wait().await,
            Questions::Never => match timeout(LOGIN_TIMEOUT, master.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    let said = Said::new(b"the login took too long");
                    return Err(Error::Unreachable { server: self.server.clone(), said }.into());
                }
            },
        };
        let said = said(&errors);
        let status = status.map_err(Error::NoSsh)?;
        if !status.success() {
            return Err(Error::Unreachable { server: self.server.clone(), said }.into());
        }
        Ok(())
    }

    /// Opens a channel, in which banger runs at the remote end.
    pub fn open(&self) -> Result<Channel> {
        let errors = memory()?;
        let (ours, theirs) = UnixStream::pair().map_err(Error::NoSsh)?;
        let mut command = self.command(Questions::Never);
        command.args(["-o", "ControlMaster=no"]).args(self.server.arguments()).args(PROXY);
        // Keys such as Ctrl-C are for this program.
        command.process_group(0);
        let input = theirs.try_clone().map_err(Error::NoSsh)?;
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(input)));
        command.stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
        // The command goes, with its copies of their end: the channel ends with ssh.
        let child = spawn(&mut command, &errors)?;
        Ok(Channel { stream: ours, process: Process { child, errors } })
    }

    /// Returns the host.
    pub fn server(&self) -> &Server {
        &self.server
    }

    fn command(&self, questions: Questions) -> Command {
        let mut command = Command::new("ssh");
        let path = self.socket.to_string_lossy().replace('%', "%%");
        command.args(["-T", "-S", &path]);
        for setting in SETTINGS {
            command.args(["-o", setting]);
        }
        if questions == Questions::Never {
            command.args(["-o", "BatchMode=yes"]);
        }
        command
    }

    /// Returns whether there is a connection.
    pub async fn is_connected(&self) -> Result<bool> {
        let mut check = self.command(Questions::Never);
        check.args(["-O", "check"]).args(self.server.arguments());
        check.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        // A process that hangs is as good as none.
        match timeout(END_TIMEOUT, check.status()).await {
            Ok(status) => Ok(status.map_err(Error::NoSsh)?.success()),
            Err(_) => Ok(false),
        }
    }

    /// Waits for other commands that log in at the moment.
    async fn lock(&self) -> Result<File> {
        let path = self.socket.with_extension("lock");
        let lock = move || {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        let locked =
            tokio::task::spawn_blocking(lock).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let directory = self.socket.parent().unwrap_or(Path::new("/")).display().to_string();
        Ok(locked.map_err(|source: io::Error| Error::NoPlace { directory, source })?)
    }
}

/// A channel, and the process of ssh that carries it.
#[derive(Debug)]
pub struct Channel {
    /// Our end.
    pub stream: UnixStream,
    /// What carries it.
    pub process: Process,
}

/// A process of ssh that carries a channel.
#[derive(Debug)]
pub struct Process {
    child: Child,
    errors: File,
}

impl Process {
    /// Returns whether the process has ended, or ends in a moment.
    pub async fn has_ended(&mut self) -> bool {
        timeout(NOTICE_TIMEOUT, self.child.wait()).await.is_ok()
    }

    /// Waits for the end of a channel through which everything has come. Returns what ssh said if it broke before: both
    /// ends look alike to who reads it, but only one that ended at the other host has that host's exit status.
    pub async fn end_well(&mut self) -> Result<(), Said> {
        match self.end().await {
            (Some(0), _) => Ok(()),
            (_, said) => Err(said),
        }
    }

    /// Waits for the end of a channel that is broken. Returns the exit status of ssh, and what it said.
    pub async fn end(&mut self) -> (Option<i32>, Said) {
        let ended = timeout(END_TIMEOUT, self.child.wait()).await;
        let status = ended.ok().and_then(io::Result::ok).and_then(|status| status.code());
        (status, said(&self.errors))
    }
}

fn spawn(command: &mut Command, errors: &File) -> Result<Child> {
    let errors = errors.try_clone().map_err(Error::NoSsh)?;
    let child = command.stderr(errors).spawn();
    // Nothing of theirs stays open here.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(child.map_err(Error::NoSsh)?)
}

/// Returns a file of a fixed size for the words of ssh. A pipe would stay open as long as the connection.
fn memory() -> Result<File> {
    let make = || {
        let file = File::from(memfd_create("ssh", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(MAX_SAID)?;
        // The other host may say anything, for as long as the channel is open.
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(file)
    };
    make().map_err(|error: io::Error| Error::NoSsh(error).into())
}

fn said(errors: &File) -> Said {
    let mut bytes = vec![0; MAX_SAID as usize];
    // The process that writes it shares the position, which stays. What cannot be read was not said.
    let _ = errors.read_at(&mut bytes, 0);
    // Nothing was written to the rest.
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(length);
    Said::new(&bytes)
}

/// Returns the directory of the sockets: of the login session, so that it is empty after a boot.
fn directory() -> Result<PathBuf> {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    Ok(match runtime {
        Some(runtime) => runtime.join("banger/ssh"),
        None => UserDirs::of_caller()?.ssh_sockets(),
    })
}

/// Makes a directory that only this user can enter. Who reaches a socket in it is logged in.
fn make_private(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let found = directory.symlink_metadata()?;
    let is_ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    match is_ours && found.mode() & 0o077 == 0 {
        true => Ok(()),
        false => Err(io::Error::other("other users can enter it")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn sockets_are_in_a_directory_of_the_user_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("banger/ssh");
        make_private(&directory).unwrap();
        make_private(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make_private(&directory).is_err());
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(scratch.path(), &link).unwrap();
        assert!(make_private(&link).is_err());
    }

    #[test]
    fn a_host_that_talks_without_end_fills_no_memory() {
        let errors = memory().unwrap();
        let mut writer = errors.try_clone().unwrap();
        io::Write::write_all(&mut writer, b"first words\n").unwrap();
        let line = [b'x'; 1000];
        assert!((0..1000).any(|_| io::Write::write_all(&mut writer, &line).is_err()));
        assert_eq!(errors.metadata().unwrap().len(), MAX_SAID);
        assert!(said(&errors).contains("first words; xxx"));
        assert!(errors.set_len(MAX_SAID + 1).is_err());
    }

    #[test]
    fn words_of_ssh_are_as_they_were() {
        let errors = memory().unwrap();
        assert_eq!(said(&errors), Said::new(b""));
        io::Write::write_all(&mut errors.try_clone().unwrap(), b"Permission denied.\n").unwrap();
        assert_eq!(said(&errors), Said::new(b"Permission denied.\n"));
    }

    #[tokio::test]
    async fn a_channel_that_broke_did_not_end_well() {
        let end = async |script: &str| {
            let errors = memory().unwrap();
            let child = spawn(Command::new("sh").args(["-c", script]), &errors).unwrap();
            Process { child, errors }.end_well().await
        };
        assert_eq!(end("exit 0").await, Ok(()));
        let broken = end("echo Connection reset >&2; exit 255").await;
        assert_eq!(broken, Err(Said::new(b"Connection reset")));
        assert!(end("kill -9 $$").await.is_err());
    }

    #[test]
    fn each_host_has_a_socket_of_its_own() {
        let name = |text: &str| text.parse::<Server>().unwrap().file_name();
        assert_eq!(name("ssh://lab"), name("ssh://lab/"));
        assert_ne!(name("ssh://lab"), name("ssh://alice@lab"));
        assert_eq!(name("ssh://lab").len(), 16);
    }
}
