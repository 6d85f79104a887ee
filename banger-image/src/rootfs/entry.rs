//! What an archive says of one name.

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
    /// Who may do what with it.
    pub meta: Meta,
    /// Its extended attributes: names and values.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory,
    /// A regular file, whose content follows.
    File(Shape),
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// Another name of this entry.
    Link(Vec<u8>),
    /// A device, a pipe or a socket.
    Special(Special),
}

/// What is neither file, directory nor link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of mknod(2)")]
pub enum Special {
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// How long a file is, and what of it is in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its length.
    pub size: u64,
    /// The stretches that the archive has, in order; `None` when it has all of the file.
    pub segments: Option<Vec<Segment>>,
}

/// Owner, rights and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// The lower twelve bits of `st_mode`.
    pub mode: u16,
    /// Its owner.
    pub user: u32,
    /// Its group.
    pub group: u32,
    /// When its content was changed.
    pub modified: Time,
}

impl Meta {
    /// Of a directory that an archive has entries in and no entry for.
    pub const IMPLIED: Self = Self { mode: 0o755, user: 0, group: 0, modified: (0, 0) };
}
