//! Unfinished operations of git: a merge, a rebase, a bisection.
//!
//! A merge, a cherry-pick or a revert that waits for the user consists of the index, one or a few commits besides
//! HEAD, and a message. These are sent, so that `git commit` in the sandbox completes it. A rebase needs commits that
//! a shallow repository does not have, so it is not sent, but reported.

use std::io::Read;

use rustix::fs::FileType;

use super::{
    files::{Found, Root},
    source::Repository,
};
use crate::error::Result;

/// Limit on the size of a message.
const MAX_TEXT: u64 = 1 << 20;
/// Limit on the commits of a merge.
const MAX_HEADS: usize = 64;

/// Git's files with the commits that are being merged.
const HEADS: [&str; 3] = ["MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD"];
/// Git's files for the commit that completes it.
const TEXTS: [&str; 2] = ["MERGE_MSG", "MERGE_MODE"];

/// An unfinished operation of git.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Git's files to send, with their contents.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// The commits that they name.
    pub commits: Vec<String>,
    /// Operations that are not sent, such as `rebase`.
    pub left: Vec<&'static str>,
}

impl Unfinished {
    /// Reads the state of a repository, without following symbolic links.
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
        // Such a file then belongs to a step of a larger operation.
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

/// Reads one of git's files, unless it is too long.
fn read(root: &Root, name: &str) -> Option<Vec<u8>> {
    let Ok(Some(Found::File(file, facts))) = root.look(name.as_bytes()) else { return None };
    let mut content = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut content).ok()?;
    (facts.size <= MAX_TEXT).then_some(content)
}
