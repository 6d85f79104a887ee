//! Finds out which files of a sandbox are ignored: by its current `.gitignore` files, by the exclude list of the
//! user's repository, and by the user's own. Git decides this, in an empty work tree with only these files.

use std::{collections::HashSet, fs, path::Path};

use super::{git::Git, source::os};
use crate::error::{Error, Result};

/// The name of files with ignore patterns.
pub const NAME: &[u8] = b".gitignore";
/// Limit on their size.
pub const MAX_SIZE: u64 = 1 << 20;

const HERE: &[u8] = b"./";

/// Returns which of these names are ignored. All names must have been checked.
pub fn ignored(exclude: &Path, files: &[(Vec<u8>, Vec<u8>)], names: &[&[u8]]) -> Result<HashSet<Vec<u8>>> {
    if names.is_empty() {
        return Ok(HashSet::new());
    }
    let failed = |source| Error::io("find out which files are ignored", source);
    let scratch = tempfile::tempdir().map_err(failed)?;
    let git = Git::within(scratch.path());
    git.run(&["init", "-q", "--template=", "."], b"")?;
    if let Ok(list) = fs::read(exclude) {
        let info = scratch.path().join(".git/info");
        fs::create_dir_all(&info).and_then(|()| fs::write(info.join("exclude"), list)).map_err(failed)?;
    }
    for (name, content) in files {
        let path = scratch.path().join(os(name));
        let parent = path.parent().unwrap_or(scratch.path());
        fs::create_dir_all(parent).and_then(|()| fs::write(&path, content)).map_err(failed)?;
    }
    // A name that begins with a colon would be a special pathspec.
    let list: Vec<u8> = names.iter().flat_map(|name| [HERE, name, &[0]].concat()).collect();
    let output = git.output(&["check-ignore", "--no-index", "-z", "--stdin"], &list)?;
    match output.status.code() {
        // Status 1 means that none is ignored.
        Some(0 | 1) => {
            let names = output.stdout.split(|byte| *byte == 0);
            Ok(names.filter_map(|name| name.strip_prefix(HERE)).map(<[u8]>::to_vec).collect())
        }
        _ => Err(failed(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ignored_files_follow_the_patterns_of_the_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let exclude = dir.path().join("exclude");
        fs::write(&exclude, "*.secret\n").unwrap();
        let files = [
            (b".gitignore".to_vec(), b"target/\n!keep.log\n".to_vec()),
            (b"sub/.gitignore".to_vec(), b"*.log\n!keep.log\n".to_vec()),
        ];
        let names: [&[u8]; 9] = [
            b":(glob)x.log",
            b"target/debug/x",
            b"src/target",
            b"sub/a.log",
            b"sub/keep.log",
            b"a.log",
            b"my.secret",
            b"new\nline",
            b"\xff.secret",
        ];
        let ignored = ignored(&exclude, &files, &names).unwrap();
        let mut ignored: Vec<_> = ignored.iter().map(Vec::as_slice).collect();
        ignored.sort_unstable();
        assert_eq!(ignored, [&b"my.secret"[..], b"sub/a.log", b"target/debug/x", b"\xff.secret"]);
    }
}
