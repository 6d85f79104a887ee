//! Records of the workspaces in sandboxes: where each came from, and what was sent. They are stored in the user's
//! home directory, because what a guest says about this cannot be trusted.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use banger_proto::guest::message::Algorithm;
use serde::{Deserialize, Serialize};

use super::{
    devcontainer::setup::Setup,
    export::{Tree, parse_tree, tree},
    snapshot::{SENT, Snapshot},
    source::Mode,
    tooling::OWNER,
    untracked::Include,
};
use crate::{
    error::{Error, Result},
    remote::{self, server::Server, trust},
    user::dirs::UserDirs,
};

const FILE: &str = "record.json";
const SNAPSHOT: &str = "sent.git";
/// The exclude list of the user's repository.
pub const EXCLUDE: &str = "exclude";
/// The ignored files that were sent: modes, object names, and names.
const PRIVATE: &str = "private";

/// A workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its path in the sandbox.
    pub guest_path: String,
    /// The top of the work tree on the host.
    pub source: PathBuf,
    /// The branch that is checked out in the sandbox.
    pub branch: Option<String>,
    /// The commit that was checked out on the host when it was sent.
    pub commit: Option<String>,
    /// The hash function of git's object names.
    pub algorithm: Algorithm,
    /// How much was sent.
    pub mode: Mode,
    /// Whether untracked files were sent.
    pub untracked: bool,
    /// Patterns of untracked files that were sent, including ignored ones.
    #[serde(default)]
    pub include: Include,
    /// Whether the files are those of a commit, and not of the work tree.
    pub from_commit: bool,
    /// Whether commands run with the tools that mise has installed.
    #[serde(default)]
    pub mise: bool,
    /// The user that works there, if not root.
    #[serde(default)]
    pub user: Option<String>,
    /// Environment variables of all commands there.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What its devcontainer.json asks for later.
    #[serde(default)]
    pub setup: Setup,
    /// What the refs begin with that its commits were fetched to.
    #[serde(default)]
    pub fetched_to: Option<String>,
    /// When it was last sent, in microseconds since the Unix epoch.
    pub sent_at: u64,
}

impl Record {
    /// Returns the owner of the files in the sandbox.
    pub fn owner(&self) -> &str {
        self.user.as_deref().unwrap_or(OWNER)
    }

    /// Returns the record with more variables, for commands that set up the workspace. It must not be saved.
    pub fn with_variables(&self, variables: &BTreeMap<String, String>) -> Self {
        let mut record = self.clone();
        record.env.extend(variables.clone());
        record
    }

    /// Returns the directory in the sandbox in which commands run.
    pub fn directory(&self) -> &str {
        self.setup.directory.as_deref().unwrap_or(&self.guest_path)
    }
}

/// The records of one sandbox.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

/// A workspace with its record on the host.
#[derive(Debug, Clone)]
pub struct StoredWorkspace {
    /// The record.
    pub record: Record,
    /// The directory of the record.
    pub directory: PathBuf,
}

impl StoredWorkspace {
    /// Returns the snapshot of what was sent.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::open(&self.directory.join(SNAPSHOT), self.record.algorithm)
    }

    /// Returns the ignored files that were sent.
    pub fn private(&self) -> Result<Tree> {
        let path = self.directory.join(PRIVATE);
        let list = match fs::read(&path) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Tree::new()),
            Err(source) => return Err(Error::io(format!("read {}", path.display()), source)),
        };
        parse_tree(&list)
    }

    /// Returns all files that were sent.
    pub fn sent(&self) -> Result<Tree> {
        let snapshot = self.snapshot();
        let mut sent = tree(&snapshot, &snapshot.commit(SENT)?)?;
        sent.extend(self.private()?);
        Ok(sent)
    }

    /// Records that this process sets up a boot, given by its start time. Returns false if another one did so.
    pub fn claim_boot(&self, boot: u64) -> Result<bool> {
        let _locked = self.lock()?;
        let Some(mut record) = read(&self.directory).filter(|record| record.setup.boot != boot) else {
            return Ok(false);
        };
        record.setup.boot = boot;
        write(&self.directory, &record).map(|()| true)
    }

    /// Stores what the creation of the workspace has set, and keeps what other processes have changed since it was
    /// sent.
    pub fn store_creation(&mut self) -> Result<()> {
        let Record { mise, user, env, setup, .. } = self.record.clone();
        self.update(|record| {
            (record.mise, record.user, record.env, record.setup) = (mise, user, env, setup);
        })
    }

    /// Changes the record, and keeps what other processes have changed since it was read.
    pub fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let _locked = self.lock()?;
        if let Some(now) = read(&self.directory) {
            self.record = now;
        }
        change(&mut self.record);
        write(&self.directory, &self.record)
    }

    /// Keeps other processes from changing the record, until the file is closed.
    fn lock(&self) -> Result<fs::File> {
        let failed = |source: io::Error| Error::io(format!("lock {}", self.directory.display()), source);
        let lock = fs::File::open(&self.directory).map_err(failed)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| failed(error.into()))?;
        Ok(lock)
    }
}

/// The record of a workspace that is being sent. It takes effect on commit, and is removed if it is dropped before.
#[derive(Debug)]
pub struct Draft {
    unfinished: tempfile::TempDir,
    path: PathBuf,
}

impl Draft {
    /// Creates the snapshot.
    pub fn snapshot(&self, algorithm: Algorithm) -> Result<Snapshot> {
        Snapshot::create(&self.directory().join(SNAPSHOT), algorithm)
    }

    /// Returns the directory of its files until then.
    pub fn directory(&self) -> &Path {
        self.unfinished.path()
    }

    /// Replaces an earlier record of the workspace at this path. Refs of the earlier one remain those of the workspace.
    pub fn commit(self, record: Record) -> Result<StoredWorkspace> {
        let record = Record { fetched_to: read(&self.path).and_then(|old| old.fetched_to), ..record };
        write(self.unfinished.path(), &record)?;
        let failed = |source| Error::io(format!("write {}", self.path.display()), source);
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::rename(self.unfinished.keep(), &self.path).map_err(failed)?;
        Ok(StoredWorkspace { record, directory: self.path })
    }
}

/// Reads a record. Returns `None` if it is missing or damaged.
fn read(directory: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()
}

fn write(directory: &Path, record: &Record) -> Result<()> {
    let failed = |source| Error::io(format!("write {}", directory.join(FILE).display()), source);
    let text = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
    write_whole(&directory.join(FILE), &text)
}

/// Writes the list of ignored files that were sent, in the format of `git ls-tree -z`.
pub fn save_private(directory: &Path, private: &Tree) -> Result<()> {
    let mut list = Vec::new();
    for (path, (mode, id)) in private {
        list.extend(format!("{mode:06o} blob {id}\t").bytes());
        list.extend(path);
        list.push(0);
    }
    write_whole(&directory.join(PRIVATE), &list)
}

/// Writes a file that only its owner can read, completely or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::io(format!("write {}", path.display()), source);
    let mut file =
        tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
    io::Write::write_all(&mut file, bytes).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Returns a workspace as arguments of a command: the sandbox, and the path if it was given.
pub fn reference(sandbox: &str, guest_path: Option<&str>) -> String {
    match guest_path {
        None => sandbox.to_owned(),
        Some(path) => format!("{sandbox} --guest-path {}", shell_word(path)),
    }
}

/// Quotes a word for a shell.
pub fn shell_word(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:=@%,".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

impl Records {
    /// Returns the records of the sandbox with this id.
    pub fn of(id: &str) -> Result<Self> {
        Self::below(&root(&UserDirs::of_caller()?, remote::chosen()?.as_ref()), id)
    }

    fn below(root: &Path, id: &str) -> Result<Self> {
        // It may come from another host.
        match trust::is_id(id) {
            true => Ok(Self { directory: root.join(id) }),
            false => Err(Error::Refused(format!("{id:?} is not the id of a sandbox"))),
        }
    }

    /// Starts a record of the workspace at this path.
    pub fn begin(&self, guest_path: &str) -> Result<Draft> {
        let failed = |source| Error::io(format!("write below {}", self.directory.display()), source);
        fs::create_dir_all(&self.directory).map_err(failed)?;
        let unfinished =
            tempfile::Builder::new().prefix(".coming-").tempdir_in(&self.directory).map_err(failed)?;
        let name = super::files::blob_id(Algorithm::Sha1, guest_path.as_bytes());
        Ok(Draft { unfinished, path: self.directory.join(&name[..16]) })
    }

    /// Returns all records, the last sent first. Unreadable ones are skipped.
    pub fn all(&self) -> Vec<StoredWorkspace> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut all: Vec<StoredWorkspace> = entries
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .filter_map(|entry| {
                let directory = entry.path();
                Some(StoredWorkspace { record: read(&directory)?, directory })
            })
            .collect();
        all.sort_by_key(|kept| std::cmp::Reverse(kept.record.sent_at));
        all
    }

    /// Returns the record for this path, or the last sent.
    pub fn find(&self, guest_path: Option<&str>) -> Option<StoredWorkspace> {
        self.all().into_iter().find(|kept| guest_path.is_none_or(|path| kept.record.guest_path == path))
    }

    /// Removes the records.
    fn forget(&self) {
        // A directory that cannot be removed does no harm.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Returns the directory with the records of a host. Each host has one, so that it neither sees those of another, nor has
/// them removed.
fn root(dirs: &UserDirs, server: Option<&Server>) -> PathBuf {
    match server {
        None => dirs.workspaces(),
        Some(server) => dirs.workspaces_elsewhere().join(server.file_name()),
    }
}

/// Removes the records of all other sandboxes of a host.
pub fn remove_all_except(ids: &[String], server: Option<&Server>) {
    if let Ok(dirs) = UserDirs::of_caller() {
        remove_below(&root(&dirs, server), ids);
    }
}

fn remove_below(root: &Path, ids: &[String]) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !ids.iter().any(|id| name == id.as_str()) {
            Records { directory: entry.path() }.forget();
        }
    }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Returns a workspace at this path, for tests.
    pub fn stored(path: &str) -> StoredWorkspace {
        StoredWorkspace { record: record(path, 0), directory: "/nowhere".into() }
    }

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
            setup: Setup::default(),
            fetched_to: None,
            sent_at,
        }
    }

    #[test]
    fn a_workspace_is_quoted_for_a_shell() {
        assert_eq!(reference("web", None), "web");
        assert_eq!(reference("web", Some("/srv/x")), "web --guest-path /srv/x");
        assert_eq!(reference("web", Some("/a b'c")), r"web --guest-path '/a b'\''c'");
    }

    #[test]
    fn the_records_of_another_host_stay() {
        let home = tempfile::tempdir().unwrap();
        let dirs = UserDirs::below(home.path());
        let (lab, far): (Server, Server) = ("ssh://lab".parse().unwrap(), "ssh://far".parse().unwrap());
        let (one, two) = ("1".repeat(32), "2".repeat(32));
        let hosts = [None, Some(&lab), Some(&far)];
        for host in hosts {
            for id in [&one, &two] {
                Records::below(&root(&dirs, host), id)
                    .unwrap()
                    .begin("/a")
                    .unwrap()
                    .commit(record("/a", 1))
                    .unwrap();
            }
        }
        let kept = || {
            hosts.map(|host| {
                [&one, &two].map(|id| Records::below(&root(&dirs, host), id).unwrap().all().len())
            })
        };
        remove_below(&root(&dirs, None), std::slice::from_ref(&one));
        assert_eq!(kept(), [[1, 0], [1, 1], [1, 1]]);
        // A host that says it has none.
        remove_below(&root(&dirs, Some(&lab)), &[]);
        assert_eq!(kept(), [[1, 0], [0, 0], [1, 1]]);
    }

    #[test]
    fn an_id_leads_to_no_other_directory() {
        let home = tempfile::tempdir().unwrap();
        for id in ["", ".", "..", "/etc", "../../.ssh", "a/b", &"A".repeat(32)] {
            assert!(Records::below(home.path(), id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn a_boot_is_set_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let kept = StoredWorkspace { record: record("/root/a", 1), directory: dir.path().to_owned() };
        write(dir.path(), &kept.record).unwrap();
        let claims = [7, 7, 8, 8].map(|boot| kept.claim_boot(boot).unwrap());
        assert_eq!(claims, [true, false, true, false]);
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert!(!kept.claim_boot(9).unwrap());
    }

    #[test]
    fn a_change_keeps_those_of_other_processes() {
        type Step = fn(&mut StoredWorkspace);
        let send: Step = |kept| kept.update(|record| record.sent_at = 5).unwrap();
        let claim: Step = |kept| assert!(kept.claim_boot(8).unwrap());
        let create: Step = |kept| {
            kept.record.setup.boot = 8;
            kept.store_creation().unwrap();
        };
        for (name, steps) in [
            ("a boot while changes are sent", [claim, send]),
            ("changes that were sent before a boot", [send, claim]),
            ("a workspace that is set up while changes are sent", [create, send]),
            ("changes that were sent before a workspace is set up", [send, create]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &record("/root/a", 1)).unwrap();
            // Each process has read the record before any of them changes it.
            for step in steps {
                step(&mut StoredWorkspace { record: record("/root/a", 1), directory: dir.path().to_owned() });
            }
            let kept = read(dir.path()).unwrap();
            assert_eq!((kept.sent_at, kept.setup.boot), (5, 8), "{name}");
        }
    }

    #[test]
    fn a_record_of_an_earlier_version_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut earlier = serde_json::to_value(record("/root/a", 1)).unwrap();
        earlier.as_object_mut().unwrap().remove("setup");
        fs::write(dir.path().join(FILE), earlier.to_string()).unwrap();
        assert_eq!(read(dir.path()), Some(record("/root/a", 1)));
    }

    #[test]
    fn ignored_files_are_recorded_by_digest_only() {
        let dir = tempfile::tempdir().unwrap();
        let kept = StoredWorkspace { record: record("/root/a", 1), directory: dir.path().to_owned() };
        assert_eq!(kept.private().unwrap(), Tree::new());
        let private = Tree::from([(b"a\tb\n\xff".to_vec(), (0o100644, "a".repeat(40)))]);
        save_private(dir.path(), &private).unwrap();
        assert_eq!(kept.private().unwrap(), private);
    }

    #[test]
    fn the_last_sent_is_the_default_and_a_path_selects_its_own() {
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
