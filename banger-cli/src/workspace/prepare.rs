//! Sending a repository into a sandbox.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{self, BufWriter, Write},
    os::unix::ffi::OsStrExt,
};

use banger_proto::{
    bus::names::VM_INTERFACE,
    guest::{Request, frame::MAX_DATA, message::Placement},
    size::Bytes,
};
use tar::Builder;

use super::{
    files::{Found, Root},
    metadata::{self, Metadata},
    record::{self, Draft, EXCLUDE, Kept, Record, Records, forget_all_but},
    sender::{Finished, Sender, cannot_read},
    snapshot::SENT,
    source::{Head, Mode, Repository, SUBMODULE, Shown, Tracked, os},
    stamps::{Stamps, now},
    unfinished::Unfinished,
    untracked::{Include, Untracked},
};
use crate::{
    age,
    error::{Error, Result},
    guest::{Call, Guest, from_io},
    progress::Meter,
};

/// What is to be sent.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// How much.
    pub mode: Mode,
    /// Files that git does not track, too.
    pub include_untracked: bool,
    /// Some of the files that git does not track, ignored ones too.
    pub include: Include,
    /// A branch that is made in the sandbox only.
    pub branch: Option<String>,
    /// The revision at which it begins, whose files are sent instead of those of the work tree.
    pub from: Option<String>,
}

impl Wanted {
    /// What was asked for when this workspace was sent.
    pub fn of(record: &Record) -> Self {
        Self {
            mode: record.mode,
            include_untracked: record.untracked,
            include: record.include.clone(),
            branch: None,
            from: None,
        }
    }

    /// Whether files that git does not track are looked for.
    pub fn takes_untracked(&self) -> bool {
        self.include_untracked || !self.include.is_empty()
    }
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
    /// The ignored files that go along.
    pub private: HashSet<Vec<u8>>,
    /// What git is in the middle of here.
    pub unfinished: Unfinished,
    /// The stamp of the index, taken before it was read.
    pub index_stamp: Stamps,
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
    pub id: Option<String>,
}

impl Plan {
    /// Looks at the repository. Nothing is changed anywhere.
    pub fn make(repository: Repository, wanted: Wanted) -> Result<Self> {
        if wanted.mode == Mode::FullCopy && wanted.branch.is_some() {
            return Err(Error::Refused("cannot create a branch in a full copy".to_owned())
                .advise("leave out `--branch` or `--mode full-copy`."));
        }
        let head = head_in_guest(&repository, &wanted)?;
        let mut index_stamp = Stamps::default();
        index_stamp.put_index(&repository.index(), now());
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
            return Err(Error::Refused(format!("cannot send the submodule {}", Shown(&submodule.path)))
                .advise("`--mode full-copy` also sends the files of submodules, and all of `.git`."));
        }
        index.retain(|entry| entry.mode != SUBMODULE);
        let unfinished = match (&wanted.from, wanted.mode) {
            // A full copy has all of git's files.
            (None, Mode::Shallow) => Unfinished::find(&repository)?,
            _ => Unfinished::default(),
        };
        let mut plan = Self {
            files: Vec::new(),
            left: 0,
            nested: Vec::new(),
            private: HashSet::new(),
            repository,
            wanted,
            head,
            index,
            unfinished,
            index_stamp,
        };
        let tracked = if plan.wanted.from.is_some() {
            plan.files_of_commit()?
        } else {
            plan.files_of_work_tree(plan.index.iter().map(|entry| entry.path.clone()).collect())?
        };
        plan.untracked_files(tracked)?;
        Ok(plan)
    }

    /// The same plan with these files alone, as they are here.
    pub fn only(mut self, paths: Vec<Vec<u8>>) -> Result<Self> {
        self.files.clear();
        self.files_of_work_tree(paths)?;
        Ok(self)
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

    /// Plans the files of a commit; returns their names.
    fn files_of_commit(&mut self) -> Result<HashSet<Vec<u8>>> {
        let list: String = self.index.iter().map(|entry| format!("{}\n", entry.id)).collect();
        let sizes =
            self.repository.git().run(&["cat-file", "--batch-check=%(objectsize)"], list.as_bytes())?;
        let sizes = String::from_utf8_lossy(&sizes).into_owned();
        for (entry, size) in self.index.iter().zip(sizes.lines()) {
            let size = size.parse().map_err(|_| missing(&entry.path))?;
            let (path, mode, id) = (entry.path.clone(), entry.mode, Some(entry.id.clone()));
            self.files.push(Planned { path, mode, size, id });
        }
        Ok(self.index.iter().map(|entry| entry.path.clone()).collect())
    }

    /// Plans these files as they are here, each once; returns the names of those that were planned.
    fn files_of_work_tree(&mut self, paths: Vec<Vec<u8>>) -> Result<HashSet<Vec<u8>>> {
        let root = Root::open(&self.repository.root)?;
        let mut seen = HashSet::new();
        for path in paths {
            if !seen.insert(path.clone()) {
                continue;
            }
            let found = root.look(&path).map_err(|source| cannot_read(&path, source))?;
            let facts = match found {
                Some(Found::File(_, facts)) | Some(Found::Symlink(_, facts)) => facts,
                // It was deleted, or is left out of a sparse checkout, or is no file any more.
                Some(Found::Other(_)) | None => continue,
            };
            self.files.push(Planned { path, mode: facts.mode, size: facts.size, id: None });
        }
        Ok(seen)
    }

    /// Plans what goes along of the files that git does not track.
    fn untracked_files(&mut self, tracked: HashSet<Vec<u8>>) -> Result<()> {
        let Wanted { include_untracked, include, from, .. } = &self.wanted;
        if from.is_some() && include.is_empty() {
            return Ok(());
        }
        let Untracked { sent, private, left, nested } =
            Untracked::find(&self.repository, *include_untracked, include)?;
        if from.is_none() {
            (self.left, self.nested) = (left, nested);
        }
        // A file of the commit may be untracked or ignored now.
        self.private = private.difference(&tracked).cloned().collect();
        let more = sent.into_iter().filter(|path| !tracked.contains(path)).collect();
        self.files_of_work_tree(more).map(drop)
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
            return Err(Error::Refused(format!("{branch} is not a valid name for a branch")));
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
pub async fn send(guest: &mut Guest, plan: Plan, target: Target, meter: Meter) -> Result<Kept> {
    forget_old(guest).await;
    let draft = Records::of(&target.vm_id)?.begin(&target.path)?;
    let request = Request::PutTar { directory: target.path.clone(), placement: target.placement };
    let sent = guest.call(request, move |call| {
        stream(call, &plan, &draft, meter)?;
        draft.commit(record_of(&plan, &target))
    });
    sent.await.map_err(|error| match &error {
        Error::Guest(failure) if failure.message.contains("there is something already") => {
            error.advise("`--force` replaces what is there; `--guest-path PATH` chooses another path.")
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
        include: plan.wanted.include.clone(),
        from_commit: plan.wanted.from.is_some(),
        mise: false,
        user: None,
        env: BTreeMap::new(),
        sent_at: age::now(),
    }
}

fn stream(call: &mut Call, plan: &Plan, draft: &Draft, meter: Meter) -> Result<()> {
    let snapshot = draft.snapshot(plan.repository.algorithm)?;
    keep_exclude(plan, draft)?;
    let metadata = match plan.wanted.mode {
        Mode::Shallow => Some(Metadata::take(plan, &plan.index, &snapshot)?),
        Mode::FullCopy => None,
    };
    let known = metadata.as_ref().map(|metadata| metadata.ids.clone()).unwrap_or_default();
    let mut archive = Builder::new(BufWriter::with_capacity(MAX_DATA, &mut *call));
    let mut sender = Sender::new(plan, &snapshot, known)?.counting(meter);
    for file in &plan.files {
        sender.send(&mut archive, file)?;
    }
    let Finished { sent, private, mut stamps } = sender.finish()?;
    stamps.extend(plan.index_stamp.clone());
    stamps.save(draft.directory(), &snapshot.commit(SENT)?)?;
    record::save_private(draft.directory(), &private)?;
    match &metadata {
        Some(metadata) => metadata.append(&mut archive, plan, &plan.index, &sent)?,
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
            .map_err(|source| Error::io("store the list of ignored files", source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::io(format!("read {}", list.display()), source)),
    }
}

fn missing(path: &[u8]) -> Error {
    Error::Refused(format!("the repository does not have the content of {}", Shown(path)))
        .advise("`git fetch --refetch --no-filter` completes a partial clone.")
}

/// What is on its way, in a few words.
pub fn told(files: usize, bytes: u64, path: &str) -> String {
    let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
    format!("{files}, {}, to {path}", Bytes(bytes))
}
