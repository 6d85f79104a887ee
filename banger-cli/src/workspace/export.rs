//! What has changed in a sandbox since its workspace was sent: fetched file by file, as far as contents differ,
//! into a commit beside that of what was sent. In the sandbox files are read and nothing else: its index, its
//! work tree and its branches stay as they are, and commits that were made there are part of what has changed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{Read, Take},
};

use banger_proto::guest::{
    FailureKind, Request,
    listing::{Entry, Kind},
};
use serde_json::{Value, json};
use tar::{Archive, EntryType};

use super::{
    bounded::Bounded,
    files::is_proper,
    ignored,
    record::{EXCLUDE, Kept, shell_word},
    snapshot::{Change, Content, SENT, Snapshot},
    source::{FILE, PROGRAM, Repository, SYMLINK, Shown},
};
use crate::{
    error::{Error, Result},
    guest::{Call, Guest, from_io, garbage},
    progress::{Meter, Metered, Track},
};

/// The commit of what came.
pub const CAME: &str = "refs/banger/came";
/// What is fetched at most: a guest can offer more than a disk holds.
const MAX_FETCHED: u64 = 8 << 30;
/// What an archive has for a file beside its content: heads, and names of the longest kind.
const HEADERS: u64 = 16 << 10;

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its mode and content before; none where it is new.
    pub old: Option<(u32, String)>,
    /// Its mode and content now; none where it is gone.
    pub new: Option<(u32, String)>,
    /// Its name.
    pub path: Vec<u8>,
}

impl Difference {
    /// In a word.
    pub fn status(&self) -> &'static str {
        match (&self.old, &self.new) {
            (None, _) => "added",
            (_, None) => "deleted",
            _ => "modified",
        }
    }

    /// As an object.
    pub fn json(&self) -> Value {
        json!({
            "path": String::from_utf8_lossy(&self.path),
            "status": self.status(),
            "mode": self.new.as_ref().map(|(mode, _)| format!("{mode:06o}")),
        })
    }
}

/// Names of files, their modes and contents.
pub type Tree = BTreeMap<Vec<u8>, (u32, String)>;

/// The files of a commit of ours.
pub fn tree(snapshot: &Snapshot, commit: &str) -> Result<Tree> {
    parse_tree(&snapshot.git().run(&["ls-tree", "-r", "-z", "--full-tree", commit], b"")?)
}

/// What `ls-tree -r -z` prints.
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

/// Fetches what has changed, and leaves it as the commit [`CAME`].
pub async fn fetch(guest: &mut Guest, kept: &Kept, track: &Track) -> Result<()> {
    let place = kept.record.guest_path.clone();
    track.stage("look", &format!("looking for changes in {place}"));
    let entries = guest.list(&place).await.map_err(|error| match &error {
        Error::Guest(failure) if failure.kind == FailureKind::NotFound => Error::Refused(format!(
            "there is no workspace at {place} in the sandbox any more"
        ))
        .advise(format!(
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
    // The user's ignored files stay there.
    let private = kept.private()?;
    let mut present = present(entries);
    present.retain(|name, _| !private.contains_key(name));
    let new = unignored(guest, kept, &present, &known).await?;
    let mut wanted = new;
    let mut changes = Vec::new();
    let names: Vec<Vec<u8>> = known.keys().filter(|name| present.contains_key(*name)).cloned().collect();
    let digests = guest.digests(&place, kept.record.algorithm, names.clone()).await?;
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
    track.stage("fetch", &format!("{} from {place}", count(wanted.len())));
    let meter = track.meter(bytes);
    let request = Request::GetFiles { directory: place };
    guest.call(request, move |call| take(call, &snapshot, wanted, (bytes, meter), &known, changes)).await
}

fn count(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

fn too_much() -> Error {
    Error::Refused(format!("more than {} GiB have changed in the sandbox", MAX_FETCHED >> 30))
        .advise("list what should stay there in a `.gitignore` in the sandbox.")
}

/// A file in the sandbox, as its listing has it.
struct Present {
    mode: u32,
    size: u64,
}

/// The files that git could have in a tree.
fn present(entries: Vec<Entry>) -> HashMap<Vec<u8>, Present> {
    let file = |entry: Entry| {
        let mode = match entry.kind {
            Kind::File if entry.mode & 0o100 != 0 => PROGRAM,
            Kind::File => FILE,
            Kind::Symlink => SYMLINK,
            Kind::Directory | Kind::Other => return None,
        };
        is_proper(&entry.name).then_some((entry.name, Present { mode, size: entry.size }))
    };
    entries.into_iter().filter_map(file).collect()
}

/// The new files that are not ignored there.
async fn unignored(
    guest: &mut Guest,
    kept: &Kept,
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
            let asked: HashSet<_> = lists.into_iter().collect();
            let mut files = Vec::new();
            each(call, limit, |name, entry| {
                let mut content = Vec::new();
                entry.take(ignored::MAX_SIZE).read_to_end(&mut content).map_err(from_io)?;
                if asked.contains(name) {
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

/// Gives each entry of the archive that comes to `take`, and waits for the end of the request. Of more than
/// `limit` bytes the rest is not read.
fn each(
    call: &mut Call,
    limit: u64,
    mut take: impl FnMut(&[u8], &mut tar::Entry<'_, Bounded<Take<&mut Call>>>) -> Result<()>,
) -> Result<()> {
    let mut archive = Archive::new(Bounded::new(Read::take(&mut *call, limit)));
    for entry in archive.entries().map_err(from_io)? {
        let mut entry = entry.map_err(from_io)?;
        let name = entry.path_bytes().into_owned();
        take(&name, &mut entry)?;
    }
    call.finish()
}

/// Takes what comes into the snapshot.
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
        // What was not asked for, or comes twice, is nothing that an agent of ours sends.
        if !missing.remove(name) {
            return Err(garbage());
        }
        let path = name.to_vec();
        let (mode, content) = match entry.header().entry_type() {
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(garbage)?.into_owned();
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
            _ => return Err(garbage()),
        };
        changes.push(Change::Put { mode, content, path });
        Ok(())
    })?;
    // They went away between the listing and now.
    changes.extend(
        missing.into_iter().filter(|path| known.contains_key(path)).map(|path| Change::Remove { path }),
    );
    importer.commit(CAME, Some(&format!("{SENT}^0")), &changes)
}

/// From what to what a difference is told.
#[derive(Debug)]
pub struct Range {
    base: String,
    git: super::git::Git,
}

impl Range {
    /// From what was sent, or from a commit of the user's repository, to what came.
    pub fn new(kept: &Kept, base: Option<&str>) -> Result<Self> {
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

    fn run(&self, how: &[&str]) -> Result<Vec<u8>> {
        let options = ["diff-tree", "-r", "--no-ext-diff", "--no-textconv", "--no-renames", "--no-color"];
        self.git.run(
            &[&options[..], how, &[&format!("{}^{{tree}}", self.base), &format!("{CAME}^{{tree}}")]].concat(),
            b"",
        )
    }

    /// A patch that `git apply` takes.
    pub fn patch(&self) -> Result<Vec<u8>> {
        self.run(&["-p", "--binary", "--full-index", "--src-prefix=a/", "--dst-prefix=b/"])
    }

    /// How much has changed in each file, for people.
    pub fn stat(&self) -> Result<Vec<u8>> {
        self.run(&["--stat"])
    }

    /// What has changed.
    pub fn differences(&self) -> Result<Vec<Difference>> {
        parse_differences(&self.run(&["-z"])?).ok_or_else(|| {
            Error::Refused("cannot compare with git: unexpected output of `git diff-tree`".to_owned())
        })
    }
}

/// What `diff-tree -z` prints: `:MODE MODE ID ID STATUS`, a zero byte, the path, and a zero byte.
fn parse_differences(raw: &[u8]) -> Option<Vec<Difference>> {
    let mut fields = raw.split(|byte| *byte == 0);
    let mut differences = Vec::new();
    while let Some(meta) = fields.next().filter(|meta| !meta.is_empty()) {
        let path = fields.next()?.to_vec();
        let meta = std::str::from_utf8(meta).ok()?.strip_prefix(':')?;
        let words: Vec<&str> = meta.split(' ').collect();
        let [old_mode, new_mode, old_id, new_id, _] = words[..] else { return None };
        let side = |mode: &str, id: &str| {
            let mode = u32::from_str_radix(mode, 8).ok()?;
            Some((mode != 0).then(|| (mode, id.to_owned())))
        };
        differences.push(Difference { old: side(old_mode, old_id)?, new: side(new_mode, new_id)?, path });
    }
    Some(differences)
}

/// The names, as a message has them.
pub fn some_of(paths: &[Vec<u8>]) -> String {
    const MOST: usize = 5;
    let mut shown: Vec<String> = paths.iter().take(MOST).map(|path| Shown(path).to_string()).collect();
    if paths.len() > MOST {
        shown.push(format!("{} more", paths.len() - MOST));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn differences_are_read_whatever_the_names_are() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let zero = "0".repeat(40);
        let raw = format!(
            ":100644 100755 {a} {b} M\0x y\nz\0:000000 120000 {zero} {b} A\0l\0:100644 000000 {a} {zero} D\0d\0"
        );
        let read = parse_differences(raw.as_bytes()).unwrap();
        let told: Vec<_> = read.iter().map(|one| (one.status(), one.path.as_slice())).collect();
        assert_eq!(told, [("modified", &b"x y\nz"[..]), ("added", b"l"), ("deleted", b"d")]);
        assert_eq!(read[0].new, Some((PROGRAM, b)));
        assert_eq!((&read[1].old, &read[2].new), (&None, &None));
        assert_eq!(parse_differences(b"garbage\0x\0"), None);
        assert_eq!(parse_differences(b""), Some(Vec::new()));
    }

    #[test]
    fn names_that_lead_out_are_none_of_a_workspace() {
        let entry = |name: &[u8]| Entry { kind: Kind::File, mode: 0o644, size: 1, name: name.to_vec() };
        let present =
            present(vec![entry(b"../x"), entry(b".git/config"), entry(b"a/.GIT/x"), entry(b"fine")]);
        assert_eq!(present.into_keys().collect::<Vec<_>>(), [b"fine"]);
    }
}
