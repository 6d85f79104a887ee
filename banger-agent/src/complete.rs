//! Completes paths of the guest for a shell of the host.

use std::{fs, os::unix::ffi::OsStrExt, path::Path};

/// Limit on the names of one answer: more than a person looks at.
const MAX_NAMES: usize = 500;
/// Limit on the entries that are looked at, in a directory of any size.
const MAX_ENTRIES: usize = 50_000;

/// Returns the entries of a directory whose names begin with this text, sorted; directories with a slash at the end.
/// Names that are no text are left out, and hidden ones unless the text begins with a dot.
pub fn names(directory: &Path, begin: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let is_wanted = |name: &[u8]| {
        name.starts_with(begin.as_bytes()) && (begin.starts_with('.') || !name.starts_with(b"."))
    };
    let mut names: Vec<String> = entries
        .take(MAX_ENTRIES)
        .flatten()
        .filter(|entry| is_wanted(entry.file_name().as_bytes()))
        .take(MAX_NAMES)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // A link to a directory counts as one.
            let slash = if entry.path().is_dir() { "/" } else { "" };
            Some(name + slash)
        })
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{ffi::OsStr, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn names_are_sorted_and_directories_end_in_a_slash() {
        let dir = tempfile::tempdir().unwrap();
        for name in [&b"hosts"[..], b"hostname", b"passwd", b".hidden", b"h\xff"] {
            fs::write(dir.path().join(OsStr::from_bytes(name)), "").unwrap();
        }
        fs::create_dir(dir.path().join("home")).unwrap();
        symlink("home", dir.path().join("hlink")).unwrap();
        symlink("/nowhere/at/all", dir.path().join("hbroken")).unwrap();
        assert_eq!(names(dir.path(), "h"), ["hbroken", "hlink/", "home/", "hostname", "hosts"]);
        assert_eq!(names(dir.path(), "host"), ["hostname", "hosts"]);
        assert_eq!(names(dir.path(), ".h"), [".hidden"]);
        assert_eq!(names(dir.path(), "").len(), 6);
        assert_eq!(names(&dir.path().join("nowhere"), ""), [""; 0]);
    }

    #[test]
    fn an_answer_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..MAX_NAMES + 10 {
            fs::write(dir.path().join(number.to_string()), "").unwrap();
        }
        assert_eq!(names(dir.path(), "").len(), MAX_NAMES);
    }
}
