//! Putting what came from a sandbox into the user's work tree, or on a branch of its own.
//!
//! Everything is decided and written beside the files first; only then do files take their places. What was
//! changed on both sides is merged line by line, and where that does not go nothing at all is touched.

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
    changed::Differing,
    export::{CAME, Difference, Range, parse_tree, some_of},
    files::{Found, Root, is_proper},
    git::Git,
    record::{Kept, shell_word},
    snapshot::{Change, Content, Contents, Importer, SENT, Snapshot},
    source::{PROGRAM, Repository, SYMLINK, Shown, os},
};
use crate::error::{Error, Result};

/// What to do about changes of both sides.
const MERGE: &str = "`banger vm workspace export NAME --apply --merge` merges the work into them; `banger vm \
    workspace export NAME --branch from-sandbox` puts it on a new branch.";
const CONFLICT: &str = "nothing was touched: `banger vm workspace export NAME --branch from-sandbox` puts \
    the work on a new branch, which git can merge; `-o work.patch` instead writes a patch.";

/// What becomes of a work tree with changes that are neither sent nor committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dirty {
    /// It is left alone.
    Refuse,
    /// What came is merged into it.
    Merge,
}

/// What is done to a file.
enum Step {
    Put { path: Vec<u8>, staged: PathBuf },
    Remove { path: Vec<u8> },
}

/// Puts what came into the work tree of the repository that the workspace came from. Returns what changed.
///
/// Changes that were sent are in what came: they are in nobody's way, whether they are committed or not.
pub fn to_work_tree(kept: &Kept, dirty: Dirty) -> Result<Vec<Difference>> {
    let repository = Repository::open(&kept.record.source)?;
    let differences = proper(Range::new(kept, None)?.differences()?)?;
    if dirty == Dirty::Refuse
        && let Some(path) = Differing::find(kept)?.first_uncommitted(&repository)?
    {
        let root = repository.root.display();
        return Err(Error::Refused(format!(
            "cannot apply the work to {root}: it has changes that were neither sent nor committed, as in {}",
            Shown(&path)
        ))
        .advise(MERGE));
    }
    let root = Root::open(&repository.root)?;
    let beside = place_beside(&repository);
    let staging = tempfile::Builder::new()
        .prefix(".banger-")
        .tempdir_in(beside)
        .map_err(|source| Error::io(format!("write to {}", beside.display()), source))?;
    let snapshot = kept.snapshot();
    let steps =
        Planner { root: &root, snapshot: &snapshot, staging: staging.path(), differences: &differences }
            .plan()?;
    perform(&root, &steps)?;
    advance(&snapshot)?;
    Ok(differences)
}

/// Where files wait from which they are moved into the work tree: a directory on the same file system.
fn place_beside(repository: &Repository) -> &Path {
    let device = |path: &Path| path.metadata().map(|found| found.dev()).ok();
    let same = device(&repository.git_dir) == device(&repository.root);
    if same { &repository.git_dir } else { &repository.root }
}

/// From now on both sides have what came.
fn advance(snapshot: &Snapshot) -> Result<()> {
    snapshot.git().run(&["update-ref", SENT, CAME], b"").map(drop)
}

/// Makes a branch with one commit: what came, on top of the commit that was sent.
pub fn to_branch(kept: &Kept, branch: &str, message: &str) -> Result<Vec<Difference>> {
    let repository = Repository::open(&kept.record.source)?;
    let git = repository.git();
    let name = format!("refs/heads/{branch}");
    if branch.starts_with('-') || git.line(&["check-ref-format", "--branch", branch])?.is_none() {
        return Err(Error::Refused(format!("{branch} is not a valid name for a branch")));
    }
    if git.line(&["rev-parse", "-q", "--verify", &name])?.is_some() {
        return Err(Error::Refused(format!("the branch {branch} already exists"))
            .advise("choose another name, or delete it with `git branch -D`."));
    }
    let identity = git.line(&["var", "GIT_COMMITTER_IDENT"])?.ok_or_else(|| {
        Error::Refused("cannot commit: git does not know your name and address".to_owned()).advise(
            "`git config --global user.name NAME` and `git config --global user.email ADDRESS` set them.",
        )
    })?;
    let mut differences = proper(Range::new(kept, None)?.differences()?)?;
    if let Some(commit) = &kept.record.commit {
        let there = parse_tree(&git.run(&["ls-tree", "-r", "-z", "--full-tree", commit], b"")?)?;
        differences.retain(|one| there.get(&one.path) != one.new.as_ref());
    }
    if differences.is_empty() {
        return Err(Error::Refused(format!(
            "there is nothing to commit on {branch}: the sandbox has no new changes"
        ))
        .advise(format!(
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

/// A name that no work tree of the user's may have is no reason to go on.
fn proper(differences: Vec<Difference>) -> Result<Vec<Difference>> {
    match differences.iter().find(|one| !is_proper(&one.path)) {
        Some(one) => Err(Error::Refused(format!(
            "cannot take the file {} from the sandbox: a work tree cannot have that name",
            Shown(&one.path)
        ))),
        None => Ok(differences),
    }
}

/// How a merge has ended.
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
    /// Decides what to do, and writes beside the files what is to take their places.
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
            some_of(&conflicts)
        ))
        .advise(CONFLICT))
    }

    fn current(&self, path: &[u8]) -> Result<Option<(u32, String)>> {
        self.root
            .digest(path, self.snapshot.algorithm)
            .map_err(|source| Error::io(format!("read {}", Shown(path)), source))
    }

    fn permissions(&self, path: &[u8]) -> Result<Option<u32>> {
        match self.root.look(path).map_err(|source| Error::io(format!("read {}", Shown(path)), source))? {
            Some(Found::File(_, facts)) => Ok(Some(facts.permissions & 0o777)),
            _ => Ok(None),
        }
    }

    /// Whether a file can stand at this path once those that go are gone.
    fn has_room(&self, path: &[u8], removed: &HashSet<&[u8]>) -> Result<bool> {
        let look = |path: &[u8]| {
            self.root.look(path).map_err(|source| Error::io(format!("read {}", Shown(path)), source))
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

    /// Merges two texts that both come from what was sent.
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
        let failed = |source| Error::io(format!("merge {}", Shown(&one.path)), source);
        let side = |name: &str| staged.with_extension(name);
        fs::write(side("old"), contents.bytes(old)?).map_err(failed)?;
        fs::write(side("new"), contents.bytes(&new.1)?).map_err(failed)?;
        let Some(Found::File(mut file, _)) = self.root.look(&one.path).map_err(failed)? else {
            return Ok(Merged::Conflict);
        };
        let mut ours = File::create(side("ours")).map_err(failed)?;
        io::copy(&mut file, &mut ours).map_err(failed)?;
        let names = [side("ours"), side("old"), side("new")];
        let words: Vec<std::ffi::OsString> = ["merge-file", "-p", "-q"]
            .iter()
            .map(Into::into)
            .chain(names.map(PathBuf::into_os_string))
            .collect();
        let merged = Git::within(self.staging).output(&words, b"")?;
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

/// A new file gets what the user's umask leaves; one that was there keeps its permissions, but for whether it can
/// be run.
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

/// Puts everything in its place. What goes makes room first.
fn perform(root: &Root, steps: &[Step]) -> Result<()> {
    for step in steps {
        if let Step::Remove { path } = step {
            remove(root, os(path)).map_err(|source| Error::io(format!("remove {}", Shown(path)), source))?;
        }
    }
    for step in steps {
        if let Step::Put { path, staged, .. } = step {
            put(root, os(path), staged)
                .map_err(|source| Error::io(format!("write {}", Shown(path)), source))?;
        }
    }
    Ok(())
}

fn parent_of(root: &Root, path: &Path) -> io::Result<Option<OwnedFd>> {
    root.open_below(path.parent().unwrap_or(Path::new("")), OFlags::PATH | OFlags::DIRECTORY)
}

/// Removes a file, and the directories that are empty then.
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
    // An empty directory of what has gone may stand there.
    match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(renameat(rustix::fs::CWD, staged, &parent, name)?)
}
