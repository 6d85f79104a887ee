//! Finds out what has changed in a sandbox since its workspace was sent. Files are fetched if their contents differ,
//! and committed next to what was sent. Nothing changes in the sandbox: its index, its work tree and its branches
//! stay as they are, and commits made there are part of the changes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{Read, Take},
};

use banger_proto::{
    count::counted,
    guest::{
        FailureKind, Request,
        listing::{Entry, Kind},
    },
};
use serde_json::{Value, json};
use tar::{Archive, EntryType};

use super::{
    bounded::BoundedArchive,
    files::is_safe_name,
    ignored,
    record::{EXCLUDE, StoredWorkspace, shell_word},
    snapshot::{Change, Content, SENT, Snapshot},
    source::{DisplayPath, FILE, PROGRAM, Repository, SYMLINK},
};
use crate::{
    error::{Error, Result},
    guest::agent::{Call, Guest, from_io, protocol_error},
    ui::progress::{Meter, Metered, Track},
};

/// The commit of what came back.
pub const FETCHED: &str = "refs/banger/came";
/// Limit on fetched bytes: a guest can offer more than a disk holds.
const MAX_FETCHED: u64 = 8 << 30;
/// Bytes of an archive for a file besides its content: headers, and the longest names.
const HEADERS: u64 = 16 << 10;

/// Options of `git diff-tree` for a patch.
const PATCH: [&str; 5] = ["-p", "--binary", "--full-index", "--src-prefix=a/", "--dst-prefix=b/"];

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its mode and content before; `None` if it is new.
    pub old: Option<(u32, String)>,
    /// Its mode and content now; `None` if it was deleted.
    pub new: Option<(u32, String)>,
    /// Its name.
    pub path: Vec<u8>,
}

impl Difference {
    /// Returns the kind of change in one word.
    pub fn status(&self) -> &'static str {
        match (&self.old, &self.new) {
            (None, _) => "added",
            (_, None) => "deleted",
            _ => "modified",
        }
    }

    /// Returns the change as a JSON object.
    pub fn json(&self) -> Value {
        json!({
            "path": String::from_utf8_lossy(&self.path),
            "status": self.status(),
            "mode": self.new.as_ref().map(|(mode, _)| format!("{mode:06o}")),
        })
    }
}

/// Files by name, with their modes and contents.
pub type Tree = BTreeMap<Vec<u8>, (u32, String)>;

/// Returns the files of a commit in a snapshot.
pub fn tree(snapshot: &Snapshot, commit: &str) -> Result<Tree> {
    parse_tree(&snapshot.git().run(&["ls-tree", "-r", "-z", "--full-tree", commit], b"")?)
}

/// Parses the output of `ls-tree -r -z`.
pub fn parse_tree(list: &[u8]) -> Result<Tree> {
    let mut tree = Tree::new();
    for entry in list.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
        let parsed = entry.iter().position(|byte| *byte == b'\t').and_then(|tab| {
            let mut fields = std::str::from_utf8(&entry[..tab]).ok()?.split(' ');
            let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
            Some((entry[tab + 1..].to_vec(), (mode, fields.nth(1)?.to_owned())))
        });
        let (path, content) = parsed.ok_or_else(|| {
            Error::Refused("cannot read a tree of git: unexpected output of `git ls-tree`".to_owned())
        })?;
        tree.insert(path, content);
    }
    Ok(tree)
}

/// Fetches the changes, and commits them as [`FETCHED`].
pub async fn fetch(guest: &mut Guest, kept: &StoredWorkspace, track: &Track) -> Result<()> {
    let directory = kept.record.guest_path.clone();
    track.stage("look", &format!("looking for changes in {directory}"));
    let entries = guest.list(&directory).await.map_err(|error| match &error {
        Error::Guest(failure) if failure.kind == FailureKind::NotFound => Error::Refused(format!(
            "there is no workspace at {directory} in the sandbox any more"
        ))
        .with_hint(format!(
            "`banger vm workspace prepare NAME {}` sends it again.",
            shell_word(&kept.record.source.display().to_string())
        )),
        _ => error,
    })?;
    let snapshot = kept.snapshot();
    let known = {
        let snapshot = snapshot.clone();
        guest.work(move || snapshot.commit(SENT).and_then(|commit| tree(&snapshot, &commit)), || ()).await?
    };
    // The user's ignored files are left out.
    let private = kept.private()?;
    let mut present = present(entries);
    present.retain(|name, _| !private.contains_key(name));
    let new = unignored(guest, kept, &present, &known).await?;
    let mut wanted = new;
    let mut changes = Vec::new();
    let names: Vec<Vec<u8>> = known.keys().filter(|name| present.contains_key(*name)).cloned().collect();
    let digests = guest.digests(&directory, kept.record.algorithm, names.clone()).await?;
    for (name, digest) in names.into_iter().zip(digests) {
        let ((mode, id), now) = (&known[&name], &present[&name]);
        match digest {
            Some(digest) if digest == *id && now.mode == *mode => {}
            Some(digest) if digest == *id => {
                changes.push(Change::Put { mode: now.mode, content: Content::Id(digest), path: name });
            }
            _ => wanted.push(name),
        }
    }
    let gone = known.keys().filter(|name| !present.contains_key(*name));
    changes.extend(gone.map(|path| Change::Remove { path: path.clone() }));
    let bytes: u64 = wanted.iter().filter_map(|name| present.get(name)).map(|file| file.size).sum();
    if bytes > MAX_FETCHED {
        return Err(too_much());
    }
    track.stage("fetch", &format!("{} from {directory}", counted(wanted.len(), "file")));
    let meter = track.meter(bytes);
    let request = Request::GetFiles { directory };
    guest.call(request, move |call| take(call, &snapshot, wanted, (bytes, meter), &known, changes)).await
}

fn too_much() -> Error {
    Error::Refused(format!("more than {} GiB have changed in the sandbox", MAX_FETCHED >> 30))
        .with_hint("list what should stay there in a `.gitignore` in the sandbox.")
}

/// A file in the sandbox, from its listing.
struct Present {
    mode: u32,
    size: u64,
}

/// Returns the files that git can have in a tree.
fn present(entries: Vec<Entry>) -> HashMap<Vec<u8>, Present> {
    let file = |entry: Entry| {
        let mode = match entry.kind {
            Kind::File if entry.mode & 0o100 != 0 => PROGRAM,
            Kind::File => FILE,
            Kind::Symlink => SYMLINK,
            Kind::Directory | Kind::Other => return None,
        };
        is_safe_name(&entry.name).then_some((entry.name, Present { mode, size: entry.size }))
    };
    entries.into_iter().filter_map(file).collect()
}

/// Returns the new files that are not ignored in the sandbox.
async fn unignored(
    guest: &mut Guest,
    kept: &StoredWorkspace,
    present: &HashMap<Vec<u8>, Present>,
    known: &Tree,
) -> Result<Vec<Vec<u8>>> {
    let mut new: Vec<Vec<u8>> = present.keys().filter(|name| !known.contains_key(*name)).cloned().collect();
    new.sort_unstable();
    let is_list = |name: &[u8]| name.rsplit(|byte| *byte == b'/').next() == Some(ignored::NAME);
    let lists: Vec<Vec<u8>> = present
        .iter()
        .filter(|(name, file)| is_list(name) && file.mode != SYMLINK && file.size <= ignored::MAX_SIZE)
        .map(|(name, _)| name.clone())
        .collect();
    let request = Request::GetFiles { directory: kept.record.guest_path.clone() };
    let exclude = kept.directory.join(EXCLUDE);
    guest
        .call(request, move |call| {
            call.send_names(&lists)?;
            let limit = lists.len() as u64 * (ignored::MAX_SIZE + HEADERS) + HEADERS;
            let wanted_lists: HashSet<_> = lists.into_iter().collect();
            let mut files = Vec::new();
            each(call, limit, |name, entry| {
                let mut content = Vec::new();
                entry.take(ignored::MAX_SIZE).read_to_end(&mut content).map_err(from_io)?;
                if wanted_lists.contains(name) {
                    files.push((name.to_vec(), content));
                }
                Ok(())
            })?;
            let names: Vec<&[u8]> = new.iter().map(Vec::as_slice).collect();
            let ignored = ignored::ignored(&exclude, &files, &names)?;
            Ok(new.into_iter().filter(|name| !ignored.contains(name)).collect())
        })
        .await
}

/// Calls `take` for each entry of the received archive, and waits for the end of the request. Stops after `limit`
/// bytes.
fn each(
    call: &mut Call,
    limit: u64,
    mut take: impl FnMut(&[u8], &mut tar::Entry<'_, BoundedArchive<Take<&mut Call>>>) -> Result<()>,
) -> Result<()> {
    let mut archive = Archive::new(BoundedArchive::new(Read::take(&mut *call, limit)));
    for entry in archive.entries().map_err(from_io)? {
        let mut entry = entry.map_err(from_io)?;
        let name = entry.path_bytes().into_owned();
        take(&name, &mut entry)?;
    }
    call.finish()
}

/// Imports the received files into the snapshot.
fn take(
    call: &mut Call,
    snapshot: &Snapshot,
    wanted: Vec<Vec<u8>>,
    (bytes, meter): (u64, Meter),
    known: &Tree,
    mut changes: Vec<Change>,
) -> Result<()> {
    call.send_names(&wanted)?;
    // Files may have grown since they were listed.
    let limit = 2 * bytes + wanted.len() as u64 * HEADERS + (64 << 20);
    let mut missing: HashSet<Vec<u8>> = wanted.into_iter().collect();
    let mut importer = snapshot.import()?;
    let mut left = MAX_FETCHED;
    each(call, limit, |name, entry| {
        // The agent never sends a file that was not requested, or sends one twice.
        if !missing.remove(name) {
            return Err(protocol_error());
        }
        let path = name.to_vec();
        let (mode, content) = match entry.header().entry_type() {
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(protocol_error)?.into_owned();
                (SYMLINK, importer.blob(target.len() as u64, &mut target.as_slice())?)
            }
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.size();
                left = left.checked_sub(size).ok_or_else(too_much)?;
                let program = entry.header().mode().map_err(from_io)? & 0o100 != 0;
                (
                    if program { PROGRAM } else { FILE },
                    importer.blob(size, &mut Metered { from: entry, meter: &meter })?,
                )
            }
            _ => return Err(protocol_error()),
        };
        changes.push(Change::Put { mode, content, path });
        Ok(())
    })?;
    // They were deleted between the listing and the transfer.
    changes.extend(
        missing.into_iter().filter(|path| known.contains_key(path)).map(|path| Change::Remove { path }),
    );
    importer.commit(FETCHED, Some(&format!("{SENT}^0")), &changes)
}

/// The two commits to compare.
#[derive(Debug)]
pub struct Range {
    base: String,
    git: super::git::Git,
}

impl Range {
    /// Compares what came back with what was sent, or with a commit of the user's repository.
    pub fn new(kept: &StoredWorkspace, base: Option<&str>) -> Result<Self> {
        let snapshot = kept.snapshot();
        Ok(match base {
            None => Self { base: SENT.to_owned(), git: snapshot.git() },
            Some(revision) => {
                let repository = Repository::open(&kept.record.source)?;
                let base = repository.commit(revision)?;
                Self { base, git: snapshot.git().with_objects_of(&repository.objects) }
            }
        })
    }

    fn arguments(&self, how: &[&str]) -> Vec<String> {
        let options = ["diff-tree", "-r", "--no-ext-diff", "--no-textconv", "--no-renames", "--no-color"];
        let trees = [format!("{}^{{tree}}", self.base), format!("{FETCHED}^{{tree}}")];
        options.iter().chain(how).map(ToString::to_string).chain(trees).collect()
    }

    fn run(&self, how: &[&str]) -> Result<Vec<u8>> {
        self.git.run(&self.arguments(how), b"")
    }

    /// Returns a patch for `git apply`.
    pub fn patch(&self) -> Result<Vec<u8>> {
        self.run(&PATCH)
    }

    /// Returns the beginning of the patch, and whether that is all of it.
    pub fn patch_up_to(&self, limit: usize) -> Result<(Vec<u8>, bool)> {
        let mut git = self.git.start(&self.arguments(&PATCH))?;
        let output = git.child()?.stdout.take();
        let mut patch = Vec::new();
        if let Some(output) = output {
            let read = output.take(limit as u64 + 1).read_to_end(&mut patch);
            read.map_err(|source| Error::io("run git", source))?;
        }
        let is_whole = patch.len() <= limit;
        patch.truncate(limit);
        if is_whole {
            git.finish()?;
        }
        Ok((patch, is_whole))
    }

    /// Returns a diffstat.
    pub fn stat(&self) -> Result<Vec<u8>> {
        self.run(&["--stat"])
    }

    /// Returns the differences.
    pub fn differences(&self) -> Result<Vec<Difference>> {
        parse_differences(&self.run(&["-z"])?).ok_or_else(|| {
            Error::Refused("cannot compare with git: unexpected output of `git diff-tree`".to_owned())
        })
    }
}

/// Parses the output of `diff-tree -z`: `:MODE MODE ID ID STATUS`, a zero byte, the path, and a zero byte.
fn parse_differences(raw: &[u8]) -> Option<Vec<Difference>> {
    let mut fields = raw.split(|byte| *byte == 0);
    let mut differences = Vec::new();
    while let Some(meta) = fields.next().filter(|meta| !meta.is_empty()) {
        let path = fields.next()?.to_vec();
        let meta = std::str::from_utf8(meta).ok()?.strip_prefix(':')?;
        let fields: Vec<&str> = meta.split(' ').collect();
        let [old_mode, new_mode, old_id, new_id, _] = fields[..] else { return None };
        let side = |mode: &str, id: &str| {
            let mode = u32::from_str_radix(mode, 8).ok()?;
            Some((mode != 0).then(|| (mode, id.to_owned())))
        };
        differences.push(Difference { old: side(old_mode, old_id)?, new: side(new_mode, new_id)?, path });
    }
    Some(differences)
}

/// Formats the first names for a message.
pub fn first_names(paths: &[Vec<u8>]) -> String {
    const MAX_NAMES: usize = 5;
    let mut shown: Vec<String> =
        paths.iter().take(MAX_NAMES).map(|path| DisplayPath(path).to_string()).collect();
    if paths.len() > MAX_NAMES {
        shown.push(format!("{} more", paths.len() - MAX_NAMES));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn differences_are_parsed_with_any_names() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let zero = "0".repeat(40);
        let raw = format!(
            ":100644 100755 {a} {b} M\0x y\nz\0:000000 120000 {zero} {b} A\0l\0:100644 000000 {a} {zero} D\0d\0"
        );
        let read = parse_differences(raw.as_bytes()).unwrap();
        let shown: Vec<_> = read.iter().map(|one| (one.status(), one.path.as_slice())).collect();
        assert_eq!(shown, [("modified", &b"x y\nz"[..]), ("added", b"l"), ("deleted", b"d")]);
        assert_eq!(read[0].new, Some((PROGRAM, b)));
        assert_eq!((&read[1].old, &read[2].new), (&None, &None));
        assert_eq!(parse_differences(b"garbage\0x\0"), None);
        assert_eq!(parse_differences(b""), Some(Vec::new()));
    }

    #[test]
    fn names_that_lead_outside_are_refused() {
        let entry = |name: &[u8]| Entry { kind: Kind::File, mode: 0o644, size: 1, name: name.to_vec() };
        let present =
            present(vec![entry(b"../x"), entry(b".git/config"), entry(b"a/.GIT/x"), entry(b"fine")]);
        assert_eq!(present.into_keys().collect::<Vec<_>>(), [b"fine"]);
    }
}
