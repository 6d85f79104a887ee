//! What this side knows of the workspaces in sandboxes: where each came from, and what was sent. It stands
//! below the user's home, because what a guest says of it cannot be believed.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use banger_proto::guest::message::Algorithm;
use serde::{Deserialize, Serialize};

use super::{
    export::{Tree, parse_tree, tree},
    snapshot::{SENT, Snapshot},
    source::Mode,
    tooling::OWNER,
    untracked::Include,
};
use crate::{
    error::{Error, Result},
    ssh::places::Places,
};

const FILE: &str = "record.json";
const SNAPSHOT: &str = "sent.git";
/// What the user's repository ignores beyond its own files.
pub const EXCLUDE: &str = "exclude";
/// The ignored files that were sent: modes, the names that git gives to their contents, and names.
const PRIVATE: &str = "private";

/// A workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where it is in the sandbox.
    pub guest_path: String,
    /// The top of the work tree that it came from.
    pub source: PathBuf,
    /// The branch that is checked out there.
    pub branch: Option<String>,
    /// The commit that was checked out here when it was sent.
    pub commit: Option<String>,
    /// The hash that names objects of git.
    pub algorithm: Algorithm,
    /// How much was sent.
    pub mode: Mode,
    /// Whether untracked files were sent.
    pub untracked: bool,
    /// Files that git does not track and that were named, ignored ones too.
    #[serde(default)]
    pub include: Include,
    /// Whether the files are those of a commit, not of the work tree.
    pub from_commit: bool,
    /// Whether commands are run with the tools that mise has installed.
    #[serde(default)]
    pub mise: bool,
    /// Who works there, where that is not root.
    #[serde(default)]
    pub user: Option<String>,
    /// Variables of the environment of whatever runs there.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// When it was sent last, in microseconds since the Unix epoch.
    pub sent_at: u64,
}

impl Record {
    /// Whose it is in the sandbox.
    pub fn owner(&self) -> &str {
        self.user.as_deref().unwrap_or(OWNER)
    }
}

/// The workspaces of one sandbox.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

/// A workspace and where we keep what we know of it.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The workspace.
    pub record: Record,
    /// Our directory.
    pub directory: PathBuf,
}

impl Kept {
    /// What was sent.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::open(&self.directory.join(SNAPSHOT), self.record.algorithm)
    }

    /// The ignored files that were sent.
    pub fn private(&self) -> Result<Tree> {
        let path = self.directory.join(PRIVATE);
        let list = match fs::read(&path) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Tree::new()),
            Err(source) => return Err(Error::io(format!("read {}", path.display()), source)),
        };
        parse_tree(&list)
    }

    /// All files that were sent.
    pub fn sent(&self) -> Result<Tree> {
        let snapshot = self.snapshot();
        let mut sent = tree(&snapshot, &snapshot.commit(SENT)?)?;
        sent.extend(self.private()?);
        Ok(sent)
    }

    /// Writes the record anew.
    pub fn save(&self) -> Result<()> {
        write(&self.directory, &self.record)
    }
}

/// A workspace that is being sent: it counts once it is committed, and is gone when it is dropped before.
#[derive(Debug)]
pub struct Draft {
    unfinished: tempfile::TempDir,
    place: PathBuf,
}

impl Draft {
    /// The repository of what is sent.
    pub fn snapshot(&self, algorithm: Algorithm) -> Result<Snapshot> {
        Snapshot::create(&self.directory().join(SNAPSHOT), algorithm)
    }

    /// Where its files are until then.
    pub fn directory(&self) -> &Path {
        self.unfinished.path()
    }

    /// Takes the place of what was known of a workspace at this path.
    pub fn commit(self, record: Record) -> Result<Kept> {
        write(self.unfinished.path(), &record)?;
        let failed = |source| Error::io(format!("write {}", self.place.display()), source);
        match fs::remove_dir_all(&self.place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::rename(self.unfinished.keep(), &self.place).map_err(failed)?;
        Ok(Kept { record, directory: self.place })
    }
}

fn write(directory: &Path, record: &Record) -> Result<()> {
    let failed = |source| Error::io(format!("write {}", directory.join(FILE).display()), source);
    let text = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
    write_whole(&directory.join(FILE), &text)
}

/// Writes which ignored files were sent, in the form of `git ls-tree -z`.
pub fn save_private(directory: &Path, private: &Tree) -> Result<()> {
    let mut list = Vec::new();
    for (path, (mode, id)) in private {
        list.extend(format!("{mode:06o} blob {id}\t").bytes());
        list.extend(path);
        list.push(0);
    }
    write_whole(&directory.join(PRIVATE), &list)
}

/// Writes a file that only its owner reads, and that is there as a whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::io(format!("write {}", path.display()), source);
    let mut file =
        tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
    io::Write::write_all(&mut file, bytes).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// A workspace in a command that can be typed: the sandbox, and the path where that was named.
pub fn reference(sandbox: &str, guest_path: Option<&str>) -> String {
    match guest_path {
        None => sandbox.to_owned(),
        Some(path) => format!("{sandbox} --guest-path {}", shell_word(path)),
    }
}

/// A word as a shell takes it.
pub fn shell_word(word: &str) -> String {
    match word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte)) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

impl Records {
    /// Those of the sandbox with this id.
    pub fn of(id: &str) -> Result<Self> {
        Ok(Self { directory: Places::of_caller()?.workspaces().join(id) })
    }

    /// Begins a workspace at this path.
    pub fn begin(&self, guest_path: &str) -> Result<Draft> {
        let failed = |source| Error::io(format!("write below {}", self.directory.display()), source);
        fs::create_dir_all(&self.directory).map_err(failed)?;
        let unfinished =
            tempfile::Builder::new().prefix(".coming-").tempdir_in(&self.directory).map_err(failed)?;
        let name = super::files::blob_id(Algorithm::Sha1, guest_path.as_bytes());
        Ok(Draft { unfinished, place: self.directory.join(&name[..16]) })
    }

    /// All of them, the one that was sent last in front. What cannot be read does not count.
    pub fn all(&self) -> Vec<Kept> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut all: Vec<Kept> = entries
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .filter_map(|entry| {
                let directory = entry.path();
                let record = serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()?;
                Some(Kept { record, directory })
            })
            .collect();
        all.sort_by_key(|kept| std::cmp::Reverse(kept.record.sent_at));
        all
    }

    /// The one at this path, or the one that was sent last.
    pub fn find(&self, guest_path: Option<&str>) -> Option<Kept> {
        self.all().into_iter().find(|kept| guest_path.is_none_or(|path| kept.record.guest_path == path))
    }

    /// Forgets them.
    fn forget(&self) {
        // What cannot be removed is in nobody's way.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Forgets the workspaces of sandboxes that are not there any more.
pub fn forget_all_but(ids: &[String]) {
    let Ok(places) = Places::of_caller() else { return };
    let place = places.workspaces();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !ids.iter().any(|id| name == id.as_str()) {
            Records { directory: entry.path() }.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(path: &str, sent_at: u64) -> Record {
        Record {
            guest_path: path.to_owned(),
            source: "/home/ann/repo".into(),
            branch: Some("refs/heads/main".into()),
            commit: None,
            algorithm: Algorithm::Sha1,
            mode: Mode::Shallow,
            untracked: false,
            include: Include::default(),
            from_commit: false,
            mise: false,
            user: None,
            env: BTreeMap::new(),
            sent_at,
        }
    }

    #[test]
    fn a_workspace_is_named_as_a_shell_takes_it() {
        assert_eq!(reference("web", None), "web");
        assert_eq!(reference("web", Some("/srv/x")), "web --guest-path /srv/x");
        assert_eq!(reference("web", Some("/a b'c")), r"web --guest-path '/a b'\''c'");
    }

    #[test]
    fn ignored_files_are_remembered_by_digests_alone() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept { record: record("/root/a", 1), directory: dir.path().to_owned() };
        assert_eq!(kept.private().unwrap(), Tree::new());
        let private = Tree::from([(b"a\tb\n\xff".to_vec(), (0o100644, "a".repeat(40)))]);
        save_private(dir.path(), &private).unwrap();
        assert_eq!(kept.private().unwrap(), private);
    }

    #[test]
    fn the_last_one_is_found_first_and_a_path_finds_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records { directory: dir.path().join("0123") };
        assert!(records.find(None).is_none());
        for (path, at) in [("/root/a", 1), ("/root/b", 3), ("/root/c", 2)] {
            records.begin(path).unwrap().commit(record(path, at)).unwrap();
        }
        drop(records.begin("/root/d").unwrap());
        assert_eq!(records.all().len(), 3);
        assert_eq!(records.find(None).unwrap().record.guest_path, "/root/b");
        assert_eq!(records.find(Some("/root/a")).unwrap().record, record("/root/a", 1));
        assert!(records.find(Some("/root/d")).is_none());
        records.begin("/root/a").unwrap().commit(record("/root/a", 9)).unwrap();
        assert_eq!(records.find(None).unwrap().record, record("/root/a", 9));
        assert_eq!(records.all().len(), 3);
        records.forget();
        assert!(records.all().is_empty());
    }
}
