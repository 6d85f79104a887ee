//! Packs a tree into an archive.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    rc::Rc,
};

use rustix::{
    fs::{Dir, FileType, OFlags, Stat, fstat, readlinkat},
    io::Errno,
};
use tar::{Builder, EntryType, Header};

use crate::{
    Error, Notes, Result,
    content::Content,
    error_tap::{ErrorTap, Failure},
    raw_names::append_entry,
    walk::{Ancestor, Found, Walk, special},
};

/// Limit on remembered files with several names; further ones are sent once per name.
const MAX_LINKS: usize = 1 << 20;
/// Permission bits that are kept for another owner: a program must not gain the rights of a user who did not grant
/// them.
const WITHOUT_SETUID: u32 = 0o3777;

/// Who owns the files in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The user and group of the source, with all permission bits.
    Source,
    /// Root; the receiver decides.
    Root,
}

/// Packs files and directories into an archive.
pub struct Packer<W: Write> {
    archive: Builder<ErrorTap<W>>,
    failure: Failure,
    ownership: Ownership,
    follow: bool,
    links: HashMap<(u64, u64), Vec<u8>>,
    notes: Notes,
    count: Box<dyn FnMut(u64)>,
    is_left_out: Box<dyn Fn(&Path) -> bool>,
}

impl<W: Write> Packer<W> {
    /// Creates a packer that writes to `to`.
    pub fn new(to: W, ownership: Ownership) -> Self {
        let (to, failure) = ErrorTap::new(to);
        Self {
            archive: Builder::new(to),
            failure,
            ownership,
            follow: false,
            links: HashMap::new(),
            notes: Notes::default(),
            count: Box::new(|_| ()),
            is_left_out: Box::new(|_| false),
        }
    }

    /// Follows symbolic links instead of packing them, if `follow` is set.
    pub fn follow_links(mut self, follow: bool) -> Self {
        self.follow = follow;
        self
    }

    /// Calls `count` with the number of file bytes as they are written.
    pub fn on_progress(mut self, count: impl FnMut(u64) + 'static) -> Self {
        self.count = Box::new(count);
        self
    }

    /// Leaves out what `is_left_out` returns true for, and everything below it. Its argument is a path below the
    /// directory that is packed.
    pub fn leave_out(mut self, is_left_out: impl Fn(&Path) -> bool + 'static) -> Self {
        self.is_left_out = Box::new(is_left_out);
        self
    }

    /// Packs a file, or a directory with its whole content, under this name; without a name, only the content of a
    /// directory.
    pub fn add(&mut self, path: &Path, name: Option<&OsStr>) -> Result<()> {
        self.add_as(path, name.map(Path::new), None)
    }

    /// Packs a file, or a directory with its whole content, under this path. If `permissions` is given, every file
    /// gets them.
    pub fn add_as(&mut self, path: &Path, name: Option<&Path>, permissions: Option<u32>) -> Result<()> {
        let name = name.unwrap_or(Path::new(""));
        let (walk, first) = Walk::of(path, name, self.follow, permissions)?;
        let mut waiting = vec![first];
        let mut is_first = true;
        while let Some(found) = waiting.pop() {
            self.visit(&walk, found, is_first, &mut waiting)?;
            is_first = false;
        }
        Ok(())
    }

    /// Adds a file with this content.
    pub fn add_bytes(&mut self, name: &Path, permissions: u32, content: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(permissions);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        self.write(header, name.as_os_str().as_bytes(), None, content)
    }

    /// Completes the archive. Returns the writer and the notes.
    pub fn finish(self) -> Result<(W, Notes)> {
        let failure = self.failure.clone();
        let to = self.archive.into_inner().and_then(|mut to| to.flush().map(|()| to));
        let to = to.map_err(|error| Error::Stream(failure.take().unwrap_or(error)))?;
        Ok((to.into_inner(), self.notes))
    }

    fn visit(&mut self, walk: &Walk<'_>, found: Found, first: bool, waiting: &mut Vec<Found>) -> Result<()> {
        let shown = walk.shown(&found.path);
        let failed = |errno: Errno| Error::read(&shown, errno);
        let fd = match walk.open(&found.path, OFlags::PATH, walk.follow) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::LOOP) if self.follow && walk.is_link(&found.path) => {
                self.notes.add(&shown, "points to nothing, and was not copied");
                return Ok(());
            }
            // It was removed meanwhile.
            Err(Errno::NOENT) if !first => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        let stat = fstat(&fd).map_err(failed)?;
        let mut header = self.header(&stat);
        let name = found.name.as_os_str().as_bytes();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.directory(walk, &found, &stat, header, waiting),
            FileType::Symlink => {
                let target = readlinkat(&fd, "", Vec::new()).map_err(failed)?.into_bytes();
                if first {
                    self.notes.add(&shown, "is a symbolic link and was copied as one; -L copies its target");
                }
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                self.write(header, name, Some(&target), io::empty())
            }
            FileType::RegularFile => {
                if let Some(permissions) = walk.permissions {
                    header.set_mode(permissions);
                }
                self.file(walk, &found, &stat, header)
            }
            kind => {
                let kind = special(kind).unwrap_or("file of an unknown kind");
                self.notes.add(&shown, &format!("is a {kind}, and was not copied"));
                Ok(())
            }
        }
    }

    fn directory(
        &mut self,
        walk: &Walk<'_>,
        found: &Found,
        stat: &Stat,
        mut header: Header,
        waiting: &mut Vec<Found>,
    ) -> Result<()> {
        let shown = walk.shown(&found.path);
        let failed = |errno: Errno| Error::read(&shown, errno);
        let id = (stat.st_dev, stat.st_ino);
        let mut above = found.above.as_ref();
        while let Some(one) = above {
            if one.id == id {
                self.notes.add(&shown, "points to a directory above it, and was not copied");
                return Ok(());
            }
            above = one.above.as_ref();
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = match walk.open(&found.path, flags, walk.follow) {
            Err(Errno::NOENT) if !found.path.as_os_str().is_empty() => return Ok(()),
            opened => opened.map_err(failed)?,
        };
        let mut names: Vec<OsString> = Vec::new();
        for entry in Dir::new(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        if !found.name.as_os_str().is_empty() {
            header.set_entry_type(EntryType::Directory);
            let mut name = found.name.clone().into_os_string();
            name.push("/");
            self.write(header, name.as_bytes(), None, io::empty())?;
        }
        // The last one is popped first.
        names.sort_unstable_by(|a, b| b.cmp(a));
        let above = self.follow.then(|| Rc::new(Ancestor { id, above: found.above.clone() }));
        let below = names.into_iter().map(|name| Found {
            path: found.path.join(&name),
            name: found.name.join(name),
            above: above.clone(),
        });
        waiting.extend(below.filter(|found| !(self.is_left_out)(&found.path)));
        Ok(())
    }

    fn file(&mut self, walk: &Walk<'_>, found: &Found, stat: &Stat, mut header: Header) -> Result<()> {
        let shown = walk.shown(&found.path);
        let name = found.name.as_os_str().as_bytes();
        let id = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&id).cloned() {
                header.set_entry_type(EntryType::Link);
                return self.write(header, name, Some(&first), io::empty());
            }
            if self.links.len() < MAX_LINKS {
                self.links.insert(id, name.to_owned());
            }
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match walk.open(&found.path, flags, walk.follow) {
            // It was removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::LOOP) => return self.forget(id, &shown),
            opened => File::from(opened.map_err(|errno| Error::read(&shown, errno))?),
        };
        let now = fstat(&file).map_err(|errno| Error::read(&shown, errno))?;
        if FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
            return self.forget(id, &shown);
        }
        let mut content = Content::of(file, true).map_err(|source| Error::read(&shown, source))?;
        let blocks = content.announce(&mut header);
        let mut data = content.data();
        let counted = Counted { from: blocks.chain(&mut data), count: &mut self.count };
        let appended = append_entry(&mut self.archive, header, name, None, counted);
        if let Some(source) = data.failed.take() {
            return Err(Error::read(&shown, source));
        }
        appended.map_err(|error| self.stream(error))?;
        if let Some(remark) = content.note() {
            self.notes.add(&shown, &remark);
        }
        Ok(())
    }

    fn forget(&mut self, id: (u64, u64), shown: &Path) -> Result<()> {
        self.links.remove(&id);
        self.notes.add(shown, "was removed while it was copied");
        Ok(())
    }

    fn header(&self, stat: &Stat) -> Header {
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
        let permissions = stat.st_mode & 0o7777;
        match self.ownership {
            Ownership::Source => {
                header.set_mode(permissions);
                header.set_uid(stat.st_uid.into());
                header.set_gid(stat.st_gid.into());
            }
            Ownership::Root => {
                header.set_mode(permissions & WITHOUT_SETUID);
                header.set_uid(0);
                header.set_gid(0);
            }
        }
        header
    }

    /// Writes an entry. Names are bytes, and are stored unchanged.
    fn write(&mut self, header: Header, name: &[u8], target: Option<&[u8]>, data: impl Read) -> Result<()> {
        append_entry(&mut self.archive, header, name, target, data).map_err(|error| self.stream(error))
    }

    fn stream(&self, error: io::Error) -> Error {
        Error::Stream(self.failure.take().unwrap_or(error))
    }
}

/// Counts the bytes read.
struct Counted<'a, R> {
    from: R,
    count: &'a mut Box<dyn FnMut(u64)>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        (self.count)(count as u64);
        Ok(count)
    }
}
