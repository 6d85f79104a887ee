//! Sends a repository into a sandbox.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{self, BufWriter, Write},
    os::unix::ffi::OsStrExt,
};

use banger_proto::{
    bus::names::VM_INTERFACE,
    count::counted,
    guest::{FailureKind, Request, frame::MAX_DATA, message::Placement},
    size::Bytes,
};
use tar::Builder;

use super::{
    devcontainer::setup::Setup,
    files::{Found, Root},
    metadata::{self, Metadata},
    record::{self, Draft, EXCLUDE, Record, Records, StoredWorkspace, remove_all_except},
    sender::{Finished, Sender, cannot_read},
    snapshot::SENT,
    source::{DisplayPath, Head, Mode, Repository, SUBMODULE, Tracked, os},
    stamps::{Stamps, now},
    unfinished::Unfinished,
    untracked::{Include, Untracked},
};
use crate::{
    error::{Error, Result},
    guest::agent::{Call, Guest, from_io},
    ui::{age, progress::Meter},
};

/// What to send.
#[derive(Debug, Clone, Default)]
pub struct SendOptions {
    /// How much of it.
    pub mode: Mode,
    /// Whether to include untracked files.
    pub include_untracked: bool,
    /// Some of the untracked files, including ignored ones.
    pub include: Include,
    /// A branch to create in the sandbox only.
    pub branch: Option<String>,
    /// The revision at which it starts, whose files are sent instead of the work tree's.
    pub from: Option<String>,
}

impl SendOptions {
    /// Returns the options with which a workspace was sent.
    pub fn of(record: &Record) -> Self {
        Self {
            mode: record.mode,
            include_untracked: record.untracked,
            include: record.include.clone(),
            branch: None,
            from: None,
        }
    }

    /// Returns whether untracked files are needed.
    pub fn takes_untracked(&self) -> bool {
        self.include_untracked || !self.include.is_empty()
    }
}

/// A plan of what to send.
#[derive(Debug)]
pub struct Plan {
    /// The repository.
    pub repository: Repository,
    /// The options.
    pub wanted: SendOptions,
    /// The head in the sandbox.
    pub head: Head,
    /// The index in the sandbox.
    index: Vec<Tracked>,
    /// The files.
    pub files: Vec<Planned>,
    /// The untracked files that are not sent.
    pub left: Vec<Vec<u8>>,
    /// Nested repositories that are not tracked. They are not sent.
    pub nested: Vec<Vec<u8>>,
    /// The ignored files that are sent.
    pub private: HashSet<Vec<u8>>,
    /// An unfinished operation of git.
    pub unfinished: Unfinished,
    /// The stamp of the index from before it was read.
    pub index_stamp: Stamps,
}

/// A file to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub path: Vec<u8>,
    /// Its mode in a git tree.
    pub mode: u32,
    /// Its current size.
    pub size: u64,
    /// The object to send instead of the file on the host.
    pub id: Option<String>,
}

impl Plan {
    /// Plans how to send a repository. Changes nothing.
    pub fn make(repository: Repository, wanted: SendOptions) -> Result<Self> {
        if wanted.mode == Mode::FullCopy && wanted.branch.is_some() {
            return Err(Error::Refused("cannot create a branch in a full copy".to_owned())
                .with_hint("leave out `--branch` or `--mode full-copy`."));
        }
        let head = guest_head(&repository, &wanted)?;
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
            return Err(Error::Refused(format!(
                "cannot send the submodule {}",
                DisplayPath(&submodule.path)
            ))
            .with_hint("`--mode full-copy` also sends the files of submodules, and all of `.git`."));
        }
        index.retain(|entry| entry.mode != SUBMODULE);
        let unfinished = match (&wanted.from, wanted.mode) {
            // A full copy contains all of git's files.
            (None, Mode::Shallow) => Unfinished::find(&repository)?,
            _ => Unfinished::default(),
        };
        let mut plan = Self {
            files: Vec::new(),
            left: Vec::new(),
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

    /// Restricts the plan to these files, in their current state.
    pub fn only(mut self, paths: Vec<Vec<u8>>) -> Result<Self> {
        self.files.clear();
        self.files_of_work_tree(paths)?;
        Ok(self)
    }

    /// Returns the total size of the files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Returns the directory in which a command starts, for a workspace at this path: the directory that the user has
    /// given, unless none of its files are sent.
    pub fn start_directory(&self, guest_path: &str) -> String {
        let prefix = self.repository.prefix.as_bytes();
        let goes = !prefix.is_empty() && self.files.iter().any(|file| file.path.starts_with(prefix));
        match self.repository.prefix.to_str().filter(|_| goes) {
            Some(prefix) => format!("{guest_path}/{}", prefix.trim_end_matches('/')),
            None => guest_path.to_owned(),
        }
    }

    /// Plans the files of a commit. Returns their names.
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

    /// Plans these files in their current state, each once. Returns the names of the planned ones.
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
                // It was deleted, is excluded from a sparse checkout, or is no longer a file.
                Some(Found::Other(_)) | None => continue,
            };
            self.files.push(Planned { path, mode: facts.mode, size: facts.size, id: None });
        }
        Ok(seen)
    }

    /// Plans the untracked files to send.
    fn untracked_files(&mut self, tracked: HashSet<Vec<u8>>) -> Result<()> {
        let SendOptions { include_untracked, include, from, .. } = &self.wanted;
        if from.is_some() && include.is_empty() {
            return Ok(());
        }
        let Untracked { sent, private, left, nested } =
            Untracked::find(&self.repository, *include_untracked, include)?;
        if from.is_none() {
            (self.left, self.nested) = (left, nested);
        }
        // A file of the commit may now be untracked or ignored.
        self.private = private.difference(&tracked).cloned().collect();
        let more = sent.into_iter().filter(|path| !tracked.contains(path)).collect();
        self.files_of_work_tree(more).map(drop)
    }
}

/// Returns the head in the sandbox.
fn guest_head(repository: &Repository, wanted: &SendOptions) -> Result<Head> {
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

/// The destination of a workspace.
#[derive(Debug, Clone)]
pub struct Target {
    /// The id of the sandbox.
    pub vm_id: String,
    /// Its path in the sandbox.
    pub path: String,
    /// What happens to existing files.
    pub placement: Placement,
}

/// Sends a repository, and records what was sent.
pub async fn send(guest: &mut Guest, plan: Plan, target: Target, meter: Meter) -> Result<StoredWorkspace> {
    remove_stale_records(guest).await;
    let draft = Records::of(&target.vm_id)?.begin(&target.path)?;
    let request = Request::PutTar { directory: target.path.clone(), placement: target.placement };
    let sent = guest.call(request, move |call| {
        stream(call, &plan, &draft, meter)?;
        draft.commit(record_of(&plan, &target))
    });
    sent.await.map_err(|error| match is_in_the_way(&error) {
        true => error.with_hint("`--guest-path PATH` chooses another path."),
        false => error,
    })
}

/// Returns whether a repository was not sent because its path in the sandbox is taken.
pub fn is_in_the_way(error: &Error) -> bool {
    match error {
        Error::Guest(failure) => failure.kind == FailureKind::AlreadyExists,
        Error::WithHint { error, .. } => is_in_the_way(error),
        _ => false,
    }
}

/// Removes the records of deleted sandboxes. A failure to list sandboxes does not matter.
async fn remove_stale_records(guest: &Guest) {
    if let Ok(sandboxes) = guest.bus().objects(VM_INTERFACE).await {
        let ids: Vec<String> = sandboxes.iter().map(|sandbox| sandbox.text("Id").to_owned()).collect();
        remove_all_except(&ids, guest.bus().server());
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
        setup: Setup::default(),
        fetched_to: None,
        sent_at: age::now(),
    }
}

fn stream(call: &mut Call, plan: &Plan, draft: &Draft, meter: Meter) -> Result<()> {
    let snapshot = draft.snapshot(plan.repository.algorithm)?;
    save_exclude(plan, draft)?;
    let metadata = match plan.wanted.mode {
        Mode::Shallow => Some(Metadata::take(plan, &plan.index, &snapshot)?),
        Mode::FullCopy => None,
    };
    let known = metadata.as_ref().map(|metadata| metadata.ids.clone()).unwrap_or_default();
    let mut archive = Builder::new(BufWriter::with_capacity(MAX_DATA, &mut *call));
    let mut sender = Sender::new(plan, &snapshot, known)?.with_meter(meter);
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

/// Records the repository's exclude list, which is needed again when work comes back.
fn save_exclude(plan: &Plan, draft: &Draft) -> Result<()> {
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
    Error::Refused(format!("the repository does not have the content of {}", DisplayPath(path)))
        .with_hint("`git fetch --refetch --no-filter` completes a partial clone.")
}

/// Describes in a few words what is sent.
pub fn summary(files: usize, bytes: u64, path: &str) -> String {
    format!("{}, {}, to {path}", counted(files, "file"), Bytes(bytes))
}
