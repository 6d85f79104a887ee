//! How files are written: whose they become, and with what permissions and times.

use std::os::fd::AsFd;

use rustix::{
    fs::{Gid, Timespec, Timestamps, Uid, fchown},
    io::Errno,
};
use tar::Header;

use crate::{Error, Result};

/// Whose the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Of the process that writes them.
    Caller,
    /// Of the user and group in the archive.
    Archive,
    /// Of this user and group.
    Given(u32, u32),
}

/// The permissions that files get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Bits that a file may have.
    pub files: u32,
    /// Bits that a directory may have.
    pub directories: u32,
}

impl Access {
    /// All that the archive says.
    pub const AS_ARCHIVED: Self = Self { files: 0o7777, directories: 0o7777 };
    /// Those of files that get another owner.
    pub const OF_ANOTHER: Self = Self { files: 0o3777, directories: 0o3777 };

    /// Those of files whose sender is not trusted: no program gets rights of the user's, and nobody gets more rights
    /// than this umask leaves.
    pub const fn untrusted(umask: u32) -> Self {
        Self { files: 0o1777 & !umask, directories: 0o3777 & !umask }
    }
}

/// How files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Whose they are.
    pub owner: Owner,
    /// Their permissions.
    pub access: Access,
    /// Whether directories that are symbolic links in the destination are gone through, as long as they stay in it.
    pub through_links: bool,
}

/// What the header of an entry says.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub permissions: u32,
    pub owner: Option<(u32, u32)>,
    pub mtime: i64,
}

impl Facts {
    /// Those of this header.
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

    /// Gives a file its owner.
    pub fn own(self, file: impl AsFd) -> Result<(), Errno> {
        match self.owner {
            Some((uid, gid)) => fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))),
            None => Ok(()),
        }
    }

    /// The times of a file.
    pub fn times(self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }
}
