//! Sends files into a sandbox: each is read once, added to the archive, and stored in the snapshot under git's object
//! name.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read, Write},
};

use banger_proto::guest::message::Algorithm;
use tar::{Builder, EntryType, Header};

use super::{
    export::Tree,
    files::{Exactly, Found, Hasher, Root, blob_id},
    prepare::{Plan, Planned},
    snapshot::{Change, Content, Contents, Importer, SENT, Snapshot},
    source::{DisplayPath, SYMLINK, os},
    stamps::{self, Stamps},
};
use crate::{
    error::{Error, Result},
    guest::agent::from_io,
    ui::{
        age,
        progress::{Meter, Metered},
    },
};

/// Files up to this size are read once and kept in memory; longer ones are read twice.
const KEPT_IN_MEMORY: u64 = 8 << 20;

/// The object names of sent files, by path.
pub type Sent = HashMap<Vec<u8>, (u32, String)>;

/// The result of sending.
#[derive(Debug)]
pub struct Finished {
    /// All files except the ignored ones.
    pub sent: Sent,
    /// The ignored files.
    pub private: Tree,
    /// The stamps of the files from before they were read.
    pub stamps: Stamps,
}

/// Sends files and stores their contents.
pub struct Sender<'a> {
    root: Root,
    algorithm: Algorithm,
    importer: Importer,
    contents: Option<Contents>,
    /// Objects that the snapshot has already.
    known: HashSet<String>,
    changes: Vec<Change>,
    sent: Sent,
    private: Tree,
    stamps: Stamps,
    begun: i64,
    plan: &'a Plan,
    parent: Option<&'static str>,
    meter: Meter,
}

impl<'a> Sender<'a> {
    /// Starts to send files of this plan. The commit of what was sent starts empty.
    pub fn new(plan: &'a Plan, snapshot: &Snapshot, known: HashSet<String>) -> Result<Self> {
        Ok(Self {
            root: Root::open(&plan.repository.root)?,
            algorithm: plan.repository.algorithm,
            importer: snapshot.import()?,
            contents: None,
            known,
            changes: Vec::new(),
            sent: Sent::new(),
            private: Tree::new(),
            stamps: Stamps::default(),
            begun: stamps::now(),
            plan,
            parent: None,
            meter: Meter::none(),
        })
    }

    /// Counts the bytes sent.
    pub fn with_meter(mut self, meter: Meter) -> Self {
        self.meter = meter;
        self
    }

    /// Makes the commit of what was sent a change of the existing one.
    pub fn amending(mut self) -> Self {
        self.parent = Some("refs/banger/sent^0");
        self
    }

    /// Removes a file that no longer exists from the commit.
    pub fn forget(&mut self, path: Vec<u8>) {
        self.changes.push(Change::Remove { path });
    }

    /// Adds a file to the archive.
    pub fn send(&mut self, archive: &mut Builder<impl Write>, file: &Planned) -> Result<()> {
        if let Some(id) = &file.id {
            return self.send_content(archive, file, id);
        }
        let path = &file.path;
        let look = || self.root.look(path).map_err(|source| cannot_read(path, source));
        match look()? {
            Some(Found::Symlink(target, facts)) => {
                self.stamps.put(path, facts.stamp, self.begun);
                append_link(archive, path, &target, facts.stat.mtime.0)?;
                self.keep(path, SYMLINK, blob_id(self.algorithm, &target), &target)
            }
            Some(Found::File(file, facts)) => {
                self.stamps.put(path, facts.stamp, self.begun);
                let mut header = header(facts.permissions & 0o777, facts.size, facts.stat.mtime.0);
                let mut content = Exactly::new(file, facts.size);
                if facts.size <= KEPT_IN_MEMORY {
                    let mut bytes = Vec::with_capacity(facts.size as usize);
                    content.read_to_end(&mut bytes).map_err(|source| cannot_read(path, source))?;
                    archive.append_data(&mut header, os(path), bytes.as_slice()).map_err(from_io)?;
                    self.meter.add(facts.size);
                    return self.keep(path, facts.mode, blob_id(self.algorithm, &bytes), &bytes);
                }
                let changed = || {
                    Error::Refused(format!("{} changed while it was read", DisplayPath(path)))
                        .with_hint("try again.")
                };
                let mut content = Hashing { hasher: Hasher::new(self.algorithm, facts.size), from: content };
                let counted = Metered { from: &mut content, meter: &self.meter };
                archive.append_data(&mut header, os(path), counted).map_err(|_| changed())?;
                let id = content.hasher.finish();
                if !self.known.contains(&id) && !self.plan.private.contains(path) {
                    let Some(Found::File(file, again)) =
                        self.root.look(path).map_err(|source| cannot_read(path, source))?
                    else {
                        return Err(changed());
                    };
                    if again != facts {
                        return Err(changed());
                    }
                    let mut content = Hashing {
                        hasher: Hasher::new(self.algorithm, facts.size),
                        from: Exactly::new(file, facts.size),
                    };
                    let mark = self.importer.blob(facts.size, &mut content)?;
                    if content.hasher.finish() != id {
                        return Err(changed());
                    }
                    return self.put(path, facts.mode, id, mark);
                }
                self.put(path, facts.mode, id.clone(), Content::Id(id))
            }
            Some(Found::Other(_)) | None => Ok(()),
        }
    }

    /// Sends an object of the repository instead of a file.
    fn send_content(&mut self, archive: &mut Builder<impl Write>, file: &Planned, id: &str) -> Result<()> {
        let (path, mode) = (&file.path, file.mode);
        if self.contents.is_none() {
            self.contents = Some(Contents::of(&self.plan.repository.git())?);
        }
        let Some(contents) = &mut self.contents else { return Ok(()) };
        let meter = &self.meter;
        contents.read(id, |size, content| match mode {
            SYMLINK => {
                let mut target = Vec::new();
                content.read_to_end(&mut target).map_err(|source| cannot_read(path, source))?;
                append_link(archive, path, &target, 0)
            }
            mode => {
                let mut header = header(mode & 0o777, size, (age::now() / 1_000_000) as i64);
                archive.append_data(&mut header, os(path), Metered { from: content, meter }).map_err(from_io)
            }
        })?;
        self.put(path, mode, id.to_owned(), Content::Id(id.to_owned()))
    }

    fn keep(&mut self, path: &[u8], mode: u32, id: String, bytes: &[u8]) -> Result<()> {
        let content = match self.known.contains(&id) || self.plan.private.contains(path) {
            true => Content::Id(id.clone()),
            false => self.importer.blob(bytes.len() as u64, &mut &*bytes)?,
        };
        self.put(path, mode, id, content)
    }

    fn put(&mut self, path: &[u8], mode: u32, id: String, content: Content) -> Result<()> {
        if self.plan.private.contains(path) {
            // Its content is not stored, and it is not part of what comes back.
            self.changes.push(Change::Remove { path: path.to_vec() });
            self.private.insert(path.to_vec(), (mode, id));
            return Ok(());
        }
        self.changes.push(Change::Put { mode, content, path: path.to_vec() });
        self.sent.insert(path.to_vec(), (mode, id));
        Ok(())
    }

    /// Commits what was sent.
    pub fn finish(self) -> Result<Finished> {
        if let Some(contents) = self.contents {
            contents.end()?;
        }
        self.importer.commit(SENT, self.parent, &self.changes)?;
        Ok(Finished { sent: self.sent, private: self.private, stamps: self.stamps })
    }
}

struct Hashing {
    hasher: Hasher,
    from: Exactly,
}

impl Read for Hashing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.hasher.update(&into[..count]);
        Ok(count)
    }
}

/// Returns the header of a file that belongs to root in the sandbox.
pub fn header(permissions: u32, size: u64, mtime: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(permissions);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(u64::try_from(mtime).unwrap_or_default());
    header
}

/// Adds a symbolic link to an archive.
pub fn append_link(archive: &mut Builder<impl Write>, path: &[u8], target: &[u8], mtime: i64) -> Result<()> {
    let mut header = header(0o777, 0, mtime);
    header.set_entry_type(EntryType::Symlink);
    // For git, the target of a link is content: every byte matters.
    banger_copy::append_entry(archive, header, path, Some(target), io::empty()).map_err(from_io)
}

/// Returns the error for a file that cannot be read.
pub fn cannot_read(path: &[u8], source: io::Error) -> Error {
    Error::io(format!("read {}", DisplayPath(path)), source)
}
