//! Rules for writing files: owner, permissions and times.

use std::{ffi::OsStr, os::fd::AsFd, path::Path};

use rustix::{
    fs::{Gid, Timespec, Timestamps, Uid, fchown},
    io::Errno,
};
use tar::Header;

use crate::{Error, Result};

/// Who owns the written files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The user that writes them.
    Caller,
    /// The user and group in the archive.
    Archive,
    /// This user and group.
    Given(u32, u32),
}

/// The permission bits that files may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Bits allowed for files.
    pub files: u32,
    /// Bits allowed for directories.
    pub directories: u32,
}

impl Access {
    /// All bits of the archive.
    pub const AS_ARCHIVED: Self = Self { files: 0o7777, directories: 0o7777 };
    /// All but setuid, for files that get another owner.
    pub const WITHOUT_SETUID_BITS: Self = Self { files: 0o3777, directories: 0o3777 };

    /// Returns the bits for an untrusted sender: no program gets the user's rights, and the umask limits everyone's.
    pub const fn untrusted(umask: u32) -> Self {
        Self { files: 0o1777 & !umask, directories: 0o3777 & !umask }
    }
}

/// The names that files may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// All.
    Any,
    /// None below a `.git`, in any case of letters: git would run the programs that such files name.
    NoGit,
}

impl Names {
    /// Returns whether a file may have this path.
    pub fn allow(self, path: &Path) -> bool {
        let is_git = |name: &OsStr| name.eq_ignore_ascii_case(".git");
        self == Self::Any || !path.iter().any(is_git)
    }
}

/// Rules for writing files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The owner.
    pub owner: Owner,
    /// The permissions.
    pub access: Access,
    /// Whether to follow symbolic links to directories in the destination, as long as they stay inside it.
    pub through_links: bool,
    /// The names that files may get; an archive with others is refused.
    pub names: Names,
}

/// Attributes from the header of an entry.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub permissions: u32,
    pub owner: Option<(u32, u32)>,
    pub mtime: i64,
}

impl Facts {
    /// Reads the attributes from a header, as the rules allow.
    pub fn of(header: &Header, rules: Rules) -> Result<Self> {
        let damaged = |_| Error::Damaged("a header in it is invalid".to_owned());
        let permissions = header.mode().map_err(damaged)?;
        let owner = match rules.owner {
            Owner::Caller => None,
            Owner::Given(uid, gid) => Some((uid, gid)),
            Owner::Archive => {
                let number = |number: u64| {
                    let number = u32::try_from(number).ok().filter(|number| *number != u32::MAX);
                    number.ok_or_else(|| Error::Damaged("a user or group in it is invalid".to_owned()))
                };
                Some((number(header.uid().map_err(damaged)?)?, number(header.gid().map_err(damaged)?)?))
            }
        };
        // An invalid time becomes the epoch.
        let mtime = header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or_default();
        Ok(Facts { permissions, owner, mtime })
    }

    /// Sets the owner of a file.
    pub fn set_owner(self, file: impl AsFd) -> Result<(), Errno> {
        match self.owner {
            Some((uid, gid)) => fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))),
            None => Ok(()),
        }
    }

    /// Returns the times of a file.
    pub fn times(self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }
}
