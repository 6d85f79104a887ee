//! Selects untracked files to send into a sandbox.
//!
//! They are sent only on request: all that are not ignored (`--include-untracked`), or some by name (`--include`),
//! including ignored ones. An ignored file must not be committed, because it may contain passwords, for instance. So
//! it is sent in one direction only: it is never part of what comes back, and no copy of it is stored.

use std::{
    collections::HashSet,
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{git::Git, source::Repository};
use crate::error::{Error, Result};

/// Patterns that select untracked files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Include {
    /// Git's pathspecs (gitglossary(7)).
    pub patterns: Vec<String>,
    /// The directory to which they are relative, below the top of the work tree.
    pub directory: PathBuf,
}

/// Untracked files of a repository.
#[derive(Debug, Default)]
pub struct Untracked {
    /// The files to send, including private ones.
    pub sent: Vec<Vec<u8>>,
    /// Those of them that are ignored.
    pub private: HashSet<Vec<u8>>,
    /// The files that are neither ignored nor sent.
    pub left: Vec<Vec<u8>>,
    /// Nested repositories, which are not sent.
    pub nested: Vec<Vec<u8>>,
}

impl Untracked {
    /// Finds untracked files.
    pub fn find(repository: &Repository, all: bool, include: &Include) -> Result<Self> {
        let mut found = Self::default();
        let mut seen = HashSet::new();
        let visible = include.list(repository, &["-o", "--exclude-standard"])?;
        let ignored = include.list(repository, &["-o", "-i", "--exclude-standard"])?;
        let others = repository.untracked()?;
        found.private.extend(ignored.iter().filter(|path| !is_nested(path)).cloned());
        let mut left: Vec<Vec<u8>> = others.iter().filter(|path| !is_nested(path)).cloned().collect();
        for path in
            visible.into_iter().chain(ignored).chain(others.into_iter().filter(|path| all || is_nested(path)))
        {
            if !seen.insert(path.clone()) {
                continue;
            }
            let to = if is_nested(&path) { &mut found.nested } else { &mut found.sent };
            to.push(path);
        }
        left.retain(|path| !seen.contains(path));
        found.left = left;
        Ok(found)
    }
}

/// Returns whether git lists this as a nested repository: with a trailing slash, and without its files.
fn is_nested(path: &[u8]) -> bool {
    path.ends_with(b"/")
}

impl Include {
    /// Returns whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Checks that each pattern matches something, because it is a mistake otherwise.
    pub fn check(&self, repository: &Repository) -> Result<()> {
        for pattern in &self.patterns {
            let one = Self { patterns: vec![pattern.clone()], directory: self.directory.clone() };
            if one.list(repository, &["-c", "-o"])?.is_empty() {
                let directory = repository.root.join(&self.directory);
                return Err(Error::Refused(format!(
                    "no file in {} matches `--include {pattern}`",
                    directory.display()
                ))
                .with_hint("`git ls-files --others --ignored --exclude-standard` lists the ignored ones."));
            }
        }
        Ok(())
    }

    /// Lists the files of these kinds that match the patterns, relative to the top of the work tree.
    fn list(&self, repository: &Repository, kinds: &[&str]) -> Result<Vec<Vec<u8>>> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let mut arguments: Vec<OsString> = ["ls-files", "-z", "--full-name"].map(Into::into).into();
        arguments.extend(kinds.iter().map(Into::into));
        arguments.push("--".into());
        arguments.extend(self.patterns.iter().map(Into::into));
        let list = Git::within(&repository.root.join(&self.directory)).run(&arguments, b"")?;
        Ok(list.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect())
    }
}

/// Returns lines for `info/exclude` that make git in a sandbox ignore exactly these files, whatever list ignores them
/// on the host (gitignore(5)). A name with a line feed cannot be listed there.
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

/// Returns the directory to which patterns are relative.
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
