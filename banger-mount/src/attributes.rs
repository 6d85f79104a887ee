//! Attributes of files, as the guest sees and sets them.

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, Timestamps, UTIME_NOW, UTIME_OMIT},
    io::Errno,
    time::Timespec,
};

use crate::{
    host::{DIRECTORY_MODE, FILE_MODE, kind_of, path_of, reopen, stat},
    message::{Body, Fault, Out},
    names::VALID,
    server::Server,
};

/// The user and the group of files that belong to others.
const NOBODY: u32 = 65534;

/// Flags of `FUSE_SETATTR`.
mod attribute {
    pub const MODE: u32 = 1 << 0;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const HANDLE: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// `FUSE_GETATTR_FH`.
const GETATTR_HANDLE: u32 = 1;

impl Server {
    /// Writes the attributes as the guest sees them: the user's files belong to the owner there.
    pub(crate) fn put_attributes(&self, out: &mut Out, stat: &Statx) {
        let (uid, gid) = self.owner_of(stat);
        out.u64(stat.stx_ino).u64(stat.stx_size).u64(stat.stx_blocks);
        let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
        for time in times {
            out.u64(time.tv_sec as u64);
        }
        for time in times {
            out.u32(time.tv_nsec);
        }
        out.u32(stat.stx_mode.into()).u32(stat.stx_nlink).u32(uid).u32(gid);
        // Devices have no numbers there.
        out.u32(0).u32(stat.stx_blksize).u32(0);
    }

    pub(crate) fn owner_of(&self, stat: &Statx) -> (u32, u32) {
        let owner = self.options.owner;
        let uid = if stat.stx_uid == self.uid { owner.uid } else { NOBODY };
        let gid = if self.groups.contains(&stat.stx_gid) { owner.gid } else { NOBODY };
        (uid, gid)
    }

    pub(crate) fn attributes(&self, stat: &Statx) -> Out {
        let mut out = Out::default();
        out.u64(VALID).u32(0).u32(0);
        self.put_attributes(&mut out, stat);
        out
    }

    pub(crate) fn getattr(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (flags, _, handle) = (body.u32()?, body.u32()?, body.u64()?);
        body.end()?;
        let stat = match flags & GETATTR_HANDLE {
            0 => stat(&*self.node(node)?)?,
            _ => stat(&self.table().handle(handle, node)?.file)?,
        };
        Ok(self.attributes(&stat))
    }

    /// Changes attributes, except for the owner: that of a new file is the user, too, and `tar` of the guest's root insists on
    /// setting one.
    pub(crate) fn setattr(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (valid, _, handle) = (body.u32()?, body.u32()?, body.u64()?);
        let (size, _owner, atime, mtime, _ctime) =
            (body.u64()?, body.u64()?, body.u64()?, body.u64()?, body.u64()?);
        let (atime_nsec, mtime_nsec, _ctime_nsec) = (body.u32()?, body.u32()?, body.u32()?);
        let (mode, _, _uid, _gid, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        body.end()?;
        self.must_be_writable()?;
        let asks = |what: u32| valid & what != 0;
        let fd = self.node(node)?;
        let kind = kind_of(&stat(&*fd)?);
        let time = |is_set: bool, is_now: bool, (seconds, nanoseconds): (u64, u32)| match (is_set, is_now) {
            (_, true) => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }),
            (false, _) => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }),
            _ if nanoseconds >= 1_000_000_000 => Err(Errno::INVAL),
            _ => Ok(Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds.into() }),
        };
        let times = Timestamps {
            last_access: time(asks(attribute::ATIME), asks(attribute::ATIME_NOW), (atime, atime_nsec))?,
            last_modification: time(asks(attribute::MTIME), asks(attribute::MTIME_NOW), (mtime, mtime_nsec))?,
        };
        if asks(attribute::MODE) {
            let allowed = match kind {
                FileType::RegularFile => FILE_MODE,
                FileType::Directory => DIRECTORY_MODE,
                _ => return Err(Errno::OPNOTSUPP.into()),
            };
            rustix::fs::chmod(path_of(&*fd), Mode::from_raw_mode(mode & allowed))?;
        }
        if asks(attribute::SIZE) {
            if asks(attribute::HANDLE) {
                let handle = self.table().handle(handle, node)?;
                rustix::fs::ftruncate(&handle.file, size)?;
            } else {
                rustix::fs::ftruncate(reopen(&*fd, kind, OFlags::WRONLY)?, size)?;
            }
        }
        if valid & (attribute::ATIME | attribute::MTIME | attribute::ATIME_NOW | attribute::MTIME_NOW) != 0 {
            // Follows the link to the descriptor, and no further.
            rustix::fs::utimensat(CWD, path_of(&*fd), &times, AtFlags::empty())?;
        }
        Ok(self.attributes(&stat(&*fd)?))
    }
}
