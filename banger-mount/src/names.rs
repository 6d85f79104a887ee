//! Entries of directories: how they are found, created, moved and removed.

use std::{ffi::CStr, os::fd::OwnedFd, sync::Arc};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Statx},
    io::Errno,
};

use crate::{
    host::{DIRECTORY_MODE, create, handle_of, kind_of, open_below, path_of, stat},
    message::{Body, Fault, Out, Violation, component},
    server::{Result, Server},
    table::Key,
};

/// How long the guest's kernel keeps names and attributes, in seconds, before it asks again.
pub const VALID: u64 = 1;

/// The length of an entry with its attributes (`struct fuse_entry_out`).
pub const ENTRY: usize = 40 + 88;

/// An entry of a directory that the guest's kernel has a number for.
pub struct Entry {
    pub node: u64,
    pub fd: Arc<OwnedFd>,
    pub stat: Statx,
}

impl Server {
    /// Finds an entry, and gives the guest's kernel a number for it.
    pub(crate) fn lookup(&self, parent: u64, name: &CStr) -> Result<Entry> {
        let directory = self.node(parent)?;
        self.enter(parent, name, open_below(&*directory, component(name)?)?)
    }

    pub(crate) fn enter(&self, parent: u64, name: &CStr, fd: OwnedFd) -> Result<Entry> {
        let stat = stat(&fd)?;
        let entered = self.table().enter(Key::of(&stat), fd, parent, name);
        let (node, fd) = self.noting_full(entered)?;
        Ok(Entry { node, fd, stat })
    }

    /// Finds an entry. The guest's kernel remembers for a while that there is none.
    pub(crate) fn lookup_or_nothing(&self, parent: u64, name: &CStr) -> Result<Out> {
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

    pub(crate) fn entry(&self, entry: &Entry) -> Out {
        let mut out = Out::default();
        self.put_entry(&mut out, entry);
        out
    }

    pub(crate) fn put_entry(&self, out: &mut Out, entry: &Entry) {
        out.u64(entry.node).u64(0).u64(VALID).u64(VALID).u32(0).u32(0);
        self.put_attributes(out, &entry.stat);
    }

    pub(crate) fn readlink(&self, node: u64, body: Body<'_>) -> Result<Out, Fault> {
        body.end()?;
        let fd = self.node(node)?;
        Ok(Out(rustix::fs::readlinkat(&*fd, c"", Vec::new())?.into_bytes()))
    }

    pub(crate) fn symlink(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (name, target) = (body.text()?, body.text()?);
        body.end()?;
        self.must_be_writable()?;
        let name = component(name)?;
        self.check_room_for_node()?;
        rustix::fs::symlinkat(target, &*self.node(parent)?, name)?;
        Ok(self.entry(&self.lookup(parent, name)?))
    }

    pub(crate) fn mknod(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (mode, _device, _umask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let name = one(body)?;
        self.must_be_writable()?;
        if FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Err(Errno::PERM.into());
        }
        let name = component(name)?;
        self.check_room_for_node()?;
        let file = create(&*self.node(parent)?, name, OFlags::WRONLY, mode)?;
        Ok(self.entry(&self.enter(parent, name, handle_of(&file)?)?))
    }

    pub(crate) fn mkdir(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
        let (mode, _umask) = (body.u32()?, body.u32()?);
        let name = component(one(body)?)?;
        self.must_be_writable()?;
        self.check_room_for_node()?;
        rustix::fs::mkdirat(&*self.node(parent)?, name, Mode::from_raw_mode(mode & DIRECTORY_MODE))?;
        Ok(self.entry(&self.lookup(parent, name)?))
    }

    pub(crate) fn remove(&self, parent: u64, name: &CStr, flags: AtFlags) -> Result<Out> {
        self.must_be_writable()?;
        rustix::fs::unlinkat(&*self.node(parent)?, component(name)?, flags)?;
        Ok(Out::default())
    }

    pub(crate) fn rename(&self, parent: u64, body: &mut Body<'_>, has_flags: bool) -> Result<Out, Fault> {
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
    pub(crate) fn note_move(&self, directory: &OwnedFd, parent: u64, name: &CStr) {
        if let Ok(stat) = open_below(directory, name).and_then(|fd| stat(&fd)) {
            self.table().moved(&Key::of(&stat), parent, name);
        }
    }

    pub(crate) fn link(&self, parent: u64, body: &mut Body<'_>) -> Result<Out, Fault> {
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
}

/// Reads a name that is all that is left.
pub fn one<'a>(body: &mut Body<'a>) -> Result<&'a CStr, Violation> {
    let name = body.text()?;
    body.end()?;
    Ok(name)
}
