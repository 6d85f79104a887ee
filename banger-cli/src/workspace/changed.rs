//! Finds files on the host that differ from what was sent.
//!
//! A command in a sandbox must not run old code silently, and the check must be cheaper than sending. So the stamps
//! of files are compared first ([`stamps`](super::stamps)), and only files whose stamps differ are read.

use std::collections::HashSet;

use super::{
    export::Tree,
    files::Root,
    metadata::is_filtered,
    prepare::SendOptions,
    record::StoredWorkspace,
    snapshot::SENT,
    source::{DisplayPath, Mode, Repository, SUBMODULE},
    stamps::{StampReader, Stamps, now},
    untracked::Untracked,
};
use crate::error::{Error, Result};

/// Names of files that differ from what was sent, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ChangedFiles {
    /// Files with another content or mode, and new files.
    pub changed: Vec<Vec<u8>>,
    /// Files that were sent and no longer exist.
    pub gone: Vec<Vec<u8>>,
}

impl ChangedFiles {
    /// Compares the files on the host with what was sent. Updates the stamps of unchanged files.
    pub fn find(kept: &StoredWorkspace) -> Result<Self> {
        let commit = kept.snapshot().commit(SENT)?;
        let private = kept.private()?;
        let known = Stamps::load(&kept.directory, &commit);
        let mut sent: Option<Tree> = None;
        let mut stamps = match &known {
            Some(stamps) => stamps.clone(),
            None => {
                let mut stamps = Stamps::default();
                let sent = sent.insert(kept.sent()?);
                sent.keys().for_each(|path| stamps.put(path, None, 0));
                stamps
            }
        };
        let root = Root::open(&kept.record.source)?;
        let mut looker = StampReader::new(&root);
        let failed = |path: &[u8], source| Error::io(format!("read {}", DisplayPath(path)), source);
        let (mut differing, mut unsure) = (Self::default(), Vec::new());
        for path in stamps.names() {
            match looker.stamp(path).map_err(|source| failed(path, source))? {
                Some(stamp) if stamps.matches(path, &stamp) => {}
                Some(_) => unsure.push(path.clone()),
                None => differing.gone.push(path.clone()),
            }
        }
        for path in not_sent(kept, &private, &mut stamps)? {
            if looker.stamp(&path).map_err(|source| failed(&path, source))?.is_some() {
                differing.changed.push(path);
            }
        }
        if !unsure.is_empty() {
            let sent = match sent {
                Some(sent) => sent,
                None => kept.sent()?,
            };
            for path in unsure {
                let now = now();
                let stamp = looker.stamp(&path).map_err(|source| failed(&path, source))?;
                let here =
                    root.digest(&path, kept.record.algorithm).map_err(|source| failed(&path, source))?;
                if here.is_some() && here.as_ref() == sent.get(&path) {
                    stamps.put(&path, stamp, now);
                } else {
                    differing.changed.push(path);
                }
            }
        }
        differing.changed.sort_unstable();
        differing.changed.dedup();
        if known.as_ref() != Some(&stamps) {
            // The stamps only save work in the next comparison.
            let _ = stamps.save(&kept.directory, &commit);
        }
        Ok(differing)
    }

    /// Returns the number of files.
    pub fn len(&self) -> usize {
        self.changed.len() + self.gone.len()
    }

    /// Returns whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all names.
    pub fn names(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.changed.iter().chain(&self.gone)
    }

    /// Returns the first file whose changes are not committed either, so that only the user has them.
    pub fn first_uncommitted(&self, repository: &Repository) -> Result<Option<Vec<u8>>> {
        if self.is_empty() {
            return Ok(None);
        }
        let git = repository.git();
        let base = match &repository.head.commit {
            Some(commit) => commit.clone(),
            None => String::from_utf8_lossy(&git.run(&["hash-object", "-t", "tree", "--stdin"], b"")?)
                .trim()
                .to_owned(),
        };
        let staged = git.run(
            &[
                "diff-index",
                "--cached",
                "-z",
                "--name-only",
                "--no-ext-diff",
                "--ignore-submodules=dirty",
                &base,
            ],
            b"",
        )?;
        let staged: HashSet<&[u8]> = staged.split(|byte| *byte == 0).collect();
        let names: HashSet<&[u8]> = self.names().map(Vec::as_slice).collect();
        let root = Root::open(&repository.root)?;
        for entry in repository.tracked()? {
            if entry.mode == SUBMODULE || !names.contains(entry.path.as_slice()) {
                continue;
            }
            let found = root
                .digest(&entry.path, repository.algorithm)
                .map_err(|source| Error::io(format!("read {}", DisplayPath(&entry.path)), source))?;
            let is_as_in_index = match found {
                None => entry.skipped,
                Some((mode, id)) => (mode, &id) == (entry.mode, &entry.id) || is_filtered(&root, &entry),
            };
            if !is_as_in_index || staged.contains(entry.path.as_slice()) {
                return Ok(Some(entry.path));
            }
        }
        // Files that were removed from the index but are in the commit.
        Ok(self.names().find(|name| staged.contains(name.as_slice())).cloned())
    }
}

/// Returns files that would be sent now and were not sent before. If the index is unchanged, git need not be asked.
fn not_sent(kept: &StoredWorkspace, private: &Tree, stamps: &mut Stamps) -> Result<Vec<Vec<u8>>> {
    let record = &kept.record;
    let wanted = SendOptions::of(record);
    if record.mode == Mode::Shallow && !wanted.takes_untracked() && stamps.index_is_unchanged() {
        return Ok(Vec::new());
    }
    let repository = Repository::open(&record.source)?;
    let mut newer = Stamps::default();
    newer.put_index(&repository.index(), now());
    let tracked = match record.mode {
        Mode::Shallow => repository.tracked()?,
        Mode::FullCopy => repository.tracked_with_submodules()?,
    };
    stamps.extend(newer);
    let mut names: Vec<Vec<u8>> =
        tracked.into_iter().filter(|entry| entry.mode != SUBMODULE).map(|entry| entry.path).collect();
    // A file that was ignored and is now tracked must be part of what comes back.
    names.retain(|name| !stamps.has(name) || private.contains_key(name));
    if wanted.takes_untracked() {
        let untracked = Untracked::find(&repository, wanted.include_untracked, &wanted.include)?;
        names.extend(untracked.sent.into_iter().filter(|name| !stamps.has(name)));
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}
