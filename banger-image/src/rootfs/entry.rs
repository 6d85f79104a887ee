//! An entry of an archive.

use super::sparse::Segment;

/// Seconds since 1970, and nanoseconds.
pub type Time = (i64, u32);

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub what: What,
    /// Owner, permissions and time.
    pub meta: Meta,
    /// Its extended attributes: names and values. A reader returns them in the order of their names.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory,
    /// A regular file, whose content follows.
    File(Shape),
    /// A symbolic link to this path.
    Symlink(Vec<u8>),
    /// A hard link to this entry.
    Link(Vec<u8>),
    /// A device or a pipe.
    Special(Special),
}

/// Something that is neither file, directory nor link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of mknod(2)")]
pub enum Special {
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// The length of a file, and which of its data the archive has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its length.
    pub size: u64,
    /// The ranges in the archive, in order; `None` if it has the whole file.
    pub segments: Option<Vec<Segment>>,
}

/// Owner, permissions and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// The lower twelve bits of `st_mode`.
    pub mode: u16,
    /// Its owner.
    pub user: u32,
    /// Its group.
    pub group: u32,
    /// When its content was last changed.
    pub modified: Time,
}

impl Meta {
    /// For a directory without an entry of its own.
    pub const IMPLIED: Self = Self { mode: 0o755, user: 0, group: 0, modified: (0, 0) };
}
