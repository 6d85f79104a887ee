//! Accesses files below a directory by names that never lead through a symbolic link.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

use banger_proto::guest::message::Algorithm;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2, readlinkat},
    io::Errno,
};

use super::{
    source::{FILE, PROGRAM, SYMLINK, Stat, os},
    stamps::Stamp,
};
use crate::error::{Error, Result};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// An open directory.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// Its path.
    pub path: PathBuf,
}

/// The file with a name.
#[derive(Debug)]
pub enum Found {
    /// A regular file: open, with its attributes at that time.
    File(File, Facts),
    /// A symbolic link and its target.
    Symlink(Vec<u8>, Facts),
    /// A directory, or a kind of file that git does not support.
    Other(FileType),
}

/// Attributes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Its mode in a git tree.
    pub mode: u32,
    /// Its permission bits.
    pub permissions: u32,
    /// Its size.
    pub size: u64,
    /// Its modification time and size, as in git's index.
    pub stat: Stat,
    /// Attributes that change when the file is written.
    pub stamp: Option<Stamp>,
}

impl Root {
    /// Opens a directory.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| Error::io(format!("read {}", path.display()), errno.into()))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the file with this name. Returns `None` if it does not exist, or something is in the way.
    pub fn look(&self, name: &[u8]) -> io::Result<Option<Found>> {
        let Some(found) = self.open_below(os(name), OFlags::PATH | OFlags::NOFOLLOW)? else {
            return Ok(None);
        };
        let stat = fstat(&found)?;
        let facts = |mode, size| Facts {
            mode,
            permissions: stat.st_mode & 0o7777,
            size,
            stat: Stat { mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64), size: size as u32 },
            stamp: Stamp::of(&stat),
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(&found, "", Vec::new())?.into_bytes();
                let size = target.len() as u64;
                Some(Found::Symlink(target, facts(SYMLINK, size)))
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let Some(file) = self.open_below(os(name), flags)? else { return Ok(None) };
                let file = File::from(file);
                let size = file.metadata()?.size();
                let mode = if stat.st_mode & 0o100 == 0 { FILE } else { PROGRAM };
                Some(Found::File(file, facts(mode, size)))
            }
            other => Some(Found::Other(other)),
        })
    }

    /// Opens a path below the directory. Returns `None` if it does not exist, or a link or a file is in the way.
    pub fn open_below(&self, name: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the mode and the object name of the file, as in a git tree.
    pub fn digest(&self, name: &[u8], algorithm: Algorithm) -> io::Result<Option<(u32, String)>> {
        Ok(match self.look(name)? {
            Some(Found::File(file, facts)) => {
                let mut hasher = Hasher::new(algorithm, facts.size);
                let mut file = Exactly::new(file, facts.size);
                let mut buffer = vec![0; CHUNK];
                while let count @ 1.. = file.read(&mut buffer)? {
                    hasher.update(&buffer[..count]);
                }
                Some((facts.mode, hasher.finish()))
            }
            Some(Found::Symlink(target, _)) => Some((SYMLINK, blob_id(algorithm, &target))),
            Some(Found::Other(_)) | None => None,
        })
    }
}

/// Reads as many bytes of a file as it had when it was opened. Fails if it has fewer by now.
#[derive(Debug)]
pub struct Exactly {
    file: File,
    left: u64,
}

impl Exactly {
    /// Reads this many bytes.
    pub fn new(file: File, size: u64) -> Self {
        Self { file, left: size }
    }
}

impl Read for Exactly {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let wanted = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read(&mut into[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was truncated while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Computes git's object name of a content.
#[derive(Debug)]
pub enum Hasher {
    /// SHA-1.
    Sha1(sha1::Sha1),
    /// SHA-256.
    Sha256(sha2::Sha256),
}

impl Hasher {
    /// Starts with a content of this size.
    pub fn new(algorithm: Algorithm, size: u64) -> Self {
        let head = format!("blob {size}\0");
        match algorithm {
            Algorithm::Sha1 => Self::Sha1(sha1::Digest::new_with_prefix(head)),
            Algorithm::Sha256 => Self::Sha256(sha2::Digest::new_with_prefix(head)),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hasher) => sha1::Digest::update(hasher, bytes),
            Self::Sha256(hasher) => sha2::Digest::update(hasher, bytes),
        }
    }

    /// Returns the object name.
    pub fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha1(hasher) => hex(&sha1::Digest::finalize(hasher)),
            Self::Sha256(hasher) => hex(&sha2::Digest::finalize(hasher)),
        }
    }
}

/// Returns git's object name of these bytes.
pub fn blob_id(algorithm: Algorithm, bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(algorithm, bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

/// Returns whether a name from a guest is valid in a tree: relative, without `..`, and not a name that git reserves
/// on any file system.
pub fn is_safe_name(name: &[u8]) -> bool {
    let path = os(name);
    let plain = path.components().all(|part| match part {
        Component::Normal(part) => !part.as_bytes().eq_ignore_ascii_case(b".git"),
        _ => false,
    });
    // `Path::components` accepts more than git: doubled slashes, dots, trailing slashes.
    plain
        && !name.is_empty()
        && path.components().as_path().as_os_str().as_bytes() == name
        && !name.windows(2).any(|pair| pair == b"//")
        && !name.windows(3).any(|part| part == b"/./")
        && !name.ends_with(b"/")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn names_do_not_lead_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("sub")).unwrap();
        fs::write(path("sub/run"), "hello").unwrap();
        fs::set_permissions(path("sub/run"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("sub", path("way")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let digest = |name: &str| root.digest(name.as_bytes(), Algorithm::Sha1).unwrap();
        assert_eq!(digest("sub/run"), Some((PROGRAM, "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0".into())));
        assert_eq!(digest("way").map(|found| found.0), Some(SYMLINK));
        for name in ["way/run", "nowhere", "sub", "../etc/passwd", "sub/run/x"] {
            assert_eq!(digest(name), None, "{name}");
        }
    }

    #[test]
    fn names_from_a_guest_stay_inside() {
        for good in [&b"a"[..], b"a/b", b"\xff\n", b".gitignore", b"a/.github/x", b"..."] {
            assert!(is_safe_name(good), "{}", good.escape_ascii());
        }
        let bad =
            ["", "/a", "../a", "a/../b", ".", "a/.", "a//b", "a/", "./a", ".git", ".git/x", "a/.GIT/hooks/x"];
        for bad in bad {
            assert!(!is_safe_name(bad.as_bytes()), "{bad}");
        }
    }
}
