//! Where detached commands are remembered: a directory for each, with a file about it and the files of its log. On the
//! guest's disk, so that they outlive the boot; in memory, and less, where nothing can be written to the disk.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use banger_proto::guest::{facts::Detached, message::Exit};
use serde::{Deserialize, Serialize};

use super::log;

const ON_DISK: Place = Place { directory: "/var/lib/banger/detached", most: 8 << 20 };
const IN_MEMORY: Place = Place { directory: "/run/banger/detached", most: 512 << 10 };
const ABOUT: &str = "about.json";
/// Commands that have ended and are remembered.
const MOST_ENDED: usize = 64;
/// What their logs may take together, in bytes.
const MOST_BYTES: u64 = 256 << 20;
/// Numbers that may be taken by others while one is looked for.
const TRIES: u64 = 100;

/// Whether this process serves a guest, whose disk is its own.
static IN_GUEST: OnceLock<()> = OnceLock::new();

/// From now on, what is remembered is on the guest's disk.
pub fn begin() {
    IN_GUEST.get_or_init(|| ());
}

/// Where commands are remembered.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    directory: &'static str,
    /// The size of a file of a log, in bytes. There are two.
    pub most: u64,
}

/// What is remembered of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub command: String,
    pub user: String,
    /// The process, with what tells it from a later one of that number.
    pub pid: u32,
    pub begun_ticks: u64,
    pub boot_id: String,
    /// Its control group.
    pub group: Option<String>,
    pub started_usec: u64,
    pub ended_usec: u64,
    pub exit: Option<Exit>,
}

impl About {
    pub fn is_of_this_boot(&self) -> bool {
        self.boot_id == boot_id()
    }

    /// Whether the command still runs. One that was cut off by the end of its guest does not.
    pub fn is_running(&self) -> bool {
        self.exit.is_none() && self.is_of_this_boot() && begun_ticks(self.pid) == Some(self.begun_ticks)
    }
}

/// A command that is remembered.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: u64,
    pub directory: PathBuf,
    pub most: u64,
}

impl Entry {
    pub fn about(&self) -> io::Result<About> {
        Ok(serde_json::from_slice(&fs::read(self.directory.join(ABOUT))?)?)
    }

    /// Remembers this, wholly or not at all.
    pub fn remember(&self, about: &About) -> io::Result<()> {
        let new = self.directory.join("about.new");
        fs::write(&new, serde_json::to_vec(about)?)?;
        fs::rename(new, self.directory.join(ABOUT))
    }

    pub fn forget(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.directory)
    }
}

fn places() -> Vec<Place> {
    match IN_GUEST.get() {
        Some(()) => vec![ON_DISK, IN_MEMORY],
        None => vec![IN_MEMORY],
    }
}

/// All that are remembered, by their numbers.
pub fn all() -> Vec<Entry> {
    let mut entries: Vec<Entry> =
        places().iter().flat_map(|place| below(place.directory, place.most)).collect();
    entries.sort_by_key(|entry| entry.id);
    entries
}

fn below(directory: impl AsRef<Path>, most: u64) -> Vec<Entry> {
    let found = fs::read_dir(directory).into_iter().flatten().flatten();
    let entry = |directory: PathBuf| {
        let id = directory.file_name()?.to_str()?.parse().ok()?;
        Some(Entry { id, directory, most })
    };
    found.filter_map(|found| entry(found.path())).collect()
}

pub fn find(id: u64) -> Option<Entry> {
    all().into_iter().find(|entry| entry.id == id)
}

/// Room for a new command.
pub fn make() -> io::Result<Entry> {
    let mut result = Err(io::ErrorKind::StorageFull.into());
    let next = all().last().map_or(1, |last| last.id + 1);
    for Place { directory, most } in places() {
        result = make_below(Path::new(directory), next, most);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn make_below(directory: &Path, next: u64, most: u64) -> io::Result<Entry> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    builder.recursive(true).create(directory)?;
    builder.recursive(false);
    for id in next..next.saturating_add(TRIES) {
        let directory = directory.join(id.to_string());
        match builder.create(&directory) {
            Ok(()) => return Ok(Entry { id, directory, most }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Forgets the oldest that have ended, when there are too many.
pub fn prune() {
    prune_among(all(), MOST_ENDED, MOST_BYTES);
}

fn prune_among(entries: Vec<Entry>, mut most: usize, mut bytes: u64) {
    let ended = |entry: &Entry| entry.about().is_ok_and(|about| !about.is_running());
    for entry in entries.into_iter().filter(ended).rev() {
        let kept = log::size(&entry.directory).1;
        if most == 0 || kept > bytes {
            // What cannot be removed now may be later.
            let _ = entry.forget();
            bytes = 0;
        } else {
            most -= 1;
            bytes -= kept;
        }
    }
}

/// Returns the facts about all remembered commands.
pub fn facts() -> Vec<Detached> {
    let fact = |entry: Entry| {
        let about = entry.about().ok()?;
        let running = about.is_running();
        let (written, kept) = log::size(&entry.directory);
        let About { command, user, started_usec, ended_usec, exit, .. } = about;
        Some(Detached { id: entry.id, command, user, running, started_usec, ended_usec, exit, written, kept })
    };
    all().into_iter().filter_map(fact).collect()
}

pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When a process began, in ticks since the boot (proc_pid_stat(5), the 22nd field).
pub fn begun_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn about(exit: Option<Exit>) -> About {
        About {
            command: "make".into(),
            user: "root".into(),
            pid: std::process::id(),
            begun_ticks: begun_ticks(std::process::id()).unwrap(),
            boot_id: boot_id(),
            group: None,
            started_usec: 1,
            ended_usec: 0,
            exit,
        }
    }

    #[test]
    fn a_command_runs_until_its_process_ends_or_the_guest_boots_again() {
        let running = about(None);
        assert!(running.is_running());
        for ended in [
            about(Some(Exit::Code(0))),
            About { begun_ticks: running.begun_ticks + 1, ..running.clone() },
            About { boot_id: "another".into(), ..running.clone() },
        ] {
            assert!(!ended.is_running(), "{ended:?}");
        }
    }

    #[test]
    fn numbers_go_up_and_the_oldest_that_have_ended_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        for id in 1..=6 {
            let entry = make_below(dir.path(), 1, 100).unwrap();
            assert_eq!(entry.id, id);
            entry.remember(&about((id != 2).then_some(Exit::Code(0)))).unwrap();
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
