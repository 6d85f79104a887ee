//! Reads files below a directory, by listing or by name. A name is never resolved through a symbolic link; git does
//! not do that either.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use banger_proto::guest::{
    Frame,
    frame::MAX_DATA,
    listing::{Entry, Kind},
    message::Algorithm,
};
use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2, readlinkat, unlinkat},
    io::Errno,
};
use sha1::Digest as _;

use crate::{
    archive::{Input, Output},
    conversation::{kind_of, refuse},
    port::Port,
};

/// Limit on the names of one request: those of a million files.
const MAX_NAMES: u64 = 64 << 20;
/// Git's own directory.
const GIT: &str = ".git";

/// Lists everything below a directory.
pub fn list(port: &mut Port, directory: &str) -> io::Result<()> {
    let listed = write_list(port, Path::new(directory));
    finish(port, listed, "list", directory)
}

fn write_list(port: &mut Port, directory: &Path) -> io::Result<()> {
    check(directory)?;
    let mut output = io::BufWriter::with_capacity(MAX_DATA, Output { port });
    let mut waiting = vec![PathBuf::new()];
    let mut bytes = Vec::new();
    while let Some(below) = waiting.pop() {
        let entries = match fs::read_dir(directory.join(&below)) {
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !below.as_os_str().is_empty() => {
                continue;
            }
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name() == GIT {
                continue;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            let name = below.join(entry.file_name());
            let kind = match metadata.file_type() {
                kind if kind.is_dir() => Kind::Directory,
                kind if kind.is_file() => Kind::File,
                kind if kind.is_symlink() => Kind::Symlink,
                _ => Kind::Other,
            };
            let (mode, size) = (metadata.mode() & 0o7777, metadata.size());
            bytes.clear();
            Entry { kind, mode, size, name: name.as_os_str().as_bytes().to_vec() }.write(&mut bytes);
            output.write_all(&bytes)?;
            if kind == Kind::Directory {
                waiting.push(name);
            }
        }
    }
    output.flush()
}

/// Sends the digests of some files.
pub fn digest(port: &mut Port, directory: &str, algorithm: Algorithm) -> io::Result<()> {
    let digests = (|| {
        let (root, names) = (open_root(directory)?, names(port)?);
        let mut output = io::BufWriter::with_capacity(MAX_DATA, Output { port });
        let mut buffer = vec![0; MAX_DATA];
        for name in names {
            match blob_id(&root, &name, algorithm, &mut buffer)? {
                Some(id) => writeln!(output, "{id}")?,
                None => writeln!(output, "-")?,
            }
        }
        output.flush()
    })();
    finish(port, digests, "read", directory)
}

/// Sends some files.
pub fn get(port: &mut Port, directory: &str) -> io::Result<()> {
    let sent = (|| {
        let (root, names) = (open_root(directory)?, names(port)?);
        let mut archive = tar::Builder::new(io::BufWriter::with_capacity(MAX_DATA, Output { port }));
        for name in names {
            append(&mut archive, &root, &name)?;
        }
        archive.into_inner()?.flush()
    })();
    finish(port, sent, "read", directory)
}

fn append(archive: &mut tar::Builder<impl Write>, root: &OwnedFd, name: &Path) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    match look(root, name)? {
        Some(Found::File(mut file)) => {
            let metadata = file.metadata()?;
            header.set_metadata(&metadata);
            let content = Exactly { file: &mut file, left: metadata.len() };
            banger_copy::append_entry(archive, header, name.as_os_str().as_bytes(), None, content)
        }
        Some(Found::Symlink(target)) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            header.set_mtime(0);
            // For git, the target of a link is content: every byte matters.
            let name = name.as_os_str().as_bytes();
            banger_copy::append_entry(archive, header, name, Some(&target), io::empty())
        }
        None => Ok(()),
    }
}

/// Removes some files, and the directories that become empty.
pub fn remove(port: &mut Port, directory: &str) -> io::Result<()> {
    let removed = (|| {
        let (root, names) = (open_root(directory)?, names(port)?);
        for name in names {
            remove_one(&root, &name)?;
        }
        Ok(())
    })();
    finish(port, removed, "remove files in", directory)
}

fn remove_one(root: &OwnedFd, name: &Path) -> io::Result<()> {
    let mut flags = AtFlags::empty();
    let mut name = Some(name);
    while let Some((parent, last)) = name.and_then(|name| Some((name.parent()?, name.file_name()?))) {
        let holder = match open_below(root, parent, OFlags::PATH | OFlags::DIRECTORY)? {
            Some(holder) => holder,
            None => return Ok(()),
        };
        match unlinkat(&holder, last, flags) {
            Ok(()) => {}
            Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if flags == AtFlags::REMOVEDIR => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        flags = AtFlags::REMOVEDIR;
        name = Some(parent).filter(|parent| !parent.as_os_str().is_empty());
    }
    Ok(())
}

/// A file that git can have in a tree.
enum Found {
    File(File),
    Symlink(Vec<u8>),
}

/// Opens the file with this name. Returns `None` if it is missing or of a kind that git does not know.
fn look(root: &OwnedFd, name: &Path) -> io::Result<Option<Found>> {
    let Some(found) = open_below(root, name, OFlags::PATH | OFlags::NOFOLLOW)? else { return Ok(None) };
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    Ok(match kind {
        rustix::fs::FileType::Symlink => {
            Some(Found::Symlink(readlinkat(&found, "", Vec::new())?.into_bytes()))
        }
        rustix::fs::FileType::RegularFile => {
            open_below(root, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?
                .map(|file| Found::File(File::from(file)))
        }
        _ => None,
    })
}

/// Opens a path below a directory without following links. Returns `None` if it is missing.
fn open_below(root: &OwnedFd, name: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns git's object name for the content of a file (gitformat: the hash of `blob`, the size, a zero byte and the
/// content). Uses `buffer` for reading.
fn blob_id(
    root: &OwnedFd,
    name: &Path,
    algorithm: Algorithm,
    buffer: &mut [u8],
) -> io::Result<Option<String>> {
    Ok(match look(root, name)? {
        Some(Found::File(mut file)) => {
            let left = file.metadata()?.len();
            let id = hash(algorithm, left, &mut Exactly { file: &mut file, left }, buffer);
            // A file that changes while it is read has no digest yet, and so differs from every other.
            id.ok()
        }
        Some(Found::Symlink(target)) => {
            Some(hash(algorithm, target.len() as u64, &mut target.as_slice(), buffer)?)
        }
        None => None,
    })
}

fn hash(algorithm: Algorithm, size: u64, from: &mut impl Read, buffer: &mut [u8]) -> io::Result<String> {
    let head = format!("blob {size}\0");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(match algorithm {
        Algorithm::Sha1 => {
            let mut hasher = sha1::Sha1::new_with_prefix(head);
            while let count @ 1.. = from.read(buffer)? {
                hasher.update(&buffer[..count]);
            }
            hex(&hasher.finalize())
        }
        Algorithm::Sha256 => {
            let mut hasher = <sha2::Sha256 as sha2::Digest>::new_with_prefix(head);
            while let count @ 1.. = from.read(buffer)? {
                sha2::Digest::update(&mut hasher, &buffer[..count]);
            }
            hex(&sha2::Digest::finalize(hasher))
        }
    })
}

/// Reads as many bytes of a file as it had when it was opened. Fails if it has fewer by now.
struct Exactly<'a> {
    file: &'a mut File,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let wanted = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.file.read(&mut into[..wanted])?;
        if count == 0 {
            return Err(io::Error::other("the file shrank while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Reads all names from the host before anything is answered, because the host does not listen while it sends.
fn names(port: &mut Port) -> io::Result<Vec<PathBuf>> {
    let mut bytes = Vec::new();
    Input::new(port).take(MAX_NAMES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_NAMES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many names"));
    }
    let names = bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| PathBuf::from(OsStr::from_bytes(name))).collect())
}

fn open_root(directory: &str) -> io::Result<OwnedFd> {
    check(Path::new(directory))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::empty())?)
}

fn check(directory: &Path) -> io::Result<()> {
    match directory.is_absolute() {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn finish(port: &mut Port, result: io::Result<()>, what: &str, directory: &str) -> io::Result<()> {
    match result {
        Ok(()) => port.send(&Frame::Done).map(drop),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => refuse(port, kind_of(&error), &format!("cannot {what} {directory}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use banger_proto::guest::{Request, listing::Reader};

    use super::*;
    use crate::test_host::Host;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("sub/.git")).unwrap();
        fs::create_dir(path(".git")).unwrap();
        fs::write(path(".git/config"), "x").unwrap();
        fs::write(path("run"), "hello").unwrap();
        fs::set_permissions(path("run"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(path("sub/odd\nname"), "").unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"sub/\xff")), "x").unwrap();
        symlink("./run//", path("link")).unwrap();
        symlink("sub", path("way")).unwrap();
        dir
    }

    fn directory(dir: &tempfile::TempDir) -> String {
        dir.path().to_str().unwrap().to_owned()
    }

    fn ask(request: Request, names: &[u8]) -> Vec<u8> {
        let mut host = Host::ask(request);
        host.feed(names);
        let (bytes, end) = host.bytes();
        assert_eq!(end, Frame::Done);
        bytes
    }

    #[test]
    fn a_listing_leaves_out_git() {
        let dir = tree();
        let mut host = Host::ask(Request::List { directory: directory(&dir) });
        let (bytes, end) = host.bytes();
        assert_eq!(end, Frame::Done);
        let mut entries: Vec<_> = Reader::default()
            .push(&bytes)
            .unwrap()
            .into_iter()
            .map(|entry| (entry.name, entry.kind, entry.mode, entry.size))
            .collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<_> = entries.iter().map(|entry| entry.0.as_slice()).collect();
        assert_eq!(names, [&b"link"[..], b"run", b"sub", b"sub/odd\nname", b"sub/\xff", b"way"]);
        assert_eq!((entries[1].1, entries[1].2, entries[1].3), (Kind::File, 0o750, 5));
        assert_eq!((entries[0].1, entries[0].3), (Kind::Symlink, 7));
    }

    #[test]
    fn digests_are_git_object_names() {
        let dir = tree();
        let names = b"run\0link\0nowhere\0way/odd\nname\0sub/odd\nname\0../etc/passwd\0sub\0";
        let request = |algorithm| Request::Digest { directory: directory(&dir), algorithm };
        let digests = String::from_utf8(ask(request(Algorithm::Sha1), names)).unwrap();
        // As `git hash-object` prints them.
        let hello = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
        let empty = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";
        let lines: Vec<_> = digests.lines().collect();
        assert_eq!([lines[0], lines[4]], [hello, empty]);
        assert_eq!([lines[2], lines[3], lines[5], lines[6]], ["-"; 4]);
        assert_eq!(lines[1], "888936241118763975d4497c4a9050b9832c7d57");
        let digests = ask(request(Algorithm::Sha256), b"sub/odd\nname\0");
        assert_eq!(digests, b"473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813\n");
    }

    #[test]
    fn files_come_by_name_and_never_through_a_link() {
        let dir = tree();
        let names = b"run\0way/odd\nname\0link\0sub/\xff\0nowhere\0";
        let bytes = ask(Request::GetFiles { directory: directory(&dir) }, names);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            if let Some(target) = entry.link_name_bytes() {
                content = String::from_utf8(target.into_owned()).unwrap();
            }
            seen.push((entry.path_bytes().into_owned(), content, entry.header().mode().unwrap() & 0o777));
        }
        let expect = [(&b"run"[..], "hello", 0o750), (b"link", "./run//", 0o777), (b"sub/\xff", "x", 0o644)];
        assert_eq!(seen, expect.map(|(name, content, mode)| (name.to_vec(), content.to_owned(), mode)));
    }

    #[test]
    fn removal_includes_empty_directories() {
        let dir = tree();
        fs::remove_dir(dir.path().join("sub/.git")).unwrap();
        let request = || Request::Remove { directory: directory(&dir) };
        ask(request(), b"way/\xff\0nowhere/x\0sub/odd\nname\0");
        assert!(dir.path().join("sub").exists(), "a name led through a link, or a directory is not empty");
        ask(request(), b"sub/\xff\0");
        assert!(!dir.path().join("sub").exists());
    }

    #[test]
    fn a_missing_directory_is_reported() {
        let mut host = Host::ask(Request::List { directory: "/nowhere/at all".into() });
        let (_, end) = host.bytes();
        let Frame::Failed(failure) = end else { panic!("{end:?}") };
        assert!(failure.message.starts_with("cannot list /nowhere/at all: "), "{failure:?}");
    }
}
