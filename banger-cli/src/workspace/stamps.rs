//! Stamps: file attributes from when a file's content was known to be what was sent. A file with the same stamp need
//! not be read again.
//!
//! A stamp counts only once the clock has moved past its times: a file that is written twice within one tick of the
//! file system's clock looks the same both times (git calls such an entry racy). Files without a stamp are read.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, statat};

use super::{
    files::Root,
    record::write_whole,
    source::{FILE, PROGRAM, SYMLINK, os},
};
use crate::{error::Result, ui::age};

const NAME: &str = "stamps";
/// FAT has the coarsest clock of all file systems.
const TICK_SECONDS: i64 = 2;
/// Stamp of a file that must be read to tell whether it changed.
const NONE: &str = "-";

/// Attributes of a file that change when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its mode in a git tree.
    pub mode: u32,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
}

impl Stamp {
    /// Returns the stamp of a file or a symbolic link, or `None` for kinds that git does not support.
    pub fn of(stat: &rustix::fs::Stat) -> Option<Self> {
        let mode = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => SYMLINK,
            FileType::RegularFile if stat.st_mode & 0o100 == 0 => FILE,
            FileType::RegularFile => PROGRAM,
            _ => return None,
        };
        Some(Self {
            mode,
            size: stat.st_size as u64,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
            inode: stat.st_ino,
        })
    }

    /// Returns whether any write from this second on changes the times. A time in the future, which programs can set,
    /// proves nothing.
    fn is_settled(&self, now: i64) -> bool {
        let is_past = |seconds: i64| seconds + TICK_SECONDS < now;
        is_past(self.changed.0) && (is_past(self.modified.0) || self.modified.0 > now)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(' ');
        let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
        let mut number = || fields.next()?.parse::<i64>().ok();
        let (size, modified, changed) = (number()? as u64, (number()?, number()?), (number()?, number()?));
        let inode = number()? as u64;
        fields.next().is_none().then_some(Self { mode, size, modified, changed, inode })
    }

    fn text(&self) -> String {
        let Self { mode, size, modified, changed, inode } = *self;
        let (size, inode) = (size as i64, inode as i64);
        format!("{mode:o} {size} {} {} {} {} {inode}", modified.0, modified.1, changed.0, changed.1)
    }
}

/// Returns the current second.
pub fn now() -> i64 {
    (age::now() / 1_000_000) as i64
}

/// The stamps of everything that was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps {
    files: BTreeMap<Vec<u8>, Option<Stamp>>,
    /// The index of the repository when its entries were last read.
    index: Option<(PathBuf, Stamp)>,
}

impl Stamps {
    /// Adds the stamp of a file whose content is known to be what was sent. It was taken no later than `now`.
    pub fn put(&mut self, path: &[u8], stamp: Option<Stamp>, now: i64) {
        self.files.insert(path.to_vec(), stamp.filter(|stamp| stamp.is_settled(now)));
    }

    /// Removes a file that no longer exists.
    pub fn forget(&mut self, path: &[u8]) {
        self.files.remove(path);
    }

    /// Overrides stamps with newer ones.
    pub fn extend(&mut self, newer: Self) {
        self.files.extend(newer.files);
        self.index = newer.index.or(self.index.take());
    }

    /// Returns the names of everything that was sent, in order.
    pub fn names(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.files.keys()
    }

    /// Returns whether this was sent.
    pub fn has(&self, path: &[u8]) -> bool {
        self.files.contains_key(path)
    }

    /// Returns whether a file with this stamp is as it was sent.
    pub fn matches(&self, path: &[u8], stamp: &Stamp) -> bool {
        self.files.get(path).is_some_and(|known| known.as_ref() == Some(stamp))
    }

    /// Records the stamp of an index, before its entries are read.
    pub fn put_index(&mut self, path: &Path, now: i64) {
        self.index =
            stamp_of(path).filter(|stamp| stamp.is_settled(now)).map(|stamp| (path.to_owned(), stamp));
    }

    /// Returns whether the entries of the index are unchanged since they were last read.
    pub fn index_is_unchanged(&self) -> bool {
        self.index.as_ref().is_some_and(|(path, stamp)| stamp_of(path).as_ref() == Some(stamp))
    }

    /// Loads the stamps for this commit of what was sent. Returns `None` for another commit, or if they are
    /// unreadable; then every file must be read.
    pub fn load(directory: &Path, sent: &str) -> Option<Self> {
        Self::parse(&fs::read(directory.join(NAME)).ok()?, sent)
    }

    /// Saves the stamps for this commit of what was sent.
    pub fn save(&self, directory: &Path, sent: &str) -> Result<()> {
        write_whole(&directory.join(NAME), &self.bytes(sent))
    }

    /// Formats the commit and a line feed, then for the index and each file its stamp, a tab, its path and a zero
    /// byte.
    fn bytes(&self, sent: &str) -> Vec<u8> {
        let mut bytes = format!("{sent}\n").into_bytes();
        let mut put = |stamp: Option<&Stamp>, path: &[u8]| {
            bytes.extend(stamp.map_or(NONE.to_owned(), Stamp::text).bytes());
            bytes.push(b'\t');
            bytes.extend(path);
            bytes.push(0);
        };
        match &self.index {
            Some((path, stamp)) => put(Some(stamp), path.as_os_str().as_bytes()),
            None => put(None, b""),
        }
        self.files.iter().for_each(|(path, stamp)| put(stamp.as_ref(), path));
        bytes
    }

    fn parse(bytes: &[u8], sent: &str) -> Option<Self> {
        let rest = bytes.strip_prefix(sent.as_bytes())?.strip_prefix(b"\n")?;
        let mut entries = rest.strip_suffix(b"\0")?.split(|byte| *byte == 0).map(|entry| {
            let tab = entry.iter().position(|byte| *byte == b'\t')?;
            let stamp = match std::str::from_utf8(&entry[..tab]).ok()? {
                NONE => None,
                text => Some(Stamp::parse(text)?),
            };
            Some((stamp, entry[tab + 1..].to_vec()))
        });
        let (stamp, path) = entries.next()??;
        let index = stamp.map(|stamp| (OsString::from_vec(path).into(), stamp));
        let files = entries.map(|entry| entry.map(|(stamp, path)| (path, stamp))).collect::<Option<_>>()?;
        Some(Self { files, index })
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    Stamp::of(&rustix::fs::lstat(path).ok()?)
}

/// Reads the stamps of many files, best in order: each directory is opened once.
#[derive(Debug)]
pub struct StampReader<'a> {
    root: &'a Root,
    parent: Option<(PathBuf, Option<std::os::fd::OwnedFd>)>,
}

impl<'a> StampReader<'a> {
    /// Looks below this directory.
    pub fn new(root: &'a Root) -> Self {
        Self { root, parent: None }
    }

    /// Returns the stamp of a file, or `None` if it is missing, of a kind that git does not support, or behind a
    /// symbolic link.
    pub fn stamp(&mut self, name: &[u8]) -> io::Result<Option<Stamp>> {
        let (Some(parent), Some(last)) = (os(name).parent(), os(name).file_name()) else { return Ok(None) };
        if self.parent.as_ref().is_none_or(|(known, _)| known != parent) {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
            self.parent = Some((parent.to_owned(), self.root.open_below(parent, flags)?));
        }
        let Some((_, Some(holder))) = &self.parent else { return Ok(None) };
        match statat(holder, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Stamp::of(&stat)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    const STAMP: Stamp =
        Stamp { mode: FILE, size: 5, modified: (100, 7), changed: (100, 8), inode: u64::MAX };

    #[test]
    fn a_stamp_counts_once_the_clock_has_moved_on() {
        let settled = |modified, changed, now| {
            Stamp { modified: (modified, 0), changed: (changed, 0), ..STAMP }.is_settled(now)
        };
        assert!(settled(100, 100, 103));
        assert!(!settled(100, 100, 102), "within a tick of the coarsest clock");
        assert!(!settled(50, 100, 100) && !settled(100, 50, 100));
        assert!(settled(500, 50, 100), "a time of modification in the future");
        assert!(!settled(50, 500, 100), "a clock that went back");
    }

    #[test]
    fn stamps_round_trip_and_only_for_their_commit() {
        let mut stamps = Stamps::default();
        stamps.put(b"a\nb\t\xff", Some(STAMP), 200);
        stamps.put(b"fresh", Some(STAMP), 101);
        stamps.index = Some(("/x/.git/index".into(), STAMP));
        let bytes = stamps.bytes("abc");
        assert_eq!(Stamps::parse(&bytes, "abc"), Some(stamps.clone()));
        assert_eq!(Stamps::parse(&bytes, "abd"), None);
        assert!(stamps.matches(b"a\nb\t\xff", &STAMP) && !stamps.matches(b"fresh", &STAMP));
        assert!(stamps.has(b"fresh") && !stamps.has(b"other"));
        assert_eq!(Stamps::parse(&Stamps::default().bytes("abc"), "abc"), Some(Stamps::default()));
        for damaged in [&bytes[..bytes.len() - 1], b"abc\n", b"abc\n1 2 3\tx\0", b""] {
            assert_eq!(Stamps::parse(damaged, "abc"), None);
        }
    }

    #[test]
    fn a_stamp_is_of_the_file_itself_and_changes_on_write() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        fs::write(dir.path().join("real/x"), "one").unwrap();
        symlink("real", dir.path().join("way")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mut looker = StampReader::new(&root);
        let mut stamp = |name: &str| looker.stamp(name.as_bytes()).unwrap();
        let before = stamp("real/x").unwrap();
        assert_eq!((stamp("way/x"), stamp("real"), stamp("nowhere/x"), stamp("")), (None, None, None, None));
        assert_eq!(stamp("way").unwrap().mode, SYMLINK);
        fs::write(dir.path().join("real/x"), "longer").unwrap();
        assert_ne!(stamp("real/x").unwrap(), before);
    }
}
