//! One request, one answer.

use std::{
    ops::{Deref, DerefMut},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use banger_proto::guest::mount::{MAX_IO, Owner};
use rustix::{
    fs::AtFlags,
    io::Errno,
    process::{getegid, geteuid, getgroups},
};

use crate::{
    directory,
    host::{open_below, stat},
    message::{Body, Fault, Header, MAJOR, MINOR, Out, Violation, answer, opcode, split},
    names::one,
    table::{Gone, Key, Limits, ROOT, Table},
};

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
    pub(crate) options: Options,
    /// The user of this process, and the groups.
    pub(crate) uid: u32,
    pub(crate) groups: Vec<u32>,
    table: Mutex<Table>,
    has_begun: AtomicBool,
    when_full: Mutex<Option<Note>>,
}

type Note = Box<dyn FnOnce() + Send>;

/// The table, locked. What it drops is closed after the lock is given back, since closing may wait for a disk.
pub(crate) struct Locked<'a> {
    // Fields are dropped in this order.
    table: MutexGuard<'a, Table>,
    gone: Vec<Gone>,
}

impl Deref for Locked<'_> {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.table
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.gone = self.table.take_gone();
    }
}

/// The result of what the guest asks for.
pub type Result<T, E = Errno> = std::result::Result<T, E>;

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
            when_full: Mutex::new(None),
        })
    }

    /// Calls this once, when the guest's kernel has reached the limit of files that it may know.
    #[must_use]
    pub fn when_full(mut self, note: impl FnOnce() + Send + 'static) -> Self {
        self.when_full = Mutex::new(Some(Box::new(note)));
        self
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

    pub(crate) fn table(&self) -> Locked<'_> {
        // Each change under the lock is complete.
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { table, gone: Vec::new() }
    }

    /// Returns the descriptor of a node. Opens it again if it was closed.
    pub(crate) fn node(&self, node: u64) -> Result<Arc<OwnedFd>> {
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

    /// Returns the result after the table was asked for room for a node.
    pub(crate) fn noting_full<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|_| {
            let note = self.when_full.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(note) = note {
                note();
            }
        })
    }

    /// Returns whether another file can be entered.
    pub(crate) fn check_room_for_node(&self) -> Result<()> {
        let room = self.table().check_room_for_node();
        self.noting_full(room)
    }

    pub(crate) fn must_be_writable(&self) -> Result<()> {
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
}
