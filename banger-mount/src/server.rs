//! One request, one answer.

use std::{
    ffi::CStr,
    io::{ErrorKind, IoSlice},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use banger_proto::guest::mount::{MAX_IO, Owner};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Statx, StatxFlags, Timestamps,
        UTIME_NOW, UTIME_OMIT,
    },
    io::{Errno, ReadWriteFlags},
    process::{getegid, geteuid, getgroups},
    time::Timespec,
};

use crate::{
    directory,
    message::{Body, Fault, Header, MAJOR, MINOR, Out, Violation, answer, component, opcode, size, split},
    table::{Handle, Key, Limits, Opened, ROOT, Table},
};

/// How long the guest's kernel keeps names and attributes, in seconds, before it asks again.
const VALID: u64 = 1;
/// The user and the group of files that belong to others.
const NOBODY: u32 = 65534;
/// What a guest may set of a mode. Whoever has a directory's set-group-id bit gets no rights by it.
const FILE_MODE: u32 = 0o777;
const DIRECTORY_MODE: u32 = 0o3777;

/// Flags of `FUSE_INIT`.
mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_TRUNCATE: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    /// A file that has changed on the host is read again.
    pub const AUTO_INVALIDATE: u32 = 1 << 12;
    pub const READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const PARALLEL_DIRECTORIES: u32 = 1 << 18;
    pub const WANTED: u32 = ASYNC_READ
        | ATOMIC_TRUNCATE
        | BIG_WRITES
        | AUTO_INVALIDATE
        | READDIRPLUS
        | READDIRPLUS_AUTO
        | PARALLEL_DIRECTORIES;
    /// What follows in the answer after the fields that are used.
    pub const REST: usize = 2 + 2 + 4 + 7 * 4;
}

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

/// `FUSE_GETATTR_FH`, `FUSE_WRITE_CACHE`, `FUSE_FSYNC_FDATASYNC`.
const GETATTR_HANDLE: u32 = 1;
const WRITE_CACHE: u32 = 1;
const FSYNC_DATA: u32 = 1;

/// File systems that show the state of the kernel and of processes, also of this one (statfs(2)): proc, sysfs, debugfs,
/// tracefs, securityfs, configfs, cgroup and cgroup2.
const STATES: [u64; 8] =
    [0x9fa0, 0x6265_6572, 0x6462_6720, 0x7472_6163, 0x7363_6673, 0x6265_6570, 0x0027_e0eb, 0x6367_7270];

/// Opens a directory to serve it. Refuses what is none, and file systems without files of users: by them, a guest could
/// change processes of the user.
pub fn open(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty())?;
    if STATES.contains(&(rustix::fs::fstatfs(&opened)?.f_type as u64)) {
        return Err(std::io::Error::new(ErrorKind::Unsupported, "its file system has no files of users"));
    }
    Ok(opened)
}

/// How a directory is served.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether every change is refused.
    pub read_only: bool,
    /// The user of the guest who sees the host user's files as their own.
    pub owner: Owner,
    /// Bounds.
    pub limits: Limits,
}

/// Serves a directory.
pub struct Server {
    options: Options,
    /// The user of this process, and the groups.
    uid: u32,
    groups: Vec<u32>,
    table: Mutex<Table>,
    has_begun: AtomicBool,
}

type Result<T, E = Errno> = std::result::Result<T, E>;

impl Server {
    /// Serves this directory, with the rights of this process.
    pub fn new(root: OwnedFd, options: Options) -> std::io::Result<Self> {
        let key = Key::of(&stat(&root)?);
        let groups = getgroups()?.into_iter().chain([getegid()]).map(rustix::fs::Gid::as_raw);
        Ok(Self {
            options,
            uid: geteuid().as_raw(),
            groups: groups.collect(),
            table: Mutex::new(Table::new(options.limits, root, key)),
            has_begun: AtomicBool::new(false),
        })
    }

    /// Answers a whole message; some have no answer. Blocks while the host's file system does. May be called by several
    /// threads at once, after the first message was answered. After an error, the connection is unusable.
    pub fn answer(&self, message: &[u8]) -> Result<Option<Vec<u8>>, Violation> {
        let (header, body) = split(message)?;
        if self.has_begun.load(Ordering::Acquire) == (header.opcode == opcode::INIT) {
            return Err(Violation::Order(header.opcode));
        }
        let result = match header.opcode {
            opcode::FORGET | opcode::BATCH_FORGET => return self.forget(&header, body).map(|()| None),
            _ => self.serve(&header, body),
        };
        match result {
            Ok(out) => Ok(Some(answer(header.unique, Ok(out)))),
            Err(Fault::Refused(errno)) => Ok(Some(answer(header.unique, Err(errno)))),
            Err(Fault::Violation(violation)) => Err(violation),
        }
    }

    fn serve(&self, header: &Header, mut body: Body<'_>) -> Result<Out, Fault> {
        let (node, body) = (header.node, &mut body);
        Ok(match header.opcode {
            opcode::INIT => self.begin(body)?,
            opcode::LOOKUP => self.lookup_or_nothing(node, one(body)?)?,
            opcode::GETATTR => self.getattr(node, body)?,
            opcode::SETATTR => self.setattr(node, body)?,
            opcode::READLINK => self.readlink(node, *body)?,
            opcode::SYMLINK => self.symlink(node, body)?,
            opcode::MKNOD => self.mknod(node, body)?,
            opcode::MKDIR => self.mkdir(node, body)?,
            opcode::UNLINK => self.remove(node, one(body)?, AtFlags::empty())?,
            opcode::RMDIR => self.remove(node, one(body)?, AtFlags::REMOVEDIR)?,
            opcode::RENAME | opcode::RENAME2 => self.rename(node, body, header.opcode == opcode::RENAME2)?,
            opcode::LINK => self.link(node, body)?,
            opcode::OPEN => self.open(node, body)?,
            opcode::CREATE => self.create(node, body)?,
            opcode::READ => self.read(node, body)?,
            opcode::WRITE => self.write(node, body)?,
            opcode::STATFS => self.statfs(*body)?,
            opcode::RELEASE | opcode::RELEASEDIR => self.release(node, body)?,
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(node, body)?,
            opcode::OPENDIR => self.opendir(node, body)?,
            opcode::READDIR => self.readdir(node, body, directory::Detail::Names)?,
            opcode::READDIRPLUS => self.readdir(node, body, directory::Detail::Attributes)?,
            opcode::DESTROY => {
                body.end()?;
                Out::default()
            }
            // The guest's kernel does without, and does not ask again: locks are among the processes of the guest.
            _ => return Err(Errno::NOSYS.into()),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change under the lock is complete.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the descriptor of a node. Opens it again if it was closed.
    fn node(&self, node: u64) -> Result<Arc<OwnedFd>> {
        let (mut fd, closed) = self.table().chain(node)?;
        for closed in closed {
            let opened = open_below(&*fd, &closed.name).map_err(|_| Errno::STALE)?;
            if Key::of(&stat(&opened)?) != closed.key {
                return Err(Errno::STALE);
            }
            fd = self.table().keep(closed.node, opened);
        }
        Ok(fd)
    }

    fn must_be_writable(&self) -> Result<()> {
        if self.options.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    fn begin(&self, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (major, minor) = (body.u32()?, body.u32()?);
        if major != MAJOR || minor < MINOR {
            return Err(Violation::Version(major, minor).into());
        }
        // Newer kernels say more.
        let (readahead, flags) = (body.u32()?, body.u32()?);
        let mut out = Out::default();
        out.u32(MAJOR).u32(MINOR).u32(readahead.min(MAX_IO as u32)).u32(flags & init::WANTED);
        // Background requests, and how many count as congestion: the defaults of Linux.
        out.u16(0).u16(0).u32(MAX_IO as u32).u32(1).zeros(init::REST);
        self.has_begun.store(true, Ordering::Release);
        Ok(out)
    }

    fn forget(&self, header: &Header, mut body: Body<'_>) -> Result<(), Violation> {
        let count = match header.opcode {
            opcode::FORGET => {
                let times = body.u64()?;
                body.end()?;
                self.table().forget(header.node, times);
                return Ok(());
            }
            _ => body.u32()?,
        };
        body.u32()?;
        for _ in 0..count {
            let (node, times) = (body.u64()?, body.u64()?);
            self.table().forget(node, times);
        }
        body.end()
    }

    /// Finds an entry, and gives the guest's kernel a number for it.
    fn lookup(&self, parent: u64, name: &CStr) -> Result<Entry> {
        let directory = self.node(parent)?;
        self.enter(parent, name, open_below(&*directory, component(name)?)?)
    }

    fn enter(&self, parent: u64, name: &CStr, fd: OwnedFd) -> Result<Entry> {
        let stat = stat(&fd)?;
        let node = self.table().enter(Key::of(&stat), fd, parent, name)?;
        Ok(Entry { node, stat })
    }

    /// Finds an entry. That there is none is kept by the guest's kernel, too.
    fn lookup_or_nothing(&self, parent: u64, name: &CStr) -> Result<Out> {
        match self.lookup(parent, name) {
            Ok(entry) => Ok(self.entry(&entry)),
            Err(Errno::NOENT) => {
                let mut out = Out::default();
                out.u64(0).u64(0).u64(VALID).zeros(ENTRY - 3 * 8);
                Ok(out)
            }
            Err(errno) => Err(errno),
        }
    }

    fn entry(&self, entry: &Entry) -> Out {
        let mut out = Out::default();
        self.put_entry(&mut out, entry);
        out
    }

    fn put_entry(&self, out: &mut Out, entry: &Entry) {
        out.u64(entry.node).u64(0).u64(VALID).u64(VALID).u32(0).u32(0);
        self.put_attributes(out, &entry.stat);
    }

    /// Writes the attributes as the guest sees them: the user's files belong to the owner there.
    fn put_attributes(&self, out: &mut Out, stat: &Statx) {
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

    fn owner_of(&self, stat: &Statx) -> (u32, u32) {
        let owner = self.options.owner;
        let uid = if stat.stx_uid == self.uid { owner.uid } else { NOBODY };
        let gid = if self.groups.contains(&stat.stx_gid) { owner.gid } else { NOBODY };
        (uid, gid)
    }

    fn attributes(&self, stat: &Statx) -> Out {
        let mut out = Out::default();
        out.u64(VALID).u32(0).u32(0);
        self.put_attributes(&mut out, stat);
        out
    }

    fn getattr(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
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
    fn setattr(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
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

    fn readlink(&self, node: u64, body: Body<'_>) -> Result<Out, Fault> {
        body.end()?;
        let fd = self.node(node)?;
        Ok(Out(rustix::fs::readlinkat(&*fd, c"", Vec::new())?.into_bytes()))
    }

    fn symlink(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (name, target) = (body.text()?, body.text()?);
        body.end()?;
        self.must_be_writable()?;
        let name = component(name)?;
        rustix::fs::symlinkat(target, &*self.node(parent)?, name)?;
        Ok(self.entry(&self.lookup(parent, name)?))
    }

    fn mknod(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (mode, _device, _umask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let name = one(body)?;
        self.must_be_writable()?;
        if FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Err(Errno::PERM.into());
        }
        let name = component(name)?;
        self.table().check_room()?;
        let file = create(&*self.node(parent)?, name, OFlags::WRONLY, mode)?;
        Ok(self.entry(&self.enter(parent, name, handle_of(&file)?)?))
    }

    fn mkdir(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (mode, _umask) = (body.u32()?, body.u32()?);
        let name = component(one(body)?)?;
        self.must_be_writable()?;
        rustix::fs::mkdirat(&*self.node(parent)?, name, Mode::from_raw_mode(mode & DIRECTORY_MODE))?;
        Ok(self.entry(&self.lookup(parent, name)?))
    }

    fn remove(&self, parent: u64, name: &CStr, flags: AtFlags) -> Result<Out> {
        self.must_be_writable()?;
        rustix::fs::unlinkat(&*self.node(parent)?, component(name)?, flags)?;
        Ok(Out::default())
    }

    fn rename(&self, parent: u64, body: &mut Body<'_>, has_flags: bool) -> Result<Out, Fault> {
        let new_parent = body.u64()?;
        let flags = if has_flags { body.u32()? } else { 0 };
        if has_flags {
            body.u32()?;
        }
        let (name, new_name) = (body.text()?, body.text()?);
        body.end()?;
        self.must_be_writable()?;
        let (name, new_name) = (component(name)?, component(new_name)?);
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL.into());
        }
        let (from, to) = (self.node(parent)?, self.node(new_parent)?);
        rustix::fs::renameat_with(&*from, name, &*to, new_name, flags)?;
        self.note_move(&to, new_parent, new_name);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.note_move(&from, parent, name);
        }
        Ok(Out::default())
    }

    /// Remembers where something is now. If it has moved on, the guest's kernel has to look for it again.
    fn note_move(&self, directory: &OwnedFd, parent: u64, name: &CStr) {
        if let Ok(stat) = open_below(directory, name).and_then(|fd| stat(&fd)) {
            self.table().moved(&Key::of(&stat), parent, name);
        }
    }

    fn link(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let node = body.u64()?;
        let name = component(one(body)?)?;
        self.must_be_writable()?;
        let (fd, directory) = (self.node(node)?, self.node(parent)?);
        if kind_of(&stat(&*fd)?) != FileType::RegularFile {
            return Err(Errno::PERM.into());
        }
        rustix::fs::linkat(CWD, path_of(&*fd), &*directory, name, AtFlags::SYMLINK_FOLLOW)?;
        Ok(self.entry(&self.lookup(parent, name)?))
    }

    /// Returns the flags for opening a file as the guest wants it.
    fn access(&self, flags: u32) -> Result<OFlags> {
        let flags = OFlags::from_bits_retain(flags);
        let access = flags & OFlags::RWMODE;
        if access == OFlags::RWMODE {
            return Err(Errno::INVAL);
        }
        if access != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            self.must_be_writable()?;
        }
        Ok(access)
    }

    fn open(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (flags, _) = (body.u32()?, body.u32()?);
        body.end()?;
        let access = self.access(flags)?;
        let flags = OFlags::from_bits_retain(flags);
        let fd = self.node(node)?;
        let file = reopen(
            &*fd,
            kind_of(&stat(&*fd)?),
            access | flags & (OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC),
        )?;
        let mut out = Out::default();
        self.put_handle(&mut out, Handle { node, file, opened: file_opened(flags) })?;
        Ok(out)
    }

    fn put_handle(&self, out: &mut Out, handle: Handle) -> Result<()> {
        let number = self.table().open(handle)?;
        out.u64(number).u32(0).u32(0);
        Ok(())
    }

    fn create(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (flags, mode, _umask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let name = component(one(body)?)?;
        self.must_be_writable()?;
        let access = self.access(flags)?;
        let flags = OFlags::from_bits_retain(flags);
        self.table().check_room()?;
        let directory = self.node(parent)?;
        let (entry, file) = match create(&*directory, name, access, mode) {
            Ok(file) => (self.enter(parent, name, handle_of(&file)?)?, file),
            // Somebody else was faster.
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                let entry = self.lookup(parent, name)?;
                let fd = self.node(entry.node)?;
                let file = reopen(&*fd, kind_of(&entry.stat), access | flags & OFlags::TRUNC)?;
                (entry, file)
            }
            Err(errno) => return Err(errno.into()),
        };
        let mut out = self.entry(&entry);
        let opened = self.put_handle(&mut out, Handle { node: entry.node, file, opened: file_opened(flags) });
        // After an error, the guest's kernel has got no number.
        opened.inspect_err(|_| self.table().forget(entry.node, 1))?;
        Ok(out)
    }

    fn read(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (handle, offset, wanted) = (body.u64()?, body.u64()?, body.u32()?);
        let (_flags, _owner, _open_flags, _) = (body.u32()?, body.u64()?, body.u32()?, body.u32()?);
        body.end()?;
        let handle = self.table().handle(handle, node)?;
        let mut bytes = Vec::with_capacity(size(wanted)?);
        while bytes.len() < wanted as usize {
            let at = offset.checked_add(bytes.len() as u64).ok_or(Errno::INVAL)?;
            match rustix::io::pread(&handle.file, rustix::buffer::spare_capacity(&mut bytes), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                // What was read counts.
                Err(_) if !bytes.is_empty() => break,
                Err(errno) => return Err(errno.into()),
            }
            bytes.truncate(wanted as usize);
        }
        Ok(Out(bytes))
    }

    fn write(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (handle, offset, wanted, flags) = (body.u64()?, body.u64()?, body.u32()?, body.u32()?);
        let (_owner, _open_flags, _) = (body.u64()?, body.u32()?, body.u32()?);
        let mut bytes = body.data(wanted)?;
        self.must_be_writable()?;
        size(wanted)?;
        let handle = self.table().handle(handle, node)?;
        let appends = match handle.opened {
            // What programs have written into memory has its place.
            Opened::File { appends } => appends && flags & WRITE_CACHE == 0,
            Opened::Directory(_) => return Err(Errno::BADF.into()),
        };
        // The guest may not know where the file ends by now.
        let how = if appends { ReadWriteFlags::APPEND } else { ReadWriteFlags::empty() };
        while !bytes.is_empty() {
            let done = u64::from(wanted) - bytes.len() as u64;
            let at = offset.checked_add(done).filter(|at| *at <= i64::MAX as u64).ok_or(Errno::FBIG)?;
            match rustix::io::pwritev2(&handle.file, &[IoSlice::new(bytes)], at, how) {
                Ok(0) => break,
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut out = Out::default();
        out.u32(wanted - bytes.len() as u32).u32(0);
        Ok(out)
    }

    fn statfs(&self, body: Body<'_>) -> Result<Out, Fault> {
        body.end()?;
        let found = rustix::fs::fstatvfs(&*self.node(ROOT)?)?;
        let mut out = Out::default();
        out.u64(found.f_blocks).u64(found.f_bfree).u64(found.f_bavail).u64(found.f_files).u64(found.f_ffree);
        out.u32(found.f_bsize as u32)
            .u32(found.f_namemax as u32)
            .u32(found.f_frsize as u32)
            .u32(0)
            .zeros(6 * 4);
        Ok(out)
    }

    fn release(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (handle, _, _, _) = (body.u64()?, body.u32()?, body.u32()?, body.u64()?);
        body.end()?;
        self.table().release(handle, node)?;
        Ok(Out::default())
    }

    fn fsync(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (handle, flags, _) = (body.u64()?, body.u32()?, body.u32()?);
        body.end()?;
        let handle = self.table().handle(handle, node)?;
        match flags & FSYNC_DATA {
            0 => rustix::fs::fsync(&handle.file)?,
            _ => rustix::fs::fdatasync(&handle.file)?,
        }
        Ok(Out::default())
    }

    fn opendir(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (_flags, _) = (body.u32()?, body.u32()?);
        body.end()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&*self.node(node)?, c".", flags, Mode::empty())?;
        let mut out = Out::default();
        self.put_handle(&mut out, Handle { node, file, opened: Opened::Directory(Mutex::new(())) })?;
        Ok(out)
    }

    fn readdir(&self, node: u64, body: &mut Body<'_>, detail: directory::Detail) -> Result<Out, Fault> {
        let (handle, offset, wanted) = (body.u64()?, body.u64()?, body.u32()?);
        let (_flags, _owner, _open_flags, _) = (body.u32()?, body.u64()?, body.u32()?, body.u32()?);
        body.end()?;
        let room = size(wanted)?;
        let handle = self.table().handle(handle, node)?;
        let Opened::Directory(position) = &handle.opened else { return Err(Errno::NOTDIR.into()) };
        let _alone = position.lock().unwrap_or_else(PoisonError::into_inner);
        let found = directory::read(&handle.file, offset, room, detail, |out, name| {
            // A file that is gone, or that there is no room for, has no attributes; its name is there.
            match self.lookup(node, name) {
                Ok(entry) => self.put_entry(out, &entry),
                Err(_) => drop(out.zeros(ENTRY)),
            }
        })?;
        Ok(found)
    }
}

/// An entry of a directory that the guest's kernel has a number for.
struct Entry {
    node: u64,
    stat: Statx,
}

/// The length of an entry with its attributes (`struct fuse_entry_out`).
pub const ENTRY: usize = 40 + 88;

/// Reads a name that is all that is left.
fn one<'a>(body: &mut Body<'a>) -> Result<&'a CStr, Violation> {
    let name = body.text()?;
    body.end()?;
    Ok(name)
}

fn stat(fd: impl AsFd) -> Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, mask)
}

fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

fn file_opened(flags: OFlags) -> Opened {
    Opened::File { appends: flags.contains(OFlags::APPEND) }
}

/// How an entry of a directory is reached: within its file system, and by no link.
const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens an entry of a directory, without access to its content. A link is opened itself.
fn open_below(directory: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), BELOW)
}

/// Creates a file that does not exist.
fn create(directory: impl AsFd, name: &CStr, access: OFlags, mode: u32) -> Result<OwnedFd> {
    let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::from_raw_mode(mode & FILE_MODE), BELOW)
}

/// Returns a path to what is open: a link of proc(5) that leads to nothing else.
fn path_of(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Opens a node with access to its content, which only regular files have.
fn reopen(fd: impl AsFd, kind: FileType, flags: OFlags) -> Result<OwnedFd> {
    match kind {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::ACCESS),
    }
    rustix::fs::open(path_of(fd), flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
}

/// Returns a descriptor of the same file without access to its content.
fn handle_of(file: &OwnedFd) -> Result<OwnedFd> {
    rustix::fs::open(path_of(file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
