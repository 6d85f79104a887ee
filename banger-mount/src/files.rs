//! What is open in the guest: files and directories.

use std::{
    io::IoSlice,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, ReadWriteFlags},
};

use crate::{
    directory,
    host::{create, handle_of, kind_of, reopen, stat},
    message::{Body, Fault, Out, component, size},
    names::{ENTRY, one},
    server::{Result, Server},
    table::{Handle, Opened},
};

/// `FUSE_WRITE_CACHE`, `FUSE_FSYNC_FDATASYNC`.
const WRITE_CACHE: u32 = 1;
const FSYNC_DATA: u32 = 1;

impl Server {
    /// Returns the flags for opening a file as the guest wants it.
    pub(crate) fn access(&self, flags: u32) -> Result<OFlags> {
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

    pub(crate) fn open(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (flags, _) = (body.u32()?, body.u32()?);
        body.end()?;
        let access = self.access(flags)?;
        let flags = OFlags::from_bits_retain(flags);
        let mut out = Out::default();
        self.open_known(&mut out, node, access, flags)?;
        Ok(out)
    }

    /// Opens a file that exists. It is emptied last, so that a failure leaves its content.
    fn open_known(&self, out: &mut Out, node: u64, access: OFlags, flags: OFlags) -> Result<()> {
        let fd = self.node(node)?;
        let kind = kind_of(&stat(&*fd)?);
        let file = reopen(&*fd, kind, access | synchronous(flags))?;
        let number =
            self.put_handle(out, Handle { node, file, opened: file_opened(flags) }, Arc::clone(&fd))?;
        if !flags.contains(OFlags::TRUNC) {
            return Ok(());
        }
        let emptied = reopen(&*fd, kind, OFlags::WRONLY).and_then(|file| rustix::fs::ftruncate(file, 0));
        emptied.inspect_err(|_| {
            // It was opened just now.
            let _ = self.table().release(number, node);
        })
    }

    fn put_handle(&self, out: &mut Out, handle: Handle, fd: Arc<OwnedFd>) -> Result<u64> {
        let number = self.table().open(handle, fd)?;
        out.u64(number).u32(0).u32(0);
        Ok(number)
    }

    pub(crate) fn create(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (flags, mode, _umask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let name = component(one(body)?)?;
        self.must_be_writable()?;
        let access = self.access(flags)?;
        let flags = OFlags::from_bits_retain(flags);
        self.check_room_for_node()?;
        self.table().check_room_for_handle()?;
        let directory = self.node(parent)?;
        let (entry, file) = match create(&*directory, name, access | synchronous(flags), mode) {
            Ok(file) => (self.enter(parent, name, handle_of(&file)?)?, Some(file)),
            // Somebody else was faster.
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => (self.lookup(parent, name)?, None),
            Err(errno) => return Err(errno.into()),
        };
        let (node, mut out) = (entry.node, self.entry(&entry));
        let opened = match file {
            Some(file) => self
                .put_handle(&mut out, Handle { node, file, opened: file_opened(flags) }, entry.fd)
                .map(drop),
            None => self.open_known(&mut out, node, access, flags),
        };
        // After an error, the guest's kernel has got no number.
        opened.inspect_err(|_| self.table().forget(node, 1))?;
        Ok(out)
    }

    pub(crate) fn read(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
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

    pub(crate) fn write(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
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

    pub(crate) fn release(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (handle, _, _, _) = (body.u64()?, body.u32()?, body.u32()?, body.u64()?);
        body.end()?;
        self.table().release(handle, node)?;
        Ok(Out::default())
    }

    pub(crate) fn fsync(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (handle, flags, _) = (body.u64()?, body.u32()?, body.u32()?);
        body.end()?;
        let handle = self.table().handle(handle, node)?;
        match flags & FSYNC_DATA {
            0 => rustix::fs::fsync(&handle.file)?,
            _ => rustix::fs::fdatasync(&handle.file)?,
        }
        Ok(Out::default())
    }

    pub(crate) fn opendir(&self, node: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (_flags, _) = (body.u32()?, body.u32()?);
        body.end()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.node(node)?;
        let file = rustix::fs::openat(&*fd, c".", flags, Mode::empty())?;
        let mut out = Out::default();
        self.put_handle(&mut out, Handle { node, file, opened: Opened::Directory(Mutex::new(())) }, fd)?;
        Ok(out)
    }

    pub(crate) fn readdir(
        &self,
        node: u64,
        body: &mut Body<'_>,
        detail: directory::Detail,
    ) -> Result<Out, Fault> {
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

fn file_opened(flags: OFlags) -> Opened {
    Opened::File { appends: flags.contains(OFlags::APPEND) }
}

/// Returns the flags for writes that wait for the disk.
fn synchronous(flags: OFlags) -> OFlags {
    flags & (OFlags::SYNC | OFlags::DSYNC)
}
