//! What git is in the middle of here: a merge, a rebase, a bisection.
//!
//! A merge, a cherry-pick or a revert that waits for the user consists of the index, of one or a few commits beside
//! HEAD, and of a message. It goes along, so that `git commit` in the sandbox ends it there. A rebase needs commits
//! that a shallow repository does not have: it stays here, and is named.

use std::io::Read;

use rustix::fs::FileType;

use super::{
    files::{Found, Root},
    source::Repository,
};
use crate::error::Result;

/// As much of a message as goes along.
const MAX_TEXT: u64 = 1 << 20;
/// As many commits are merged at once.
const MAX_HEADS: usize = 64;

/// Files of git that name the commits which are being taken in.
const HEADS: [&str; 3] = ["MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD"];
/// What git has written for the commit that ends it.
const TEXTS: [&str; 2] = ["MERGE_MSG", "MERGE_MODE"];

/// What git is in the middle of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Files of git's that go along, and what is in them.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// The commits that they name.
    pub commits: Vec<String>,
    /// What stays here, such as `rebase`.
    pub left: Vec<&'static str>,
}

impl Unfinished {
    /// Looks at a repository. Its files are only read, and never through a symbolic link.
    pub fn find(repository: &Repository) -> Result<Self> {
        let root = Root::open(&repository.git_dir)?;
        let is_directory =
            |name: &str| matches!(root.look(name.as_bytes()), Ok(Some(Found::Other(FileType::Directory))));
        let mut found = Self::default();
        for (name, what) in
            [("rebase-merge", "rebase"), ("rebase-apply", "rebase"), ("sequencer", "sequence of commits")]
        {
            if is_directory(name) {
                let is_am = name == "rebase-apply" && read(&root, "rebase-apply/applying").is_some();
                found.left.push(if is_am { "`git am`" } else { what });
            }
        }
        // What such a file says then belongs to a step of the whole.
        if found.left.is_empty() {
            found.take_heads(repository, &root)?;
        }
        if read(&root, "BISECT_LOG").is_some() {
            found.left.push("bisection");
        }
        Ok(found)
    }

    fn take_heads(&mut self, repository: &Repository, root: &Root) -> Result<()> {
        for name in HEADS {
            let Some(content) = read(root, name) else { continue };
            let mut commits = Vec::new();
            for line in content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let id = String::from_utf8_lossy(line).into_owned();
                let is_id = matches!(id.len(), 40 | 64) && id.bytes().all(|byte| byte.is_ascii_hexdigit());
                let commit = format!("{id}^{{commit}}");
                if !is_id
                    || commits.len() == MAX_HEADS
                    || repository.git().line(&["rev-parse", "-q", "--verify", &commit])?.is_none()
                {
                    self.left.push(if name == "MERGE_HEAD" { "merge" } else { "commit of another branch" });
                    return Ok(());
                }
                commits.push(id);
            }
            self.files.push((name, content));
            self.commits.extend(commits);
        }
        if !self.files.is_empty() {
            self.files.extend(TEXTS.into_iter().filter_map(|name| Some((name, read(root, name)?))));
        }
        Ok(())
    }
}

/// A file of git's that is not too long.
fn read(root: &Root, name: &str) -> Option<Vec<u8>> {
    let Ok(Some(Found::File(file, facts))) = root.look(name.as_bytes()) else { return None };
    let mut content = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut content).ok()?;
    (facts.size <= MAX_TEXT).then_some(content)
}
