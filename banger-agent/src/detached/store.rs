//! The records of detached commands: a directory for each, with metadata and the files of its log. They are on the
//! guest's disk, so that they survive a reboot; if the disk is not writable, smaller ones are in memory.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use banger_proto::guest::{facts::Detached, message::Exit};
use serde::{Deserialize, Serialize};

use super::{log, session};

const ON_DISK: Location = Location { directory: "/var/lib/banger/detached", max_size: 8 << 20 };
const IN_MEMORY: Location = Location { directory: "/run/banger/detached", max_size: 512 << 10 };
const METADATA: &str = "about.json";
/// Limit on the ended commands that are kept.
const MAX_ENDED: usize = 64;
/// Limit on the size of their logs together, in bytes.
const MAX_BYTES: u64 = 256 << 20;
/// Attempts to find an unused number.
const MAX_ATTEMPTS: u64 = 100;

/// Metadata that could not be saved, by the directory of its record. Removed with the record.
static UNSAVED: Mutex<BTreeMap<PathBuf, Metadata>> = Mutex::new(BTreeMap::new());

fn unsaved() -> MutexGuard<'static, BTreeMap<PathBuf, Metadata>> {
    UNSAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Set if this process serves a guest, so that the disk is its own.
static IN_GUEST: OnceLock<()> = OnceLock::new();

/// Keeps records on the guest's disk from now on.
pub fn begin() {
    IN_GUEST.get_or_init(|| ());
}

/// Returns whether this process serves a guest.
pub fn is_in_guest() -> bool {
    IN_GUEST.get().is_some()
}

/// A location for records.
#[derive(Debug, Clone, Copy)]
pub struct Location {
    directory: &'static str,
    /// The maximum size of a log file in bytes. A log has two.
    pub max_size: u64,
}

/// Metadata of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    pub command: String,
    pub user: String,
    /// The process id, and what distinguishes the process from a later one with the same id.
    pub pid: u32,
    pub start_ticks: u64,
    pub boot_id: String,
    /// Its control group.
    pub group: Option<String>,
    pub started_usec: u64,
    pub ended_usec: u64,
    pub exit: Option<Exit>,
    /// Whether the guest powers off at its end.
    #[serde(default)]
    pub power_off: bool,
    /// The name of a session.
    #[serde(default)]
    pub session: Option<String>,
    /// Whether it runs in a terminal.
    #[serde(default)]
    pub terminal: bool,
}

impl Metadata {
    pub fn is_of_this_boot(&self) -> bool {
        self.boot_id == boot_id()
    }

    /// Returns whether the command still runs. A command of an earlier boot does not.
    pub fn is_running(&self) -> bool {
        self.exit.is_none() && self.is_of_this_boot() && start_ticks(self.pid) == Some(self.start_ticks)
    }
}

/// The record of a command.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: u64,
    pub directory: PathBuf,
    pub max_size: u64,
}

impl Entry {
    pub fn metadata(&self) -> io::Result<Metadata> {
        let saved = serde_json::from_slice(&fs::read(self.directory.join(METADATA))?)?;
        Ok(unsaved().get(&self.directory).cloned().unwrap_or(saved))
    }

    /// Returns the metadata, and whether the command still runs. If it does not, its exit is there, because it is saved
    /// before the process goes; or it was lost with the guest.
    pub fn state(&self) -> io::Result<(Metadata, bool)> {
        let metadata = self.metadata()?;
        if metadata.exit.is_some() {
            return Ok((metadata, false));
        }
        match metadata.is_running() {
            true => Ok((metadata, true)),
            // It may have ended after the first look.
            false => Ok((self.metadata()?, false)),
        }
    }

    /// Saves the metadata of a command that has ended; in memory, if the disk is full.
    pub fn save_end(&self, metadata: &Metadata) -> io::Result<()> {
        self.save(metadata).inspect_err(|_| {
            unsaved().insert(self.directory.clone(), metadata.clone());
        })
    }

    /// Saves the metadata, completely or not at all.
    pub fn save(&self, metadata: &Metadata) -> io::Result<()> {
        let new = self.directory.join("about.new");
        fs::write(&new, serde_json::to_vec(metadata)?)?;
        fs::rename(new, self.directory.join(METADATA))
    }

    pub fn remove(&self) -> io::Result<()> {
        unsaved().remove(&self.directory);
        fs::remove_dir_all(&self.directory)
    }
}

fn locations() -> Vec<Location> {
    match IN_GUEST.get() {
        Some(()) => vec![ON_DISK, IN_MEMORY],
        None => vec![IN_MEMORY],
    }
}

/// Returns all records, ordered by number.
pub fn all() -> Vec<Entry> {
    let mut entries: Vec<Entry> =
        locations().iter().flat_map(|location| below(location.directory, location.max_size)).collect();
    entries.sort_by_key(|entry| entry.id);
    entries
}

fn below(directory: impl AsRef<Path>, max_size: u64) -> Vec<Entry> {
    let found = fs::read_dir(directory).into_iter().flatten().flatten();
    let entry = |directory: PathBuf| {
        let id = directory.file_name()?.to_str()?.parse().ok()?;
        Some(Entry { id, directory, max_size })
    };
    found.filter_map(|found| entry(found.path())).collect()
}

pub fn find(id: u64) -> Option<Entry> {
    all().into_iter().find(|entry| entry.id == id)
}

/// Creates a record for a new command.
pub fn create() -> io::Result<Entry> {
    let mut result = Err(io::ErrorKind::StorageFull.into());
    let next = all().last().map_or(1, |last| last.id + 1);
    for Location { directory, max_size } in locations() {
        result = create_below(Path::new(directory), next, max_size);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn create_below(directory: &Path, next: u64, max_size: u64) -> io::Result<Entry> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    builder.recursive(true).create(directory)?;
    builder.recursive(false);
    for id in next..next.saturating_add(MAX_ATTEMPTS) {
        let directory = directory.join(id.to_string());
        match builder.create(&directory) {
            Ok(()) => return Ok(Entry { id, directory, max_size }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Removes the oldest records of ended commands if there are too many.
pub fn prune() {
    prune_among(all(), MAX_ENDED, MAX_BYTES);
}

fn prune_among(entries: Vec<Entry>, mut count: usize, mut bytes: u64) {
    let ended = |entry: &Entry| entry.metadata().is_ok_and(|metadata| !metadata.is_running());
    for entry in entries.into_iter().filter(ended).rev() {
        let kept = log::size(&entry.directory).1;
        if count == 0 || kept > bytes {
            // A record that cannot be removed now may be removed later.
            let _ = entry.remove();
            bytes = 0;
        } else {
            count -= 1;
            bytes -= kept;
        }
    }
}

/// Returns facts about all recorded commands.
pub fn facts() -> Vec<Detached> {
    let fact = |entry: Entry| {
        let (metadata, running) = entry.state().ok()?;
        let (written, kept) = log::size(&entry.directory);
        let Metadata { command, user, started_usec, ended_usec, exit, session, terminal, .. } = metadata;
        let (id, attached) = (entry.id, session::is_attached(entry.id));
        Some(Detached {
            id,
            command,
            user,
            running,
            started_usec,
            ended_usec,
            exit,
            written,
            kept,
            session,
            attached,
            terminal,
        })
    };
    all().into_iter().filter_map(fact).collect()
}

pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Returns when a process started, in ticks since the boot (proc_pid_stat(5), the 22nd field).
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn metadata(exit: Option<Exit>) -> Metadata {
        Metadata {
            command: "make".into(),
            user: "root".into(),
            pid: std::process::id(),
            start_ticks: start_ticks(std::process::id()).unwrap(),
            boot_id: boot_id(),
            group: None,
            started_usec: 1,
            ended_usec: 0,
            exit,
            power_off: false,
            session: None,
            terminal: false,
        }
    }

    #[test]
    fn a_command_runs_until_its_process_ends_or_the_guest_boots_again() {
        let running = metadata(None);
        assert!(running.is_running());
        for ended in [
            metadata(Some(Exit::Code(0))),
            Metadata { start_ticks: running.start_ticks + 1, ..running.clone() },
            Metadata { boot_id: "another".into(), ..running.clone() },
        ] {
            assert!(!ended.is_running(), "{ended:?}");
        }
    }

    #[test]
    fn the_exit_of_a_command_is_known_although_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let entry = create_below(dir.path(), 1, 100).unwrap();
        entry.save(&metadata(None)).unwrap();
        // Where the new file goes.
        fs::create_dir(entry.directory.join("about.new")).unwrap();
        let ended = metadata(Some(Exit::Code(7)));
        assert!(entry.save_end(&ended).is_err());
        assert_eq!(entry.metadata().unwrap(), ended);
        entry.remove().unwrap();
        assert!(unsaved().get(&entry.directory).is_none());
    }

    #[test]
    fn numbers_increase_and_the_oldest_ended_commands_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for id in 1..=6 {
            let entry = create_below(dir.path(), 1, 100).unwrap();
            assert_eq!(entry.id, id);
            entry.save(&metadata((id != 2).then_some(Exit::Code(0)))).unwrap();
            log::Writer::new(&entry.directory, 100).write(&[b'x'; 50]);
        }
        let left = || {
            let mut entries = below(dir.path(), 100);
            entries.sort_by_key(|entry| entry.id);
            entries
        };
        let numbers = || left().iter().map(|entry| entry.id).collect::<Vec<_>>();
        prune_among(left(), 4, 1000);
        assert_eq!(numbers(), [2, 3, 4, 5, 6]);
        prune_among(left(), 4, 100);
        assert_eq!(numbers(), [2, 5, 6]);
    }
}
