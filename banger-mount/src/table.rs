//! What the guest's kernel knows: files and directories by the numbers that it got for them, and what it has open.
//!
//! A node keeps where it was found, so that its descriptor can be closed when there are too many, and opened again. The
//! file that is found then must be the same.

use std::{
    collections::{HashMap, VecDeque},
    ffi::{CStr, CString},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use rustix::{
    fs::{FileType, Statx},
    io::Errno,
};

/// The number of the directory that is served (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;
/// Limit on directories between a node and one that is open.
const MAX_DEPTH: usize = 256;
/// Nodes that the guest's kernel may know. It forgets some only when its memory runs out, so they must be enough for a
/// large repository with what a build makes.
const MAX_NODES: usize = 1 << 19;
const MAX_HANDLES: u64 = 4096;
const MAX_HELD: u64 = 4096;

/// Bounds on what a guest makes a server keep.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Files and directories that the guest's kernel knows.
    pub nodes: usize,
    /// Files and directories that are open in the guest.
    pub handles: usize,
    /// Descriptors of nodes that nothing has open.
    pub held: usize,
}

impl Limits {
    /// Returns bounds that leave half of the descriptors of this process to the rest of it.
    pub fn of(descriptors: u64) -> Self {
        let part = |part: u64, most: u64| (descriptors / part).min(most) as usize;
        Self { nodes: MAX_NODES, handles: part(8, MAX_HANDLES), held: part(4, MAX_HELD) }
    }
}

/// Tells a file from others, also from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    device: (u32, u32),
    inode: u64,
    kind: u32,
    born: (i64, u32),
}

impl Key {
    pub fn of(stat: &Statx) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            kind: FileType::from_raw_mode(stat.stx_mode.into()).as_raw_mode(),
            born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        }
    }
}

struct Node {
    key: Key,
    /// How often the guest's kernel got the number and has not given it back.
    lookups: u64,
    parent: u64,
    name: CString,
    /// Opened with `O_PATH`.
    fd: Option<Arc<OwnedFd>>,
    was_used: bool,
    /// Handles. A file that is open may have no name any more, so its descriptor stays.
    open: u32,
}

/// Something that is open in the guest.
pub struct Handle {
    pub node: u64,
    pub file: OwnedFd,
    pub opened: Opened,
}

/// How it is open.
pub enum Opened {
    File {
        appends: bool,
    },
    /// Reads of a directory share its position.
    Directory(Mutex<()>),
}

/// A node without a descriptor.
pub struct Closed {
    pub node: u64,
    pub key: Key,
    pub name: CString,
}

/// What the table no longer needs. Closing it may wait for the file system, so it happens without the table's lock.
#[expect(dead_code, reason = "it is only dropped")]
pub enum Gone {
    Descriptor(Arc<OwnedFd>),
    Handle(Arc<Handle>),
}

pub struct Table {
    limits: Limits,
    nodes: HashMap<u64, Node>,
    keys: HashMap<Key, u64>,
    handles: HashMap<u64, Arc<Handle>>,
    /// Numbers are never given twice.
    next: u64,
    /// The nodes with a descriptor, but the first, and some that are gone.
    held: VecDeque<u64>,
    /// What the holder of the lock drops after it, see [`Self::take_gone`].
    gone: Vec<Gone>,
}

impl Table {
    pub fn new(limits: Limits, root: OwnedFd, key: Key) -> Self {
        let fd = Some(Arc::new(root));
        let name = CString::default();
        let root = Node { key, lookups: 1, parent: ROOT, name, fd, was_used: true, open: 0 };
        let held = VecDeque::new();
        let nodes = HashMap::from([(ROOT, root)]);
        Self {
            limits,
            nodes,
            keys: HashMap::from([(key, ROOT)]),
            handles: HashMap::new(),
            next: ROOT + 1,
            held,
            gone: Vec::new(),
        }
    }

    /// Takes what is to be closed once the table is no longer locked.
    pub fn take_gone(&mut self) -> Vec<Gone> {
        std::mem::take(&mut self.gone)
    }

    /// Returns the descriptor of the nearest directory that has one, and what has to be opened from there, in order.
    pub fn chain(&mut self, mut node: u64) -> Result<(Arc<OwnedFd>, Vec<Closed>), Errno> {
        let mut closed = Vec::new();
        while closed.len() < MAX_DEPTH {
            let found = self.nodes.get_mut(&node).ok_or(Errno::STALE)?;
            found.was_used = true;
            if let Some(fd) = &found.fd {
                closed.reverse();
                return Ok((Arc::clone(fd), closed));
            }
            closed.push(Closed { node, key: found.key, name: found.name.clone() });
            node = found.parent;
        }
        Err(Errno::STALE)
    }

    /// Keeps a descriptor of a node, unless it is gone meanwhile.
    pub fn keep(&mut self, node: u64, fd: OwnedFd) -> Arc<OwnedFd> {
        let fd = Arc::new(fd);
        if let Some(found) = self.nodes.get_mut(&node)
            && found.fd.is_none()
        {
            found.fd = Some(Arc::clone(&fd));
            self.held.push_back(node);
            self.close_some();
        }
        fd
    }

    /// Closes descriptors that were not used of late, until there are few enough.
    fn close_some(&mut self) {
        for _ in 0..2 * self.held.len() {
            if self.held.len() <= self.limits.held {
                return;
            }
            let Some(node) = self.held.pop_front() else { return };
            let Some(found) = self.nodes.get_mut(&node) else { continue };
            if found.open == 0 && !found.was_used {
                self.gone.extend(found.fd.take().map(Gone::Descriptor));
            } else {
                found.was_used = false;
                self.held.push_back(node);
            }
        }
    }

    /// Returns the number of a file that was found, for the guest's kernel, and its descriptor.
    pub fn enter(
        &mut self,
        key: Key,
        fd: OwnedFd,
        parent: u64,
        name: &CStr,
    ) -> Result<(u64, Arc<OwnedFd>), Errno> {
        if let Some(&known) = self.keys.get(&key) {
            self.put(known, parent, name);
            if let Some(node) = self.nodes.get_mut(&known) {
                node.lookups = node.lookups.saturating_add(1);
            }
            return Ok((known, self.keep(known, fd)));
        }
        if self.nodes.len() >= self.limits.nodes {
            self.gone.push(Gone::Descriptor(Arc::new(fd)));
            return Err(Errno::NFILE);
        }
        let (node, name) = (self.next, name.to_owned());
        self.next += 1;
        self.keys.insert(key, node);
        self.nodes.insert(node, Node { key, lookups: 1, parent, name, fd: None, was_used: true, open: 0 });
        Ok((node, self.keep(node, fd)))
    }

    /// Returns whether another file can be opened.
    pub fn check_room_for_handle(&self) -> Result<(), Errno> {
        if self.handles.len() < self.limits.handles { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// Returns whether another file can be entered.
    pub fn check_room_for_node(&self) -> Result<(), Errno> {
        if self.nodes.len() < self.limits.nodes { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// Remembers where a file is now.
    pub fn moved(&mut self, key: &Key, parent: u64, name: &CStr) {
        if let Some(&node) = self.keys.get(key) {
            self.put(node, parent, name);
        }
    }

    fn put(&mut self, node: u64, parent: u64, name: &CStr) {
        if node != ROOT
            && let Some(node) = self.nodes.get_mut(&node)
            && (node.parent, node.name.as_c_str()) != (parent, name)
        {
            (node.parent, node.name) = (parent, name.to_owned());
        }
    }

    /// Takes back a number that the guest's kernel has forgotten this many times.
    pub fn forget(&mut self, node: u64, times: u64) {
        if let Some(found) = self.nodes.get_mut(&node)
            && node != ROOT
        {
            found.lookups = found.lookups.saturating_sub(times);
            self.drop_unused(node);
        }
    }

    fn drop_unused(&mut self, node: u64) {
        let is_unused = |node: &Node| node.lookups == 0 && node.open == 0;
        if node != ROOT
            && self.nodes.get(&node).is_some_and(is_unused)
            && let Some(gone) = self.nodes.remove(&node)
        {
            self.keys.remove(&gone.key);
            self.gone.extend(gone.fd.map(Gone::Descriptor));
        }
    }

    /// Adds something that is open, and the descriptor of its node, which may have been closed meanwhile: the file may
    /// lose its name.
    pub fn open(&mut self, handle: Handle, fd: Arc<OwnedFd>) -> Result<u64, Errno> {
        let handle = Arc::new(handle);
        let node = match self.nodes.get_mut(&handle.node) {
            Some(node) if self.handles.len() < self.limits.handles => node,
            found => {
                let errno = if found.is_some() { Errno::NFILE } else { Errno::STALE };
                self.gone.extend([Gone::Handle(handle), Gone::Descriptor(fd)]);
                return Err(errno);
            }
        };
        node.open += 1;
        if node.fd.is_none() {
            node.fd = Some(fd);
            self.held.push_back(handle.node);
            self.close_some();
        }
        let number = self.next;
        self.next += 1;
        self.handles.insert(number, handle);
        Ok(number)
    }

    /// Returns what is open under this number, of this node.
    pub fn handle(&self, number: u64, node: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.handles.get(&number).filter(|handle| handle.node == node);
        handle.map(Arc::clone).ok_or(Errno::BADF)
    }

    /// Removes what was open.
    pub fn release(&mut self, number: u64, node: u64) -> Result<(), Errno> {
        self.gone.push(Gone::Handle(self.handle(number, node)?));
        self.handles.remove(&number);
        if let Some(found) = self.nodes.get_mut(&node) {
            found.open = found.open.saturating_sub(1);
        }
        self.drop_unused(node);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::host::{open_below, stat};

    fn found(directory: &Path, name: &CStr) -> (Key, OwnedFd) {
        let fd = open_below(crate::open(directory).unwrap(), name).unwrap();
        (Key::of(&stat(&fd).unwrap()), fd)
    }

    #[test]
    fn what_the_table_drops_stays_open_until_its_lock_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let root = crate::open(dir.path()).unwrap();
        let key = Key::of(&stat(&root).unwrap());
        let mut table = Table::new(Limits { nodes: 3, handles: 1, held: 1 }, root, key);
        let enter = |table: &mut Table, name: &CStr| {
            let (key, fd) = found(dir.path(), name);
            table.enter(key, fd, ROOT, name).map(|(node, _)| node)
        };

        // Its number is forgotten.
        let a = enter(&mut table, c"a").unwrap();
        drop(table.take_gone());
        let kept = Arc::downgrade(&table.chain(a).unwrap().0);
        table.forget(a, 1);
        assert!(kept.upgrade().is_some());
        drop(table.take_gone());
        assert!(kept.upgrade().is_none());

        // There are too many descriptors.
        let a = enter(&mut table, c"a").unwrap();
        drop(table.take_gone());
        let kept = Arc::downgrade(&table.chain(a).unwrap().0);
        let b = enter(&mut table, c"b").unwrap();
        let closed = [a, b].into_iter().filter(|node| !table.chain(*node).unwrap().1.is_empty());
        assert_eq!(closed.collect::<Vec<_>>(), [a]);
        assert!(kept.upgrade().is_some());
        drop(table.take_gone());
        assert!(kept.upgrade().is_none());

        // There are too many numbers.
        assert_eq!(enter(&mut table, c"c"), Err(Errno::NFILE));
        assert_eq!(table.take_gone().len(), 1);

        // A file is closed, and another one cannot be opened.
        let open = |table: &mut Table, node| {
            let file = found(dir.path(), c"b").1;
            let fd = Arc::new(found(dir.path(), c"b").1);
            table.open(Handle { node, file, opened: Opened::File { appends: false } }, fd)
        };
        let number = open(&mut table, b).unwrap();
        let kept = Arc::downgrade(&table.handle(number, b).unwrap());
        for (node, expect) in [(b, Errno::NFILE), (99, Errno::STALE)] {
            assert_eq!(open(&mut table, node), Err(expect));
            assert_eq!(table.take_gone().len(), 2);
        }
        table.release(number, b).unwrap();
        assert!(kept.upgrade().is_some());
        drop(table.take_gone());
        assert!(kept.upgrade().is_none());
    }

    #[test]
    fn a_file_that_is_open_has_a_descriptor_that_was_closed_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let root = crate::open(dir.path()).unwrap();
        let key = Key::of(&stat(&root).unwrap());
        let mut table = Table::new(Limits { nodes: 9, handles: 9, held: 1 }, root, key);
        let mut enter = |name| {
            let (key, fd) = found(dir.path(), name);
            table.enter(key, fd, ROOT, name).unwrap()
        };
        let (a, fd) = enter(c"a");
        enter(c"b");
        assert_eq!(table.chain(a).unwrap().1.len(), 1);
        let (file, opened) = (found(dir.path(), c"a").1, Opened::File { appends: false });
        let number = table.open(Handle { node: a, file, opened }, fd).unwrap();
        assert_eq!(table.chain(a).unwrap().1.len(), 0);
        // It is one of those that are bounded, once the file is closed.
        table.release(number, a).unwrap();
        for name in [c"b", c"a", c"b"] {
            let (key, fd) = found(dir.path(), name);
            table.enter(key, fd, ROOT, name).unwrap();
        }
        assert_eq!(table.held.len(), 1);
    }
}
