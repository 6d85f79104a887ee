//! Builds the `.git` of a workspace on the host, so that the image needs no git for it. It contains the checked-out
//! commit with its files and no history before; the index is the user's.

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
    source::{DisplayPath, Head, Repository, SUBMODULE, Tracked, os},
    untracked,
};
use crate::{
    error::{Error, Result},
    guest::agent::from_io,
    ui::age,
};

/// Settings of the user that make git in the sandbox treat files as on the host.
const SETTINGS: [&str; 7] = [
    "core.autocrlf",
    "core.eol",
    "core.safecrlf",
    "core.fileMode",
    "core.precomposeUnicode",
    "user.name",
    "user.email",
];

/// The contents of `.git`.
#[derive(Debug)]
pub struct Metadata {
    head: Head,
    /// The commits whose parents are not sent.
    shallow: Vec<String>,
    /// Path prefix of the pack's files.
    pack: Option<PathBuf>,
    /// The objects that are sent.
    pub ids: HashSet<String>,
    /// Where the index is built.
    index: PathBuf,
}

impl Metadata {
    /// Copies the objects from the repository into the snapshot, from which they are sent.
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
            // `rev-parse` reads the commit only; in a shallow clone it may name a missing parent.
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
        // Staged contents, if they exist: `git add --intent-to-add` creates none.
        let staged: Vec<&str> = index
            .iter()
            .filter(|entry| entry.mode != SUBMODULE && !ids.contains(&entry.id))
            .map(|entry| entry.id.as_str())
            .collect();
        if !staged.is_empty() {
            let output = git.run(&["cat-file", "--batch-check"], (staged.join("\n") + "\n").as_bytes())?;
            let output = String::from_utf8_lossy(&output).into_owned();
            let existing = output.lines().filter(|line| !line.ends_with(" missing"));
            ids.extend(existing.filter_map(|line| line.split(' ').next()).map(str::to_owned));
        }
        let pack = snapshot.take(git, &plan.repository.objects, &ids)?;
        Ok(Self { head: plan.head.clone(), shallow, pack, ids, index: snapshot.path.join("index.sent") })
    }

    /// Adds the metadata to an archive, after the files.
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

    /// Returns the user's index without its file attributes. A file that git considers unchanged although its bytes
    /// differ from the index went through a filter. The sandbox does not have the filter, so the file is marked
    /// `assume-unchanged` there.
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

/// Returns whether git considers a file unchanged, because it was not modified since git has read it.
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

/// Checks that all of the metadata is in one place, as a full copy needs it.
pub fn check_full_copy(repository: &Repository) -> Result<()> {
    if repository.git_dir == repository.root.join(".git") && repository.git_dir.is_dir() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "cannot copy {} in full: it is a linked work tree",
        repository.root.display()
    ))
    .with_hint("run it from the main work tree, which `git worktree list` shows first."))
}

/// Adds all of `.git`, and the `.git` files of submodules, to an archive.
pub fn append_full_copy(
    archive: &mut Builder<impl Write>,
    repository: &Repository,
    files: &[Planned],
) -> Result<()> {
    let root = Root::open(&repository.root)?;
    let mut directories = HashSet::new();
    for file in files {
        directories
            .extend(os(&file.path).ancestors().skip(1).filter(|directory| !directory.as_os_str().is_empty()));
    }
    for directory in directories {
        let name = directory.join(".git");
        if let Ok(Some(Found::File(..))) = root.look(name.as_os_str().as_bytes()) {
            append(archive, &root, &name)?;
        }
    }
    let mut waiting = vec![PathBuf::from(".git")];
    while let Some(directory) = waiting.pop() {
        let failed =
            |source| Error::io(format!("read {}", repository.root.join(&directory).display()), source);
        let mut head = header(0o755, 0, now());
        head.set_entry_type(EntryType::Directory);
        archive.append_data(&mut head, &directory, &[][..]).map_err(from_io)?;
        for entry in fs::read_dir(repository.root.join(&directory)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = directory.join(entry.file_name());
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
                    Error::Io { .. } => {
                        Error::Refused(format!("{} changed while it was read", DisplayPath(path)))
                    }
                    error => error,
                }
            })
        }
        Some(Found::Symlink(target, facts)) => append_link(archive, path, &target, facts.stat.mtime.0),
        Some(Found::Other(_)) | None => Ok(()),
    }
}
