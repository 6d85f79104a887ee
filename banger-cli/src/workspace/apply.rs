//! Applies the changes of a sandbox to the user's work tree, or commits them to a new branch.
//!
//! Everything is planned and written to temporary files first; only then are files replaced. Files that have changed
//! on both sides are merged line by line, and if that fails, nothing changes at all.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, mkdirat, renameat, unlinkat},
    io::Errno,
};

use super::{
    changed::ChangedFiles,
    commits::check_new_branch,
    export::{Difference, FETCHED, Range, first_names, parse_tree},
    files::{Found, Root, is_safe_name},
    git::Git,
    record::{StoredWorkspace, shell_word},
    snapshot::{Change, Content, Contents, Importer, SENT, Snapshot},
    source::{DisplayPath, PROGRAM, Repository, SYMLINK, os},
    stop::to_the_end,
};
use crate::error::{Error, Result};

/// Hints about changes on both sides.
const MERGE_HINT: &str = "`banger vm workspace export NAME --apply --merge` merges the work into them; `banger vm \
    workspace export NAME --branch from-sandbox` puts it on a new branch.";
const CONFLICT_HINT: &str = "nothing was touched: `banger vm workspace export NAME --branch from-sandbox` puts \
    the work on a new branch, which git can merge; `-o work.patch` instead writes a patch.";

/// What to do with a work tree that has changes that are neither sent nor committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dirty {
    /// Refuse to apply.
    Refuse,
    /// Merge into it.
    Merge,
}

/// One step of applying changes.
enum Step {
    Put { path: Vec<u8>, staged: PathBuf },
    Remove { path: Vec<u8> },
}

/// Applies the changes to the work tree of the workspace. Returns what changed.
///
/// Changes that were sent are part of what came back, so they do not conflict, whether they are committed or not.
pub fn to_work_tree(kept: &StoredWorkspace, dirty: Dirty) -> Result<Vec<Difference>> {
    let repository = sent_from(kept)?;
    let differences = drop_unsafe_names(Range::new(kept, None)?.differences()?)?;
    if dirty == Dirty::Refuse
        && let Some(path) = ChangedFiles::find(kept)?.first_uncommitted(&repository)?
    {
        let root = repository.root.display();
        return Err(Error::Refused(format!(
            "cannot apply the work to {root}: it has changes that were neither sent nor committed, as in {}",
            DisplayPath(&path)
        ))
        .with_hint(MERGE_HINT));
    }
    let root = Root::open(&repository.root)?;
    let beside = staging_directory(&repository);
    let staging = tempfile::Builder::new()
        .prefix(".banger-")
        .tempdir_in(beside)
        .map_err(|source| Error::io(format!("write to {}", beside.display()), source))?;
    let snapshot = kept.snapshot();
    let steps =
        Planner { root: &root, snapshot: &snapshot, staging: staging.path(), differences: &differences }
            .plan()?;
    to_the_end(|| perform(&root, &steps).and_then(|()| advance(&snapshot)))?;
    Ok(differences)
}

/// Opens the repository that was sent. Another one that git finds at its path now is refused.
pub(super) fn sent_from(kept: &StoredWorkspace) -> Result<Repository> {
    let source = &kept.record.source;
    let repository = Repository::open(source)?;
    match repository.root == *source {
        true => Ok(repository),
        false => Err(Error::Refused(format!(
            "cannot apply the work to {}: its work tree is now {}",
            source.display(),
            repository.root.display()
        ))),
    }
}

/// Returns a directory for temporary files, on the same file system as the work tree.
fn staging_directory(repository: &Repository) -> &Path {
    let device = |path: &Path| path.metadata().map(|found| found.dev()).ok();
    let same = device(&repository.git_dir) == device(&repository.root);
    if same { &repository.git_dir } else { &repository.root }
}

/// Records that both sides now have the changes.
fn advance(snapshot: &Snapshot) -> Result<()> {
    snapshot.git().run(&["update-ref", SENT, FETCHED], b"").map(drop)
}

/// Creates a branch with one commit: the changes, on top of the commit that was sent.
pub fn to_branch(kept: &StoredWorkspace, branch: &str, message: &str) -> Result<Vec<Difference>> {
    let repository = sent_from(kept)?;
    let git = repository.git();
    let name = format!("refs/heads/{branch}");
    check_new_branch(&git, branch)?;
    let identity = git.line(&["var", "GIT_COMMITTER_IDENT"])?.ok_or_else(|| {
        Error::Refused("cannot commit: git does not know your name and address".to_owned()).with_hint(
            "`git config --global user.name NAME` and `git config --global user.email ADDRESS` set them.",
        )
    })?;
    let mut differences = drop_unsafe_names(Range::new(kept, None)?.differences()?)?;
    if let Some(commit) = &kept.record.commit {
        let there = parse_tree(&git.run(&["ls-tree", "-r", "-z", "--full-tree", commit], b"")?)?;
        differences.retain(|one| there.get(&one.path) != one.new.as_ref());
    }
    if differences.is_empty() {
        return Err(Error::Refused(format!(
            "there is nothing to commit on {branch}: the sandbox has no new changes"
        ))
        .with_hint(format!(
            "`git -C {} switch -c {branch}` creates the branch from your work tree.",
            shell_word(&repository.root.display().to_string())
        )));
    }
    let mut contents = kept.snapshot().contents()?;
    let mut running = Importer::of(&git, &[])?;
    let mut changes = Vec::new();
    for Difference { new, path, .. } in &differences {
        changes.push(match new {
            None => Change::Remove { path: path.clone() },
            Some((mode, id)) => {
                let content: Content = contents.read(id, |size, mut from| running.blob(size, &mut from))?;
                Change::Put { mode: *mode, content, path: path.clone() }
            }
        });
    }
    contents.end()?;
    let message = format!("{message}\n");
    let mut head = format!("commit {name}\ncommitter ").into_bytes();
    head.extend(identity);
    head.extend(format!("\ndata {}\n{message}", message.len()).bytes());
    running.write(&head)?;
    if let Some(commit) = &kept.record.commit {
        running.write(format!("from {commit}\n").as_bytes())?;
    }
    running.apply(&changes)?;
    running.end()?;
    Ok(differences)
}

/// Drops changes to names that are not allowed in the user's work tree, without failing.
fn drop_unsafe_names(differences: Vec<Difference>) -> Result<Vec<Difference>> {
    match differences.iter().find(|one| !is_safe_name(&one.path)) {
        Some(one) => Err(Error::Refused(format!(
            "cannot take the file {} from the sandbox: a work tree cannot have that name",
            DisplayPath(&one.path)
        ))),
        None => Ok(differences),
    }
}

/// The result of a merge.
enum Merged {
    Clean,
    Conflict,
}

struct Planner<'a> {
    root: &'a Root,
    snapshot: &'a Snapshot,
    staging: &'a Path,
    differences: &'a [Difference],
}

impl Planner<'_> {
    /// Plans the steps, and writes new files to temporary ones.
    fn plan(&self) -> Result<Vec<Step>> {
        let mut contents = self.snapshot.contents()?;
        let removed: HashSet<&[u8]> =
            self.differences.iter().filter(|one| one.new.is_none()).map(|one| one.path.as_slice()).collect();
        let (mut steps, mut conflicts) = (Vec::new(), Vec::new());
        for (number, one) in self.differences.iter().enumerate() {
            let current = self.current(&one.path)?;
            if current == one.new {
                continue;
            }
            if one.new.is_some() && !self.has_room(&one.path, &removed)? {
                conflicts.push(one.path.clone());
                continue;
            }
            let staged = self.staging.join(number.to_string());
            let permissions = self.permissions(&one.path)?;
            match (&one.new, current == one.old) {
                (None, true) => steps.push(Step::Remove { path: one.path.clone() }),
                (Some((mode, id)), true) => {
                    write_staged(&staged, *mode, permissions, &mut contents, id)?;
                    steps.push(Step::Put { path: one.path.clone(), staged });
                }
                (Some(new), false) => match self.merge(one, current.as_ref(), new, &staged, &mut contents)? {
                    Merged::Clean => steps.push(Step::Put { path: one.path.clone(), staged }),
                    Merged::Conflict => conflicts.push(one.path.clone()),
                },
                (None, false) => conflicts.push(one.path.clone()),
            }
        }
        contents.end()?;
        if conflicts.is_empty() {
            return Ok(steps);
        }
        Err(Error::Refused(format!(
            "cannot merge files that were changed on the host and in the sandbox in different ways: {}",
            first_names(&conflicts)
        ))
        .with_hint(CONFLICT_HINT))
    }

    fn current(&self, path: &[u8]) -> Result<Option<(u32, String)>> {
        self.root
            .digest(path, self.snapshot.algorithm)
            .map_err(|source| Error::io(format!("read {}", DisplayPath(path)), source))
    }

    fn permissions(&self, path: &[u8]) -> Result<Option<u32>> {
        match self
            .root
            .look(path)
            .map_err(|source| Error::io(format!("read {}", DisplayPath(path)), source))?
        {
            Some(Found::File(_, facts)) => Ok(Some(facts.permissions & 0o777)),
            _ => Ok(None),
        }
    }

    /// Returns whether a file can exist at this path once others are removed.
    fn has_room(&self, path: &[u8], removed: &HashSet<&[u8]>) -> Result<bool> {
        let look = |path: &[u8]| {
            self.root.look(path).map_err(|source| Error::io(format!("read {}", DisplayPath(path)), source))
        };
        for parent in os(path).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            let parent = parent.as_os_str().as_bytes();
            match look(parent)? {
                Some(Found::File(..) | Found::Symlink(..)) if !removed.contains(parent) => return Ok(false),
                _ => {}
            }
        }
        Ok(match look(path)? {
            Some(Found::Other(rustix::fs::FileType::Directory)) => self.will_be_empty(os(path), removed),
            Some(Found::Other(_)) => false,
            _ => true,
        })
    }

    fn will_be_empty(&self, directory: &Path, removed: &HashSet<&[u8]>) -> bool {
        let Ok(entries) = fs::read_dir(self.root.path.join(directory)) else { return false };
        entries.flatten().all(|entry| {
            let name = directory.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.will_be_empty(&name, removed),
                _ => removed.contains(name.as_os_str().as_bytes()),
            }
        })
    }

    /// Merges two texts that are both based on what was sent.
    fn merge(
        &self,
        one: &Difference,
        current: Option<&(u32, String)>,
        new: &(u32, String),
        staged: &Path,
        contents: &mut Contents,
    ) -> Result<Merged> {
        let (Some((old_mode, old)), Some((current_mode, _))) = (&one.old, current) else {
            return Ok(Merged::Conflict);
        };
        if [old_mode, current_mode, &new.0].contains(&&SYMLINK) {
            return Ok(Merged::Conflict);
        }
        let failed = |source| Error::io(format!("merge {}", DisplayPath(&one.path)), source);
        let side = |name: &str| staged.with_extension(name);
        fs::write(side("old"), contents.bytes(old)?).map_err(failed)?;
        fs::write(side("new"), contents.bytes(&new.1)?).map_err(failed)?;
        let Some(Found::File(mut file, _)) = self.root.look(&one.path).map_err(failed)? else {
            return Ok(Merged::Conflict);
        };
        let mut ours = File::create(side("ours")).map_err(failed)?;
        io::copy(&mut file, &mut ours).map_err(failed)?;
        let names = [side("ours"), side("old"), side("new")];
        let arguments: Vec<std::ffi::OsString> = ["merge-file", "-p", "-q"]
            .iter()
            .map(Into::into)
            .chain(names.map(PathBuf::into_os_string))
            .collect();
        let merged = Git::within(self.staging).output(&arguments, b"")?;
        if merged.status.code() != Some(0) {
            return Ok(Merged::Conflict);
        }
        let mode = if new.0 == *old_mode { *current_mode } else { new.0 };
        create(staged, mode, self.permissions(&one.path)?)
            .and_then(|mut file| file.write_all(&merged.stdout))
            .map_err(failed)?;
        Ok(Merged::Clean)
    }
}

fn write_staged(
    staged: &Path,
    mode: u32,
    permissions: Option<u32>,
    contents: &mut Contents,
    id: &str,
) -> Result<()> {
    let failed = |source| Error::io("write a file from the sandbox", source);
    if mode == SYMLINK {
        let target = contents.bytes(id)?;
        return symlink(os(&target), staged).map_err(failed);
    }
    let mut file = create(staged, mode, permissions).map_err(failed)?;
    contents.read(id, |_, content| io::copy(content, &mut file).map(drop).map_err(failed))
}

/// Creates a file. A new file gets the permissions that the umask allows; a replaced one keeps its permissions,
/// except for the executable bit.
fn create(path: &Path, mode: u32, permissions: Option<u32>) -> io::Result<File> {
    let new = if mode == PROGRAM { 0o777 } else { 0o666 };
    let file = OpenOptions::new().write(true).create_new(true).mode(new).open(path)?;
    if let Some(old) = permissions {
        let run = (old & 0o444) >> 2;
        let permissions = if mode == PROGRAM { old | run } else { old & !0o111 };
        file.set_permissions(fs::Permissions::from_mode(permissions))?;
    }
    Ok(file)
}

/// Performs the steps, removals first, because they make room.
fn perform(root: &Root, steps: &[Step]) -> Result<()> {
    for step in steps {
        if let Step::Remove { path } = step {
            remove(root, os(path))
                .map_err(|source| Error::io(format!("remove {}", DisplayPath(path)), source))?;
        }
    }
    for step in steps {
        if let Step::Put { path, staged, .. } = step {
            put(root, os(path), staged)
                .map_err(|source| Error::io(format!("write {}", DisplayPath(path)), source))?;
        }
    }
    Ok(())
}

fn parent_of(root: &Root, path: &Path) -> io::Result<Option<OwnedFd>> {
    root.open_below(path.parent().unwrap_or(Path::new("")), OFlags::PATH | OFlags::DIRECTORY)
}

/// Removes a file, and the directories that become empty.
fn remove(root: &Root, path: &Path) -> io::Result<()> {
    let mut flags = AtFlags::empty();
    for path in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        let (Some(parent), Some(name)) = (parent_of(root, path)?, path.file_name()) else { return Ok(()) };
        match unlinkat(&parent, name, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if flags == AtFlags::REMOVEDIR => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        flags = AtFlags::REMOVEDIR;
    }
    Ok(())
}

fn put(root: &Root, path: &Path, staged: &Path) -> io::Result<()> {
    let mut parents: Vec<&Path> =
        path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
    parents.reverse();
    for directory in parents {
        let (Some(parent), Some(name)) = (parent_of(root, directory)?, directory.file_name()) else {
            continue;
        };
        match mkdirat(&parent, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (Some(parent), Some(name)) = (parent_of(root, path)?, path.file_name()) else {
        return Err(io::ErrorKind::NotADirectory.into());
    };
    // An empty directory may be left at this path.
    match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(renameat(rustix::fs::CWD, staged, &parent, name)?)
}
