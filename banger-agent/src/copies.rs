//! Copies files and directories into and out of the guest. `banger-copy` reads and writes them; this module resolves
//! paths and users of the guest.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use banger_copy::{Access, Names, Notes, Owner, Ownership, Packer, Rules, Target};
use banger_proto::{
    causes::with_causes,
    guest::{
        Frame,
        frame::MAX_DATA,
        message::{CopyIn, CopyOut, CopyOwner},
    },
};

use crate::{
    account::Account,
    archive::{Input, Output},
    complete,
    conversation::{kind_of, refuse},
    port::Port,
};

/// Default user of commands if the image names none.
const ROOT: &str = "root";

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Copy(#[from] banger_copy::Error),
    #[error("there is no user {0}")]
    NoUser(String),
    #[error("{0:?} is not a path in a sandbox")]
    NoPath(String),
    #[error("cannot read the users of the guest")]
    Users(#[source] io::Error),
}

impl Error {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Copy(error) => error.kind(),
            Self::NoUser(_) | Self::NoPath(_) => io::ErrorKind::InvalidInput,
            Self::Users(source) => source.kind(),
        }
    }
}

/// Receives the archive that follows as a copy.
pub fn receive(port: &mut Port, copy: &CopyIn, login: Option<&str>) -> io::Result<()> {
    let received = (|| {
        let to = resolve(&copy.to, login)?;
        let (owner, access) = match &copy.owner {
            CopyOwner::Archive => (Owner::Archive, Access::AS_ARCHIVED),
            CopyOwner::Login => (owner(login.unwrap_or(ROOT))?, Access::WITHOUT_SETUID_BITS),
            CopyOwner::User(user) => (owner(user)?, Access::WITHOUT_SETUID_BITS),
        };
        let rules = Rules { owner, access, through_links: true, names: Names::Any };
        let top = copy.top.as_deref().map(OsStr::new);
        let target = Target::of(&to, top);
        Ok(banger_copy::receive(Input::new(port), top, &target, rules)?)
    })();
    finish(port, received)
}

/// Sends a file or directory.
pub fn send(port: &mut Port, copy: &CopyOut, login: Option<&str>) -> io::Result<()> {
    let sent = (|| {
        let path = resolve(&copy.path, login)?;
        let output = io::BufWriter::with_capacity(MAX_DATA, Output { port });
        let mut packer = Packer::new(output, Ownership::Source).follow_links(copy.follow);
        packer.add(&path, copy.top.as_deref().map(OsStr::new))?;
        Ok(packer.finish()?.1)
    })();
    finish(port, sent)
}

fn finish(port: &mut Port, result: Result<Notes, Error>) -> io::Result<()> {
    match result {
        Ok(notes) => {
            for line in notes.into_lines() {
                let mut bytes = line.replace('\n', " ").into_bytes();
                bytes.truncate(MAX_DATA - 1);
                bytes.push(b'\n');
                port.queue(&Frame::ErrorOutput(bytes));
            }
            port.send(&Frame::Done).map(drop)
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => refuse(port, kind_of(&error.kind().into()), &with_causes(&error)),
    }
}

/// Returns the names that complete a path of a request.
pub fn complete(path: &str, login: Option<&str>) -> Vec<String> {
    let (directory, begin) = path.rsplit_once('/').unwrap_or((path, ""));
    match resolve(&format!("{directory}/"), login) {
        Ok(directory) => complete::names(&directory, begin),
        Err(_) => Vec::new(),
    }
}

/// Resolves a path of a request.
fn resolve(path: &str, login: Option<&str>) -> Result<PathBuf, Error> {
    if path.starts_with('/') {
        return Ok(path.into());
    }
    let Some(rest) = path.strip_prefix('~') else { return Err(Error::NoPath(path.to_owned())) };
    let (user, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let user = if user.is_empty() { login.unwrap_or(ROOT) } else { user };
    let home = account(user)?.home;
    // Not `Path::join`: a trailing slash has a meaning.
    Ok(match rest {
        "" if !path.ends_with('/') => home.into(),
        rest => Path::new(&format!("{}/{rest}", home.trim_end_matches('/'))).to_owned(),
    })
}

fn owner(user: &str) -> Result<Owner, Error> {
    account(user).map(|account| Owner::Given(account.uid, account.gid))
}

fn account(user: &str) -> Result<Account, Error> {
    let found = match user.is_empty() {
        true => None,
        false => Account::find(user).map_err(Error::Users)?,
    };
    found.ok_or_else(|| Error::NoUser(user.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs,
        io::Write,
        os::unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixListener,
        },
    };

    use banger_proto::guest::Request;

    use super::*;
    use crate::test_host::Host;

    fn out(path: &str, top: Option<&str>) -> (Vec<u8>, Vec<String>, Frame) {
        let top = top.map(str::to_owned);
        let mut host = Host::ask(Request::CopyOut(CopyOut { path: path.into(), top, follow: false }));
        host.copied()
    }

    fn archive(entries: &[(&str, &[u8], u32)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content, mode) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(match name.ends_with('/') {
                true => tar::EntryType::Directory,
                false => tar::EntryType::Regular,
            });
            header.set_size(content.len() as u64);
            header.set_mode(*mode);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(1_000_000_000);
            archive.append_data(&mut header, name, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn put(to: &str, top: Option<&str>, owner: CopyOwner, archive: &[u8]) -> (Vec<String>, Frame) {
        let top = top.map(str::to_owned);
        let mut host = Host::ask(Request::CopyIn(CopyIn { to: to.into(), top, owner }));
        host.feed(archive);
        let (_, remarks, end) = host.copied();
        (remarks, end)
    }

    #[test]
    fn paths_are_completed_below_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/hosts"), "").unwrap();
        let complete = |path: &str| {
            let (json, end) = Host::ask(Request::Complete { path: path.to_owned() }).bytes();
            assert_eq!(end, Frame::Done, "{path}");
            serde_json::from_slice::<Vec<String>>(&json).unwrap()
        };
        let top = dir.path().display();
        assert_eq!(complete(&format!("{top}/s")), ["sub/"]);
        assert_eq!(complete(&format!("{top}/sub/h")), ["hosts"]);
        for nothing in [format!("{top}/nowhere/x"), "relative".into(), "~nobody-is-called-this/x".into()] {
            assert_eq!(complete(&nothing), [""; 0], "{nothing}");
        }
    }

    #[test]
    fn growing_logs_and_files_without_a_length_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, vec![b'x'; 200_000]).unwrap();
        let writer = std::thread::spawn({
            let log = log.clone();
            move || {
                let mut log = fs::OpenOptions::new().append(true).open(log).unwrap();
                for _ in 0..2000 {
                    log.write_all(&[b'y'; 1000]).unwrap();
                }
            }
        });
        for _ in 0..20 {
            let (bytes, _, end) = out(log.to_str().unwrap(), Some("log"));
            assert_eq!(end, Frame::Done);
            let mut archive = tar::Archive::new(bytes.as_slice());
            let mut entries = archive.entries().unwrap();
            let size = io::copy(&mut entries.next().unwrap().unwrap(), &mut io::sink()).unwrap();
            assert!(size >= 200_000 && entries.next().is_none(), "{size}");
        }
        writer.join().unwrap();
        let (bytes, remarks, end) = out("/proc/version", Some("version"));
        assert_eq!((remarks, end), (Vec::new(), Frame::Done));
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut content = String::new();
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        io::Read::read_to_string(&mut entry, &mut content).unwrap();
        assert_eq!(content, fs::read_to_string("/proc/version").unwrap());
    }

    #[test]
    fn a_socket_is_noted_and_a_device_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = UnixListener::bind(dir.path().join("sock")).unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let path = dir.path().to_str().unwrap();
        let (_, remarks, end) = out(path, Some("d"));
        assert_eq!(
            (remarks, end),
            (vec![format!("{path}/sock is a socket, and was not copied")], Frame::Done)
        );
        for (path, expect) in [
            ("/dev/null", "/dev/null is a device: only files, directories and symbolic links are copied"),
            ("/nowhere/x", "cannot read /nowhere/x: No such file or directory"),
            ("relative", "\"relative\" is not a path in a sandbox"),
            ("~nobody-here/x", "there is no user nobody-here"),
        ] {
            let Frame::Failed(failure) = out(path, Some("x")).2 else { panic!("{path}") };
            assert_eq!(failure.message, expect);
        }
    }

    #[test]
    fn a_copy_has_the_requested_owner_and_no_setuid_bits() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: files are given away by root alone");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let owned = |name: &str| {
            let found = fs::metadata(dir.path().join(name)).unwrap();
            (found.uid(), found.gid(), found.permissions().mode() & 0o7777, found.mtime())
        };
        let to = dir.path().to_str().unwrap();
        let bytes = archive(&[("t/", b"", 0o1777), ("t/run", b"x", 0o6755)]);
        let given = CopyOwner::User("42:43".to_owned());
        assert_eq!(put(&format!("{to}/given"), Some("t"), given, &bytes), (Vec::new(), Frame::Done));
        assert_eq!(owned("given"), (42, 43, 0o1777, 1_000_000_000));
        assert_eq!(owned("given/run"), (42, 43, 0o2755, 1_000_000_000));
        assert_eq!(put(to, Some("t"), CopyOwner::Login, &bytes).1, Frame::Done);
        assert_eq!(owned("t/run"), (0, 0, 0o2755, 1_000_000_000));
        assert_eq!(put(&format!("{to}/raw"), None, CopyOwner::Archive, &bytes).1, Frame::Done);
        assert_eq!(owned("raw/t/run"), (7, 8, 0o6755, 1_000_000_000));
        let nobody = CopyOwner::User("nobody-here".to_owned());
        let Frame::Failed(failure) = put(to, Some("t"), nobody, b"").1 else { panic!() };
        assert_eq!(failure.message, "there is no user nobody-here");
    }

    #[test]
    fn homes_are_those_of_the_guest() {
        let resolved = |path: &str, login: Option<&str>| resolve(path, login).unwrap().into_os_string();
        assert_eq!(resolved("~", None), "/root");
        assert_eq!(resolved("~/", None), "/root/");
        assert_eq!(resolved("~/a b", None), "/root/a b");
        assert_eq!(resolved("~root/x/", Some("nobody")), "/root/x/");
        assert_eq!(resolved("~/x", Some("0")), "/root/x");
        assert_eq!(resolved("/~/x", None), "/~/x");
    }

    #[test]
    fn an_interrupted_copy_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().to_str().unwrap();
        let bytes = archive(&[("t/", b"", 0o755), ("t/a", &[1; 5000], 0o644), ("t/b", &[2; 5000], 0o644)]);
        for (name, cut) in [("t", 3000), ("file", 3000)] {
            let bytes = if name == "t" { bytes.clone() } else { archive(&[("file", &[1; 5000], 0o644)]) };
            let copy = CopyIn { to: to.into(), top: Some(name.into()), owner: CopyOwner::Login };
            let mut host = Host::ask(Request::CopyIn(copy));
            for piece in bytes[..bytes.len() - cut].chunks(MAX_DATA) {
                host.send(&Frame::Input(piece.to_vec()));
            }
            // Like an interrupted command, this hangs up.
            drop(host);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
        }
    }
}
