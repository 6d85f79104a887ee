//! Sending a repository into a sandbox.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, BufWriter, Read, Write},
    os::unix::ffi::OsStrExt,
};

use banger_proto::{
    bus::names::VM_INTERFACE,
    guest::{
        Request,
        frame::MAX_DATA,
        message::{Algorithm, Placement},
    },
    size::Bytes,
};
use tar::{Builder, EntryType, Header};

use super::{
    files::{Exactly, Found, Hasher, Root, blob_id},
    metadata::{self, Metadata},
    record::{Draft, EXCLUDE, Kept, Record, Records, forget_all_but},
    snapshot::{Change, Content, Contents, Importer, SENT, Snapshot},
    source::{Head, Mode, Repository, SUBMODULE, SYMLINK, Shown, Tracked, os},
};
use crate::{
    age,
    error::{Error, Result},
    guest::{Call, Guest, from_io},
};

/// A file of this length is read once and kept until it is sent; a longer one is read twice.
const KEPT_IN_MEMORY: u64 = 8 << 20;

/// What is to be sent.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// How much.
    pub mode: Mode,
    /// Files that git does not track, too.
    pub include_untracked: bool,
    /// A branch that is made in the sandbox only.
    pub branch: Option<String>,
    /// The revision at which it begins, whose files are sent instead of those of the work tree.
    pub from: Option<String>,
}

/// What will be sent.
#[derive(Debug)]
pub struct Plan {
    /// The repository.
    pub repository: Repository,
    /// What was asked for.
    pub wanted: Wanted,
    /// What is checked out in the sandbox.
    pub head: Head,
    /// The index in the sandbox.
    index: Vec<Tracked>,
    /// The files.
    pub files: Vec<Planned>,
    /// Untracked files that stay here.
    pub left: usize,
    /// Repositories within this one that it does not track: they stay here.
    pub nested: Vec<Vec<u8>>,
}

/// A file that will be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub path: Vec<u8>,
    /// Its mode in a tree.
    pub mode: u32,
    /// How long it is now.
    pub size: u64,
    /// The content in the repository that is sent instead of a file.
    id: Option<String>,
}

impl Plan {
    /// Looks at the repository. Nothing is changed anywhere.
    pub fn make(repository: Repository, wanted: Wanted) -> Result<Self> {
        if wanted.mode == Mode::FullCopy && wanted.branch.is_some() {
            return Err(Error::Refused(
                "a full copy has the branches of the repository, and no other".to_owned(),
            )
            .advise("leave `--branch` or `--mode full-copy` out."));
        }
        let head = head_in_guest(&repository, &wanted)?;
        let mut index = match (&wanted.from, &head.commit, wanted.mode) {
            (Some(_), Some(commit), _) => repository.files_of(commit)?,
            (_, _, Mode::Shallow) => repository.tracked()?,
            (_, _, Mode::FullCopy) => {
                metadata::check_full_copy(&repository)?;
                repository.tracked_with_submodules()?
            }
        };
        if wanted.mode == Mode::Shallow
            && let Some(submodule) = index.iter().find(|entry| entry.mode == SUBMODULE)
        {
            return Err(Error::Refused(format!(
                "the repository has the submodule {}",
                Shown(&submodule.path)
            ))
            .advise("`--mode full-copy` sends the files of submodules too, and all of `.git`."));
        }
        index.retain(|entry| entry.mode != SUBMODULE);
        let mut plan =
            Self { files: Vec::new(), left: 0, nested: Vec::new(), repository, wanted, head, index };
        if plan.wanted.from.is_some() {
            plan.files_of_commit()?
        } else {
            plan.files_of_work_tree()?
        }
        Ok(plan)
    }

    /// All bytes of the files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Where a command begins in a workspace at this path: the directory that was named, unless all that it has
    /// stays here.
    pub fn place(&self, guest_path: &str) -> String {
        let prefix = self.repository.prefix.as_bytes();
        let goes = !prefix.is_empty() && self.files.iter().any(|file| file.path.starts_with(prefix));
        match self.repository.prefix.to_str().filter(|_| goes) {
            Some(prefix) => format!("{guest_path}/{}", prefix.trim_end_matches('/')),
            None => guest_path.to_owned(),
        }
    }

    fn files_of_commit(&mut self) -> Result<()> {
        let list: String = self.index.iter().map(|entry| format!("{}\n", entry.id)).collect();
        let sizes =
            self.repository.git().run(&["cat-file", "--batch-check=%(objectsize)"], list.as_bytes())?;
        let sizes = String::from_utf8_lossy(&sizes).into_owned();
        for (entry, size) in self.index.iter().zip(sizes.lines()) {
            let size = size.parse().map_err(|_| missing(&entry.path))?;
            let (path, mode, id) = (entry.path.clone(), entry.mode, Some(entry.id.clone()));
            self.files.push(Planned { path, mode, size, id });
        }
        Ok(())
    }

    fn files_of_work_tree(&mut self) -> Result<()> {
        let root = open(&self.repository)?;
        let mut seen = HashSet::new();
        let tracked: Vec<_> = self
            .index
            .iter()
            .map(|entry| entry.path.clone())
            .filter(|path| seen.insert(path.clone()))
            .collect();
        let untracked = self.repository.untracked()?;
        let (nested, untracked): (Vec<_>, Vec<_>) =
            untracked.into_iter().partition(|path| path.ends_with(b"/"));
        let more = if self.wanted.include_untracked {
            untracked
        } else {
            self.left = untracked.len();
            Vec::new()
        };
        self.nested = nested;
        for path in tracked.into_iter().chain(more) {
            let found = root.look(&path).map_err(|source| cannot_read(&path, source))?;
            let facts = match found {
                Some(Found::File(_, facts)) | Some(Found::Symlink(_, facts)) => facts,
                // It was deleted, or is left out of a sparse checkout, or is no file any more.
                Some(Found::Other(_)) | None => continue,
            };
            self.files.push(Planned { path, mode: facts.mode, size: facts.size, id: None });
        }
        Ok(())
    }
}

/// What will be checked out in the sandbox.
fn head_in_guest(repository: &Repository, wanted: &Wanted) -> Result<Head> {
    let mut head = repository.head.clone();
    if let Some(from) = &wanted.from {
        head.commit = Some(repository.commit(from)?);
    }
    if let Some(branch) = &wanted.branch {
        let checked = repository.git().line(&["check-ref-format", "--branch", branch])?;
        if checked.is_none() || branch.starts_with('-') {
            return Err(Error::Refused(format!("{branch} cannot be the name of a branch")));
        }
        head.branch = Some(format!("refs/heads/{branch}"));
    }
    Ok(head)
}

/// How a workspace is put into a sandbox.
#[derive(Debug, Clone)]
pub struct Target {
    /// The id of the sandbox.
    pub vm_id: String,
    /// Where in the sandbox.
    pub path: String,
    /// What becomes of what is there.
    pub placement: Placement,
}

/// Sends a repository, and remembers what was sent.
pub async fn send(guest: &mut Guest, plan: Plan, target: Target) -> Result<Kept> {
    forget_old(guest).await;
    let draft = Records::of(&target.vm_id)?.begin(&target.path)?;
    let request = Request::PutTar { directory: target.path.clone(), placement: target.placement };
    let sent = guest.call(request, move |call| {
        stream(call, &plan, &draft)?;
        draft.commit(record_of(&plan, &target))
    });
    sent.await.map_err(|error| match &error {
        Error::Guest(failure) if failure.message.contains("there is something already") => {
            error.advise("`--force` replaces what is there; `--guest-path` chooses another place.")
        }
        _ => error,
    })
}

/// What was kept for sandboxes that are gone is of no use. That they cannot be told from others is no reason
/// not to go on.
async fn forget_old(guest: &Guest) {
    if let Ok(sandboxes) = guest.bus().objects(VM_INTERFACE).await {
        let ids: Vec<String> = sandboxes.iter().map(|sandbox| sandbox.text("Id").to_owned()).collect();
        forget_all_but(&ids);
    }
}

fn record_of(plan: &Plan, target: &Target) -> Record {
    Record {
        guest_path: target.path.clone(),
        source: plan.repository.root.clone(),
        branch: plan.head.branch.clone(),
        commit: plan.repository.head.commit.clone(),
        algorithm: plan.repository.algorithm,
        mode: plan.wanted.mode,
        untracked: plan.wanted.include_untracked,
        from_commit: plan.wanted.from.is_some(),
        mise: false,
        sent_at: age::now(),
    }
}

fn stream(call: &mut Call, plan: &Plan, draft: &Draft) -> Result<()> {
    let snapshot = draft.snapshot(plan.repository.algorithm)?;
    keep_exclude(plan, draft)?;
    let metadata = match plan.wanted.mode {
        Mode::Shallow => Some(Metadata::take(&plan.repository, &plan.head, &plan.index, &snapshot)?),
        Mode::FullCopy => None,
    };
    let known = metadata.as_ref().map(|metadata| metadata.ids.clone()).unwrap_or_default();
    let mut archive = Builder::new(BufWriter::with_capacity(MAX_DATA, &mut *call));
    let mut sender = Sender::new(&plan.repository, &snapshot, known)?;
    for file in &plan.files {
        sender.send(&mut archive, file)?;
    }
    let sent = sender.finish()?;
    match &metadata {
        Some(metadata) => metadata.append(&mut archive, &plan.repository, &plan.index, &sent)?,
        None => metadata::append_full_copy(&mut archive, &plan.repository, &plan.files)?,
    }
    archive.into_inner().and_then(|mut writer| writer.flush()).map_err(from_io)?;
    call.end_input()?;
    call.finish()
}

/// What the repository ignores by its own list has to be ignored when work comes back, too.
fn keep_exclude(plan: &Plan, draft: &Draft) -> Result<()> {
    let list = plan.repository.git().line(&["rev-parse", "--git-path", "info/exclude"])?;
    let Some(list) = list else { return Ok(()) };
    let list = plan.repository.root.join(os(&list));
    match fs::read(&list) {
        Ok(text) => fs::write(draft.directory().join(EXCLUDE), text)
            .map_err(|source| Error::io("keep what is ignored", source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::io(format!("read {}", list.display()), source)),
    }
}

/// The names of the contents that were sent, by path.
pub type Sent = HashMap<Vec<u8>, (u32, String)>;

/// Sends files and keeps their contents.
pub struct Sender<'a> {
    root: Root,
    algorithm: Algorithm,
    importer: Importer,
    contents: Option<Contents>,
    /// Contents that the snapshot has already.
    known: HashSet<String>,
    changes: Vec<Change>,
    sent: Sent,
    repository: &'a Repository,
    parent: Option<&'static str>,
}

impl<'a> Sender<'a> {
    /// Sends files of this repository. The commit of what was sent begins with nothing.
    pub fn new(repository: &'a Repository, snapshot: &Snapshot, known: HashSet<String>) -> Result<Self> {
        Ok(Self {
            root: open(repository)?,
            algorithm: repository.algorithm,
            importer: snapshot.import()?,
            contents: None,
            known,
            changes: Vec::new(),
            sent: Sent::new(),
            repository,
            parent: None,
        })
    }

    /// The commit of what was sent changes the one that there is.
    pub fn amending(mut self) -> Self {
        self.parent = Some("refs/banger/sent^0");
        self
    }

    /// Something is no longer there.
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
                append_link(archive, path, &target, facts.stat.mtime.0)?;
                self.keep(path, SYMLINK, blob_id(self.algorithm, &target), &target)
            }
            Some(Found::File(file, facts)) => {
                let mut header = header(facts.permissions & 0o777, facts.size, facts.stat.mtime.0);
                let mut content = Exactly::new(file, facts.size);
                if facts.size <= KEPT_IN_MEMORY {
                    let mut bytes = Vec::with_capacity(facts.size as usize);
                    content.read_to_end(&mut bytes).map_err(|source| cannot_read(path, source))?;
                    archive.append_data(&mut header, os(path), bytes.as_slice()).map_err(from_io)?;
                    return self.keep(path, facts.mode, blob_id(self.algorithm, &bytes), &bytes);
                }
                let changed = || {
                    Error::Refused(format!("{} changed while it was read", Shown(path))).advise("try again.")
                };
                let mut content = Hashing { hasher: Hasher::new(self.algorithm, facts.size), from: content };
                archive.append_data(&mut header, os(path), &mut content).map_err(|_| changed())?;
                let id = content.hasher.finish();
                if !self.known.contains(&id) {
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

    /// A content of the repository goes instead of a file.
    fn send_content(&mut self, archive: &mut Builder<impl Write>, file: &Planned, id: &str) -> Result<()> {
        let (path, mode) = (&file.path, file.mode);
        if self.contents.is_none() {
            self.contents = Some(Contents::of(&self.repository.git())?);
        }
        let Some(contents) = &mut self.contents else { return Ok(()) };
        contents.read(id, |size, content| match mode {
            SYMLINK => {
                let mut target = Vec::new();
                content.read_to_end(&mut target).map_err(|source| cannot_read(path, source))?;
                append_link(archive, path, &target, 0)
            }
            mode => {
                let mut header = header(mode & 0o777, size, (age::now() / 1_000_000) as i64);
                archive.append_data(&mut header, os(path), content).map_err(from_io)
            }
        })?;
        self.put(path, mode, id.to_owned(), Content::Id(id.to_owned()))
    }

    fn keep(&mut self, path: &[u8], mode: u32, id: String, bytes: &[u8]) -> Result<()> {
        let content = match self.known.contains(&id) {
            true => Content::Id(id.clone()),
            false => self.importer.blob(bytes.len() as u64, &mut &*bytes)?,
        };
        self.put(path, mode, id, content)
    }

    fn put(&mut self, path: &[u8], mode: u32, id: String, content: Content) -> Result<()> {
        self.changes.push(Change::Put { mode, content, path: path.to_vec() });
        self.sent.insert(path.to_vec(), (mode, id));
        Ok(())
    }

    /// Commits what was sent.
    pub fn finish(self) -> Result<Sent> {
        if let Some(contents) = self.contents {
            contents.end()?;
        }
        self.importer.commit(SENT, self.parent, &self.changes)?;
        Ok(self.sent)
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

/// The head of a file that is root's in the sandbox.
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
    archive.append_link(&mut header, os(path), os(target)).map_err(from_io)
}

fn open(repository: &Repository) -> Result<Root> {
    Root::open(&repository.root)
        .map_err(|source| Error::io(format!("read {}", repository.root.display()), source))
}

/// A file of the user's that cannot be read.
pub fn cannot_read(path: &[u8], source: io::Error) -> Error {
    Error::io(format!("read {}", Shown(path)), source)
}

fn missing(path: &[u8]) -> Error {
    Error::Refused(format!("the repository does not have the content of {}", Shown(path)))
        .advise("`git fetch --refetch --no-filter` completes a clone that was made in part.")
}

/// What is on its way, in a few words.
pub fn told(files: usize, bytes: u64, path: &str) -> String {
    let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
    format!("{files}, {}, to {path}", Bytes(bytes))
}
