//! Mounts a directory that the host serves.
//!
//! This module knows nothing of file systems: it passes messages between the guest's kernel (`/dev/fuse`, fuse(4)) and the
//! host, until one of them hangs up. Then it unmounts the directory and closes the device, so that programs with open files
//! get an error instead of waiting.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use banger_proto::guest::{
    FailureKind, Frame, STDIN_WINDOW,
    frame::MAX_DATA,
    message::Started,
    mount::{MAX_IN_FLIGHT, MAX_IO, MAX_MESSAGE, Mount, Owner, check_path, is_answered, take_message},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::{
    account::Account,
    conversation::{kind_of, refuse},
    log, modprobe,
    port::{Port, Received},
};

const DEVICE: &str = "/dev/fuse";
const FILE_SYSTEM: &str = "fuse.banger";
/// Limit on mounts over each other that are removed at once.
const MAX_COVERED: usize = 64;
/// The kernel's list of the file systems that it knows (proc_filesystems(5)).
const KNOWN: &str = "/proc/filesystems";
/// The length of the header of an answer.
const ANSWER_HEADER: usize = 16;
/// Limit on output queued for the host, before reading from the kernel pauses.
const MAX_QUEUED: usize = 4 * MAX_DATA;

/// Mounts a directory and relays its messages until the host hangs up or somebody in the guest unmounts it.
pub fn serve(port: &mut Port, wanted: &Mount, default_user: Option<&str>) -> io::Result<()> {
    let mounted = match Mounted::new(wanted, default_user) {
        Ok(mounted) => mounted,
        Err((kind, reason)) => {
            let message = format!("cannot mount at {} in the guest: {reason}", wanted.path);
            return refuse(port, kind, &message);
        }
    };
    port.queue(&Frame::Started(Started::new(0)));
    let mut line = serde_json::to_vec(&mounted.owner)?;
    line.push(b'\n');
    port.queue(&Frame::Output(line));
    let ended = mounted.device.as_ref().map_or(Ok(Ended::Unmounted), |device| relay(port, device));
    drop(mounted);
    match ended {
        Ok(Ended::HostGone) => Ok(()),
        Ok(Ended::Unmounted) => port.send(&Frame::Done).map(drop),
        Err(error) => refuse(port, FailureKind::Other, &format!("the mount in the guest failed: {error}")),
    }
}

/// A mounted directory. Dropping it unmounts it.
struct Mounted {
    /// Closed before the rest, which ends requests that wait for an answer. Nothing else is kept open there, so that an
    /// unmount in the guest ends the file system.
    device: Option<OwnedFd>,
    target: PathBuf,
    /// The kernel's number of the mount.
    number: Option<u64>,
    owner: Owner,
}

type Refusal = (FailureKind, String);

impl Mounted {
    fn new(wanted: &Mount, default_user: Option<&str>) -> Result<Self, Refusal> {
        let of_system = |error: io::Error| (kind_of(&error), error.to_string());
        let bad = |reason: &str| (FailureKind::BadRequest, reason.to_owned());
        check_path(&wanted.path).map_err(bad)?;
        let user = wanted.user.as_deref().or(default_user).unwrap_or("root");
        let account = Account::find(user).map_err(of_system)?;
        let Some(account) = account else { return Err(bad(&format!("there is no user {user}"))) };
        let owner = Owner { uid: account.uid, gid: account.gid };
        let device = open_device()?;
        remove_dead(Path::new(&wanted.path));
        // A link may lead to where nothing may be made.
        let lands_at = resolve(Path::new(&wanted.path)).map_err(of_system)?;
        check_path(lands_at.to_str().unwrap_or_default()).map_err(bad)?;
        fs::create_dir_all(&wanted.path).map_err(of_system)?;
        let target = fs::canonicalize(&wanted.path).map_err(of_system)?;
        // The guest may have changed a link meanwhile.
        check_path(target.to_str().unwrap_or_default()).map_err(bad)?;
        mount_at(&target, &device, wanted.read_only, owner).map_err(of_system)?;
        let number = mount_number(&target);
        Ok(Self { device: Some(device), target, number, owner })
    }
}

/// Returns where a path leads, of which the last directories may be missing.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    for existing in path.ancestors() {
        match fs::canonicalize(existing) {
            Ok(real) => return Ok(path.strip_prefix(existing).map_or(real.clone(), |rest| real.join(rest))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.device = None;
        // Another file system may have been mounted over it, or this one unmounted.
        if mount_number(&self.target).is_some_and(|now| Some(now) != self.number) {
            return;
        }
        match unmount(&self.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => log::error(&format!("cannot unmount {}: {error}", self.target.display())),
        }
        remove_dead(&self.target);
    }
}

/// Unmounts what has lost its client here: a mount that ended while another one was over it.
fn remove_dead(target: &Path) {
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    for _ in 0..MAX_COVERED {
        let is_dead = matches!(statx(CWD, target, flags, StatxFlags::BASIC_STATS), Err(Errno::NOTCONN));
        if !is_dead
            || !is_own(target)
            || unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_err()
        {
            return;
        }
    }
}

/// Returns whether the last mount at a path is one of ours (proc_pid_mounts(5)).
fn is_own(target: &Path) -> bool {
    let table = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
    let path = target.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    let mut at_path = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        (fields.next() == Some(&path)).then(|| fields.next())?
    });
    at_path.next_back() == Some(FILE_SYSTEM)
}

/// Returns the number of the mount that a path leads to (statx(2)), without asking the host.
fn mount_number(target: &Path) -> Option<u64> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let found = statx(CWD, target, flags, StatxFlags::MNT_ID).ok()?;
    StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID).then_some(found.stx_mnt_id)
}

/// Opens the kernel's side of a mount. Loads its module if the kernel does not have it yet.
fn open_device() -> Result<OwnedFd, Refusal> {
    let is_known = fs::read_to_string(KNOWN)
        .is_ok_and(|list| list.lines().any(|line| line.split_ascii_whitespace().last() == Some("fuse")));
    let loaded = if is_known { Ok(true) } else { modprobe::load_own("fuse") };
    if let Err(error) = &loaded {
        log::error(&format!("cannot load fuse: {error}"));
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(DEVICE, flags, Mode::empty())
        .map_err(|_| (FailureKind::NotFound, "its kernel has no FUSE".to_owned()))
}

fn mount_at(target: &Path, device: &OwnedFd, read_only: bool, owner: Owner) -> io::Result<()> {
    let Owner { uid, gid } = owner;
    // The owner may be any user, so all may enter, and the kernel checks permissions.
    let options = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},allow_other,default_permissions,max_read={MAX_IO}",
        device.as_raw_fd()
    );
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, read_only);
    Ok(mount("banger", target, FILE_SYSTEM, flags, CString::new(options)?.as_c_str())?)
}

/// How a mount ended.
enum Ended {
    /// The host hung up.
    HostGone,
    /// It was unmounted in the guest.
    Unmounted,
}

fn relay(port: &mut Port, device: &OwnedFd) -> io::Result<Ended> {
    let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidData, message.to_owned());
    let mut answers = Vec::new();
    let mut in_flight = 0;
    // The kernel reads and writes whole messages.
    let mut request = vec![0; MAX_MESSAGE];
    loop {
        // Data that came together with the request causes no further event.
        if port.receive()? == Received::HungUp {
            return Ok(Ended::HostGone);
        }
        while let Some(frame) = port.next_frame()? {
            match frame {
                Frame::Input(bytes) => answers.extend(bytes),
                _ => return Err(invalid("answers were expected")),
            }
            if answers.len() > STDIN_WINDOW as usize + MAX_DATA {
                return Err(invalid("more input than there may be"));
            }
        }
        let mut given = 0;
        while let Some(answer) = take_message(&mut answers, ANSWER_HEADER).map_err(io::Error::other)? {
            given += answer.len() as u32;
            in_flight -= usize::from(in_flight > 0);
            match rustix::io::write(device, &answer) {
                // The request may have been given up.
                Ok(_) | Err(Errno::NOENT) => {}
                Err(Errno::NODEV | Errno::PERM) => return Ok(Ended::Unmounted),
                Err(error) => return Err(error.into()),
            }
        }
        if given > 0 {
            port.queue(&Frame::Window(given));
        }
        while in_flight < MAX_IN_FLIGHT && port.queued() < MAX_QUEUED {
            match rustix::io::read(device, &mut request[..]) {
                Ok(count) => {
                    let request = &request[..count];
                    in_flight += usize::from(is_answered(request));
                    for piece in request.chunks(MAX_DATA) {
                        port.queue(&Frame::Output(piece.to_vec()));
                    }
                }
                Err(Errno::AGAIN) => break,
                // One was withdrawn meanwhile.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(Ended::Unmounted),
                Err(error) => return Err(error.into()),
            }
        }
        if !port.flush()? {
            return Ok(Ended::HostGone);
        }
        let sends = if port.queued() == 0 { PollFlags::empty() } else { PollFlags::OUT };
        let mut fds = vec![PollFd::new(&*port, PollFlags::IN | sends)];
        // It reports an abort, wanted or not, and then there is nothing to wait for.
        if in_flight < MAX_IN_FLIGHT && port.queued() < MAX_QUEUED {
            fds.push(PollFd::new(device, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::guest::Request;

    use super::*;
    use crate::test_host::Host;

    #[test]
    fn what_cannot_be_mounted_is_refused_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        std::os::unix::fs::symlink("/proc", path("link")).unwrap();
        fs::write(path("file"), "").unwrap();
        // Directories could be made here, and this is refused as well.
        std::os::unix::fs::symlink("/dev/shm", path("tool")).unwrap();
        let made = Path::new("/dev/shm/new");
        assert!(!made.exists());
        for (path, user, expect) in [
            ("srv".to_owned(), None, "a path in the sandbox begins with /"),
            ("/proc/x".to_owned(), None, "the guest needs what is there"),
            ("/srv/../proc".to_owned(), None, "a path in the sandbox has no .."),
            (path("link"), None, "the guest needs what is there"),
            (path("file"), None, "File exists"),
            (path("link/new/directory"), None, "the guest needs what is there"),
            (path("tool/new"), None, "the guest needs what is there"),
            (path("x"), Some("nobody-here"), "there is no user nobody-here"),
        ] {
            let user = user.map(str::to_owned);
            let mount = Mount { path: path.clone(), read_only: false, user };
            let end = Host::ask(Request::Mount(mount)).bytes().1;
            let Frame::Failed(failure) = end else { panic!("{path}: {end:?}") };
            let has_fuse = Path::new(DEVICE).exists();
            let expect = format!("cannot mount at {path} in the guest: {expect}");
            let is_refused =
                failure.message == expect || (!has_fuse && failure.message.ends_with("has no FUSE"));
            assert!(is_refused, "{failure:?}");
        }
        assert!(!directory.path().join("x").exists() && !made.exists());
    }
}
