//! Receives a pack of a guest into a directory of its own. Only what was checked gets into the repository.
//!
//! git reads the objects of the quarantine and of the repository together, as it does when it receives a push
//! (git-receive-pack(1)). Whatever fails, the directory is removed with all that it contains.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::ChildStdin,
    time::Duration,
};

use super::upload_pack::cannot;
use crate::{
    error::{Error, Result},
    ui::progress::Meter,
    workspace::{
        git::{Git, Running},
        source::Repository,
        stop::within,
    },
};

/// Limit on the bytes of a pack.
const MAX_PACK: u64 = 4 << 30;
/// Limit on one object, and on any other piece of memory that git takes while it reads a pack.
const MAX_OBJECT: u64 = 256 << 20;
/// How long git may take to check what it has received.
const CHECK_LIMIT: Duration = Duration::from_secs(15 * 60);
/// A prefix by which `git prune` knows what a crash has left.
const PREFIX: &str = "tmp_objdir-banger-";

/// Objects that are not part of the repository yet.
#[derive(Debug)]
pub struct Quarantine<'a> {
    repository: &'a Repository,
    directory: tempfile::TempDir,
}

/// A pack that is being received.
#[derive(Debug)]
pub struct Receiver {
    running: Running,
    input: ChildStdin,
    meter: Meter,
}

impl<'a> Quarantine<'a> {
    /// Creates an empty one beside the repository's objects.
    pub fn create(repository: &'a Repository) -> Result<Self> {
        let failed = |source| Error::io(format!("write to {}", repository.objects.display()), source);
        let directory =
            tempfile::Builder::new().prefix(PREFIX).tempdir_in(&repository.objects).map_err(failed)?;
        fs::create_dir(directory.path().join("pack")).map_err(failed)?;
        Ok(Self { repository, directory })
    }

    /// Returns git with the objects of both. Objects are read into memory, so that the limit on memory is one on their
    /// size.
    pub fn git(&self) -> Git {
        self.repository
            .git()
            .with_new_objects_in(self.directory.path(), &self.repository.objects)
            .with_setting("core.bigFileThreshold=64g")
            .with_variable("GIT_ALLOC_LIMIT", MAX_OBJECT.to_string())
    }

    /// Starts to receive a pack. git checks each object, and that no object refers to a missing one.
    pub fn receive(&self, meter: Meter) -> Result<Receiver> {
        let limit = format!("--max-input-size={MAX_PACK}");
        let arguments = ["index-pack", "--stdin", "--fix-thin", "--strict", "--threads=1", &limit];
        let mut running = self.git().start(&arguments)?;
        let input =
            running.child()?.stdin.take().ok_or_else(|| Error::io("run git", io::ErrorKind::Other.into()))?;
        Ok(Receiver { running, input, meter })
    }

    /// Checks that these are commits, and that their whole history is in the quarantine or in the repository.
    pub fn check(&self, tips: &[String]) -> Result<()> {
        let kinds = self.git().run(&["cat-file", "--batch-check=%(objecttype)"], lines(tips).as_bytes())?;
        let kinds = String::from_utf8_lossy(&kinds).into_owned();
        if let Some(kind) = kinds.lines().find(|kind| ["tag", "tree", "blob"].contains(kind)) {
            return Err(cannot(&format!("a branch of the sandbox is a {kind}, and no commit")));
        }
        let arguments = ["rev-list", "--objects", "--quiet", "--stdin", "--not", "--all"];
        let checked = in_time(|| self.git().run(&arguments, lines(tips).as_bytes()))?;
        checked.map(drop).map_err(explain)
    }

    /// Moves the objects into the repository. The index of a pack comes last: without it, git does not see the pack.
    pub fn release(self) -> Result<()> {
        let to = self.repository.objects.join("pack");
        let failed = |source| Error::io(format!("write to {}", to.display()), source);
        fs::create_dir_all(&to).map_err(failed)?;
        let mut files: Vec<_> = fs::read_dir(self.directory.path().join("pack"))
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(failed)?;
        let is_index = |file: &Path| file.extension().is_some_and(|extension| extension == "idx");
        files.sort_by_key(|file| is_index(file));
        for file in files {
            fs::rename(&file, to.join(file.file_name().unwrap_or_default())).map_err(failed)?;
        }
        Ok(())
    }
}

impl Receiver {
    /// Waits until git has checked the pack.
    pub fn finish(self) -> Result<()> {
        drop(self.input);
        in_time(|| self.running.finish())?.map_err(explain)
    }
}

fn in_time<T>(work: impl FnOnce() -> T) -> Result<T> {
    let minutes = CHECK_LIMIT.as_secs() / 60;
    within(CHECK_LIMIT, work)
        .ok_or_else(|| cannot(&format!("to check them takes more than {minutes} minutes")))
}

impl Write for Receiver {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.input.write(bytes)?;
        self.meter.add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.flush()
    }
}

/// Returns a list for the standard input of git.
pub fn lines(ids: &[String]) -> String {
    ids.iter().map(|id| format!("{id}\n")).collect()
}

/// Says what git found, if a user can do something about it.
fn explain(error: Error) -> Error {
    let causes = error.causes().join(" ");
    // git says it as `error: object ID: RULE: WHY`, and may complain about what follows from it.
    if let Some((_, invalid)) = causes.split_once("error: object ") {
        let invalid = invalid.lines().next().unwrap_or_default();
        return cannot(&format!("an object in the sandbox is not valid: {invalid}"));
    }
    let has = |words: &[&str]| words.iter().any(|words| causes.contains(words));
    if has(&["over limit"]) {
        return cannot(&format!("an object is larger than {} MiB", MAX_OBJECT >> 20))
            .with_hint("`banger vm cp` copies large files.");
    }
    if has(&["exceeds maximum"]) {
        return cannot(&format!("they have more than {} GiB", MAX_PACK >> 30))
            .with_hint("`banger vm workspace export NAME` brings back the files without their history.");
    }
    if has(&["did not receive expected object", "missing ", "bad object", "unable to read", "Could not read"])
    {
        return cannot("they build on others that are neither in the sandbox nor in the repository").with_hint(
            "`banger vm workspace export NAME --branch from-sandbox` brings the work back as one commit; in a \
             partial clone, `git fetch --refetch --no-filter` gets the missing objects first.",
        );
    }
    error
}
