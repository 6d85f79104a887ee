//! What this side knows of the workspaces in sandboxes: where each came from, and what was sent. It stands
//! below the user's home, because what a guest says of it cannot be believed.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use banger_proto::guest::message::Algorithm;
use serde::{Deserialize, Serialize};

use super::{snapshot::Snapshot, source::Mode, tooling::OWNER};
use crate::{
    error::{Error, Result},
    ssh::places::Places,
};

const FILE: &str = "record.json";
const SNAPSHOT: &str = "sent.git";
/// What the user's repository ignores beyond its own files.
pub const EXCLUDE: &str = "exclude";

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
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    io::Write::write_all(&mut file, &text).map_err(failed)?;
    file.persist(directory.join(FILE)).map_err(|error| failed(error.error))?;
    Ok(())
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
            from_commit: false,
            mise: false,
            user: None,
            env: BTreeMap::new(),
            sent_at,
        }
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
