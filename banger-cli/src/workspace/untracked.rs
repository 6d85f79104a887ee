//! Which of the files that git does not track go into a sandbox.
//!
//! They stay here unless somebody asks for them: for all that are not ignored (`--include-untracked`), or for some
//! by name (`--include`), ignored ones too. An ignored file is one that its owner wants in no commit, such as a
//! file with passwords. So it goes one way: it is never part of what comes back, and no copy of it is kept.

use std::{
    collections::HashSet,
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{git::Git, source::Repository};
use crate::error::{Error, Result};

/// Patterns that name files which git does not track.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Include {
    /// In the words of git (gitglossary(7), pathspec).
    pub patterns: Vec<String>,
    /// The directory from which they are meant, below the top of the work tree.
    pub directory: PathBuf,
}

/// Files that git does not track.
#[derive(Debug, Default)]
pub struct Untracked {
    /// Those that go along, private ones too.
    pub sent: Vec<Vec<u8>>,
    /// Those of them that are ignored.
    pub private: HashSet<Vec<u8>>,
    /// How many that are not ignored stay here.
    pub left: usize,
    /// Repositories within this one, which stay here.
    pub nested: Vec<Vec<u8>>,
}

impl Untracked {
    /// Looks for them.
    pub fn find(repository: &Repository, all: bool, include: &Include) -> Result<Self> {
        let mut found = Self::default();
        let mut seen = HashSet::new();
        let visible = include.list(repository, &["-o", "--exclude-standard"])?;
        let ignored = include.list(repository, &["-o", "-i", "--exclude-standard"])?;
        let others = repository.untracked()?;
        found.private.extend(ignored.iter().filter(|path| !is_nested(path)).cloned());
        let left = others.iter().filter(|path| !is_nested(path)).count();
        for path in
            visible.into_iter().chain(ignored).chain(others.into_iter().filter(|path| all || is_nested(path)))
        {
            if !seen.insert(path.clone()) {
                continue;
            }
            let to = if is_nested(&path) { &mut found.nested } else { &mut found.sent };
            to.push(path);
        }
        found.left = left - (found.sent.len() - found.private.len()).min(left);
        Ok(found)
    }
}

/// Git names a repository within another one with a slash behind it, and does not look into it.
fn is_nested(path: &[u8]) -> bool {
    path.ends_with(b"/")
}

impl Include {
    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Each pattern must name something, or it has a mistake in it.
    pub fn check(&self, repository: &Repository) -> Result<()> {
        for pattern in &self.patterns {
            let one = Self { patterns: vec![pattern.clone()], directory: self.directory.clone() };
            if one.list(repository, &["-c", "-o"])?.is_empty() {
                let place = repository.root.join(&self.directory);
                return Err(Error::Refused(format!(
                    "no file in {} matches `--include {pattern}`",
                    place.display()
                ))
                .advise("`git ls-files --others --ignored --exclude-standard` lists the ignored ones."));
            }
        }
        Ok(())
    }

    /// What of these kinds the patterns name, as paths from the top of the work tree.
    fn list(&self, repository: &Repository, kinds: &[&str]) -> Result<Vec<Vec<u8>>> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let mut words: Vec<OsString> = ["ls-files", "-z", "--full-name"].map(Into::into).into();
        words.extend(kinds.iter().map(Into::into));
        words.push("--".into());
        words.extend(self.patterns.iter().map(Into::into));
        let list = Git::within(&repository.root.join(&self.directory)).run(&words, b"")?;
        Ok(list.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect())
    }
}

/// Lines for `info/exclude` by which git in a sandbox ignores exactly these files, whatever list they were ignored
/// by here (gitignore(5)). A name with a line feed cannot be written there.
pub fn ignore_lines<'a>(private: impl Iterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut names: Vec<&Vec<u8>> = private.filter(|name| !name.contains(&b'\n')).collect();
    names.sort_unstable();
    for name in names {
        lines.push(b'/');
        for byte in name {
            if matches!(byte, b'\\' | b'*' | b'?' | b'[' | b' ') {
                lines.push(b'\\');
            }
            lines.push(*byte);
        }
        lines.push(b'\n');
    }
    lines
}

/// The directory from which patterns are meant.
pub fn directory_of(repository: &Repository) -> PathBuf {
    Path::new(&repository.prefix).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ignores_exactly_one_file() {
        let names: Vec<Vec<u8>> =
            [&b".env"[..], b"a/b*?[x]\\ ", b"#x", b"odd\nname", b"\xff"].map(<[u8]>::to_vec).into();
        let lines = ignore_lines(names.iter());
        assert_eq!(lines, b"/#x\n/.env\n/a/b\\*\\?\\[x]\\\\\\ \n/\xff\n");
    }
}
