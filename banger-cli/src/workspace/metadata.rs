//! The `.git` of a workspace in a sandbox: made here, so that the image needs no git for it. It has the commit
//! that is checked out, its files, and nothing of the history before; the index is the user's.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Write,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use banger_proto::guest::message::Algorithm;
use tar::{Builder, EntryType};

use super::{
    files::{Exactly, Found, Root},
    prepare::{Plan, Planned},
    sender::{Sent, append_link, cannot_read, header},
    snapshot::Snapshot,
    source::{Head, Repository, SUBMODULE, Shown, Tracked, os},
    untracked,
};
use crate::{
    age,
    error::{Error, Result},
    guest::from_io,
};

/// Settings of the user that make git in the sandbox see the files as git does here.
const SETTINGS: [&str; 7] = [
    "core.autocrlf",
    "core.eol",
    "core.safecrlf",
    "core.fileMode",
    "core.precomposeUnicode",
    "user.name",
    "user.email",
];

/// What becomes the metadata.
#[derive(Debug)]
pub struct Metadata {
    head: Head,
    /// The commits whose parents stay here.
    shallow: Vec<String>,
    /// The beginning of the names of the pack's files.
    pack: Option<PathBuf>,
    /// All objects that go along.
    pub ids: HashSet<String>,
    /// Where the index is made.
    index: PathBuf,
}

impl Metadata {
    /// Takes the objects from the repository into the snapshot, from where they are sent.
    pub fn take(plan: &Plan, index: &[Tracked], snapshot: &Snapshot) -> Result<Self> {
        let git = plan.repository.git();
        let mut ids = HashSet::new();
        let mut shallow = Vec::new();
        for commit in plan.head.commit.iter().chain(&plan.unfinished.commits) {
            let trees = git.run(&["ls-tree", "-r", "-t", "-z", "--full-tree", commit], b"")?;
            for entry in trees.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
                let fields = entry.split(|byte| matches!(byte, b' ' | b'\t')).take(3).collect::<Vec<_>>();
                if let [_, kind, id] = fields[..]
                    && kind != b"commit"
                {
                    ids.insert(String::from_utf8_lossy(id).into_owned());
                }
            }
            let tree = git.run(&["rev-parse", &format!("{commit}^{{tree}}")], b"")?;
            ids.extend([commit.clone(), String::from_utf8_lossy(&tree).trim().to_owned()]);
            let parent = format!("{commit}^1");
            // `rev-parse` looks at the commit alone; of a shallow clone it may name a parent that is not there.
            let has_parents = git.line(&["rev-parse", "-q", "--verify", &parent])?.is_some()
                || git
                    .run(&["cat-file", "commit", commit], b"")?
                    .split(|byte| *byte == b'\n')
                    .take_while(|line| !line.is_empty())
                    .any(|line| line.starts_with(b"parent "));
            if has_parents && !shallow.contains(commit) {
                shallow.push(commit.clone());
            }
        }
        // What is staged and not yet committed, as far as it is there: a file that is only meant to be added is not.
        let staged: Vec<&str> = index
            .iter()
            .filter(|entry| entry.mode != SUBMODULE && !ids.contains(&entry.id))
            .map(|entry| entry.id.as_str())
            .collect();
        if !staged.is_empty() {
            let told = git.run(&["cat-file", "--batch-check"], (staged.join("\n") + "\n").as_bytes())?;
            let told = String::from_utf8_lossy(&told).into_owned();
            let there = told.lines().filter(|line| !line.ends_with(" missing"));
            ids.extend(there.filter_map(|line| line.split(' ').next()).map(str::to_owned));
        }
        let pack = snapshot.take(&git, &ids)?;
        Ok(Self { head: plan.head.clone(), shallow, pack, ids, index: snapshot.path.join("index.sent") })
    }

    /// Adds the metadata to an archive whose files have been sent.
    pub fn append(
        &self,
        archive: &mut Builder<impl Write>,
        plan: &Plan,
        index: &[Tracked],
        sent: &Sent,
    ) -> Result<()> {
        let repository = &plan.repository;
        for directory in ["", "objects/info", "objects/pack", "refs/heads", "refs/tags", "info"] {
            let mut head = header(0o755, 0, now());
            head.set_entry_type(EntryType::Directory);
            archive.append_data(&mut head, Path::new(".git").join(directory), &[][..]).map_err(from_io)?;
        }
        let mut put = |name: &str, content: &[u8]| {
            let mut head = header(0o644, content.len() as u64, now());
            archive.append_data(&mut head, Path::new(".git").join(name), content).map_err(from_io)
        };
        let commit = self.head.commit.as_deref();
        match (&self.head.branch, commit) {
            (Some(branch), _) => put("HEAD", format!("ref: {branch}\n").as_bytes())?,
            (None, Some(commit)) => put("HEAD", format!("{commit}\n").as_bytes())?,
            (None, None) => put("HEAD", b"ref: refs/heads/main\n")?,
        }
        if let (Some(branch), Some(commit)) = (&self.head.branch, commit) {
            put(branch, format!("{commit}\n").as_bytes())?;
        }
        if !self.shallow.is_empty() {
            put("shallow", format!("{}\n", self.shallow.join("\n")).as_bytes())?;
        }
        for (name, content) in &plan.unfinished.files {
            put(name, content)?;
        }
        put("config", config(repository)?.as_bytes())?;
        let mut exclude = exclude(repository)?.unwrap_or_default();
        if !exclude.is_empty() && !exclude.ends_with(b"\n") {
            exclude.push(b'\n');
        }
        exclude.extend(untracked::ignore_lines(plan.private.iter()));
        if !exclude.is_empty() {
            put("info/exclude", &exclude)?;
        }
        put("index", &self.make_index(repository, index, sent)?)?;
        if let Some(pack) = &self.pack {
            for suffix in ["pack", "idx"] {
                let path = pack.with_added_extension(suffix);
                let failed = |source| Error::io(format!("read {}", path.display()), source);
                let file = File::open(&path).map_err(failed)?;
                let size = file.metadata().map_err(failed)?.len();
                let name = Path::new(".git/objects/pack").join(path.file_name().unwrap_or_default());
                let mut head = header(0o444, size, now());
                archive.append_data(&mut head, name, Exactly::new(file, size)).map_err(from_io)?;
            }
        }
        Ok(())
    }

    /// The user's index, without what it knows of the user's files. Files that git here takes for unchanged
    /// though their bytes are not those of the index went through a filter, which the sandbox does not have:
    /// git there is told to take them for unchanged, too.
    fn make_index(&self, repository: &Repository, index: &[Tracked], sent: &Sent) -> Result<Vec<u8>> {
        let failed = |source| Error::io("create the git index", source);
        let git = super::git::Git::bare(&self.pack_repository())
            .with_work_tree(&repository.root)
            .with_index(&self.index);
        let mut lines = Vec::new();
        for entry in index.iter().filter(|entry| self.ids.contains(&entry.id)) {
            lines.extend(format!("{:o} {} {}\t", entry.mode, entry.id, entry.stage).bytes());
            lines.extend(&entry.path);
            lines.push(0);
        }
        let _ = fs::remove_file(&self.index);
        git.run(&["read-tree", "--empty"], b"")?;
        git.run(&["update-index", "-z", "--index-info"], &lines)?;
        let mark = |flag: &str, wanted: &dyn Fn(&Tracked) -> bool| {
            let paths: Vec<u8> = index
                .iter()
                .filter(|entry| entry.stage == 0 && self.ids.contains(&entry.id) && wanted(entry))
                .flat_map(|entry| entry.path.iter().copied().chain([0]))
                .collect();
            match paths.is_empty() {
                true => Ok(()),
                false => git.run(&["update-index", flag, "-z", "--stdin"], &paths).map(drop),
            }
        };
        mark("--skip-worktree", &|entry| entry.skipped && !sent.contains_key(&entry.path))?;
        let root = Root::open(&repository.root)?;
        mark("--assume-unchanged", &|entry| {
            sent.get(&entry.path).is_some_and(|(_, id)| *id != entry.id) && is_filtered(&root, entry)
        })?;
        fs::read(&self.index).map_err(failed)
    }

    fn pack_repository(&self) -> PathBuf {
        self.index.parent().unwrap_or(Path::new("/")).to_owned()
    }
}

/// Whether git takes this file for what the index has: it has not been touched since git looked at it.
pub fn is_filtered(root: &Root, entry: &Tracked) -> bool {
    match root.look(&entry.path) {
        Ok(Some(Found::File(_, facts))) => entry.stat.mtime != (0, 0) && facts.stat == entry.stat,
        _ => false,
    }
}

fn now() -> i64 {
    (age::now() / 1_000_000) as i64
}

fn config(repository: &Repository) -> Result<String> {
    let version = match repository.algorithm {
        Algorithm::Sha1 => "\trepositoryformatversion = 0\n",
        Algorithm::Sha256 => "\trepositoryformatversion = 1\n[extensions]\n\tobjectFormat = sha256\n[core]\n",
    };
    let mut text = format!("[core]\n{version}\tbare = false\n\tlogAllRefUpdates = true\n");
    for setting in SETTINGS {
        let value = repository.git().line(&["config", "--get", setting])?;
        if let (Some(value), Some((section, name))) = (value, setting.split_once('.')) {
            let value = String::from_utf8_lossy(&value).replace('\\', "\\\\").replace('"', "\\\"");
            text.push_str(&format!("[{section}]\n\t{name} = \"{}\"\n", value.replace('\n', "\\n")));
        }
    }
    Ok(text)
}

fn exclude(repository: &Repository) -> Result<Option<Vec<u8>>> {
    let Some(path) = repository.git().line(&["rev-parse", "--git-path", "info/exclude"])? else {
        return Ok(None);
    };
    Ok(fs::read(repository.root.join(os(&path))).ok())
}

/// A full copy needs all of the metadata in one place.
pub fn check_full_copy(repository: &Repository) -> Result<()> {
    if repository.git_dir == repository.root.join(".git") && repository.git_dir.is_dir() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "cannot copy {} in full: it is a linked work tree",
        repository.root.display()
    ))
    .advise("run it from the main work tree, which `git worktree list` shows first."))
}

/// Adds all of `.git`, and what leads to it from submodules, to an archive.
pub fn append_full_copy(
    archive: &mut Builder<impl Write>,
    repository: &Repository,
    files: &[Planned],
) -> Result<()> {
    let root = Root::open(&repository.root)?;
    let mut places = HashSet::new();
    for file in files {
        places.extend(os(&file.path).ancestors().skip(1).filter(|place| !place.as_os_str().is_empty()));
    }
    for place in places {
        let name = place.join(".git");
        if let Ok(Some(Found::File(..))) = root.look(name.as_os_str().as_bytes()) {
            append(archive, &root, &name)?;
        }
    }
    let mut waiting = vec![PathBuf::from(".git")];
    while let Some(place) = waiting.pop() {
        let failed = |source| Error::io(format!("read {}", repository.root.join(&place).display()), source);
        let mut head = header(0o755, 0, now());
        head.set_entry_type(EntryType::Directory);
        archive.append_data(&mut head, &place, &[][..]).map_err(from_io)?;
        for entry in fs::read_dir(repository.root.join(&place)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = place.join(entry.file_name());
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                waiting.push(name);
            } else if name.extension().is_none_or(|extension| extension != "lock") {
                append(archive, &root, &name)?;
            }
        }
    }
    Ok(())
}

fn append(archive: &mut Builder<impl Write>, root: &Root, name: &Path) -> Result<()> {
    let path = name.as_os_str().as_bytes();
    match root.look(path).map_err(|source| cannot_read(path, source))? {
        Some(Found::File(file, facts)) => {
            let size = file.metadata().map(|found| found.size()).unwrap_or(facts.size);
            let mut head = header(facts.permissions & 0o777, size, facts.stat.mtime.0);
            archive.append_data(&mut head, name, Exactly::new(file, size)).map_err(|error| {
                let error = from_io(error);
                match error {
                    Error::Io { .. } => Error::Refused(format!("{} changed while it was read", Shown(path))),
                    error => error,
                }
            })
        }
        Some(Found::Symlink(target, facts)) => append_link(archive, path, &target, facts.stat.mtime.0),
        Some(Found::Other(_)) | None => Ok(()),
    }
}
