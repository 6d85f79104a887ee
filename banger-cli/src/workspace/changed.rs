//! Which files here are not as they were sent.
//!
//! A command in a sandbox must not run old code without a word, and looking must not cost what sending costs. So
//! the stamps of the files decide first ([`stamps`](super::stamps)), and only files whose stamps differ are read.

use std::collections::HashSet;

use super::{
    export::Tree,
    files::Root,
    metadata::is_filtered,
    prepare::Wanted,
    record::Kept,
    snapshot::SENT,
    source::{Mode, Repository, SUBMODULE, Shown},
    stamps::{Looker, Stamps, now},
    untracked::Untracked,
};
use crate::error::{Error, Result};

/// Names of files that are not as they were sent, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differing {
    /// They have another content or mode, or were not sent at all.
    pub changed: Vec<Vec<u8>>,
    /// They were sent, and are not there any more.
    pub gone: Vec<Vec<u8>>,
}

impl Differing {
    /// Compares the files here with what was sent. What turns out to be the same is remembered.
    pub fn find(kept: &Kept) -> Result<Self> {
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
        let mut looker = Looker::new(&root);
        let failed = |path: &[u8], source| Error::io(format!("read {}", Shown(path)), source);
        let (mut differing, mut unsure) = (Self::default(), Vec::new());
        for path in stamps.names() {
            match looker.stamp(path).map_err(|source| failed(path, source))? {
                Some(stamp) if stamps.agrees(path, &stamp) => {}
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
            // It only saves the next comparison some work.
            let _ = stamps.save(&kept.directory, &commit);
        }
        Ok(differing)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.changed.len() + self.gone.len()
    }

    /// Whether everything is as it was sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of their names.
    pub fn names(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.changed.iter().chain(&self.gone)
    }

    /// The first of them that is not committed either, so that nobody but the user has it.
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
                .map_err(|source| Error::io(format!("read {}", Shown(&entry.path)), source))?;
            let is_as_in_index = match found {
                None => entry.skipped,
                Some((mode, id)) => (mode, &id) == (entry.mode, &entry.id) || is_filtered(&root, &entry),
            };
            if !is_as_in_index || staged.contains(entry.path.as_slice()) {
                return Ok(Some(entry.path));
            }
        }
        // What was taken out of the index, but is in the commit.
        Ok(self.names().find(|name| staged.contains(name.as_slice())).cloned())
    }
}

/// What would be sent now and was not then. While the index is as it was, git need not be asked.
fn not_sent(kept: &Kept, private: &Tree, stamps: &mut Stamps) -> Result<Vec<Vec<u8>>> {
    let record = &kept.record;
    let wanted = Wanted::of(record);
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
    // What was ignored and is tracked now has to be part of what comes back.
    names.retain(|name| !stamps.has(name) || private.contains_key(name));
    if wanted.takes_untracked() {
        let untracked = Untracked::find(&repository, wanted.include_untracked, &wanted.include)?;
        names.extend(untracked.sent.into_iter().filter(|name| !stamps.has(name)));
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}
