//! The files of a build: those of one directory, without what `.dockerignore` excludes. No path and no link leads out
//! of it.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use glob::{MatchOptions, Pattern};

use super::instruction::read_text;
use crate::error::{Error, Result};

const IGNORE_FILE: &str = ".dockerignore";
/// The most files that a pattern may match.
const MAX_MATCHES: usize = 10_000;
/// As in Docker: a star does not match a slash.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// The directory that files are copied from.
#[derive(Debug, Clone)]
pub struct Context {
    root: PathBuf,
    ignored: Vec<Rule>,
}

/// A line of `.dockerignore`.
#[derive(Debug, Clone)]
struct Rule {
    pattern: Pattern,
    excludes: bool,
}

impl Context {
    /// Opens a directory.
    pub fn open(directory: &Path) -> Result<Self> {
        let failed = |source| Error::io(format!("read {}", directory.display()), source);
        let root = directory.canonicalize().map_err(failed)?;
        let path = root.join(IGNORE_FILE);
        let ignored = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(failed(source)),
            Ok(found) if !found.is_file() => {
                return Err(Error::Refused(format!("{} is not a regular file", path.display())));
            }
            Ok(_) => rules(&read_text(&path)?)
                .map_err(|why| Error::Refused(format!("cannot use {}: {why}", path.display())))?,
        };
        Ok(Self { root, ignored })
    }

    /// Returns the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the paths that a source means: one, or what matches a pattern.
    pub fn find(&self, source: &str) -> Result<Vec<PathBuf>, String> {
        let relative = inside(source);
        if !source.contains(['*', '?', '[']) {
            return Ok(vec![self.one(&relative, source)?]);
        }
        let pattern = format!("{}/{}", Pattern::escape(&self.root.to_string_lossy()), relative.display());
        let matches =
            glob::glob_with(&pattern, OPTIONS).map_err(|error| format!("{source}: {}", error.msg))?;
        let mut paths = Vec::new();
        for path in matches.flatten() {
            let relative = path.strip_prefix(&self.root).unwrap_or(&path).to_owned();
            if !self.ignores(&relative) {
                paths.push(self.one(&relative, source)?);
            }
            if paths.len() > MAX_MATCHES {
                return Err(format!("{source} matches more than {MAX_MATCHES} files"));
            }
        }
        match paths.is_empty() {
            true => Err(format!("nothing matches {source} in {}", self.root.display())),
            false => Ok(paths),
        }
    }

    fn one(&self, relative: &Path, source: &str) -> Result<PathBuf, String> {
        let path = self.root.join(relative).canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("there is no {source} in {}", self.root.display()),
            kind => format!("{source} cannot be read ({kind})"),
        })?;
        let Ok(relative) = path.strip_prefix(&self.root) else {
            return Err(format!("{source} leads out of {}", self.root.display()));
        };
        match self.ignores(relative) {
            true => Err(format!("{source} is excluded by {IGNORE_FILE}")),
            false => Ok(path),
        }
    }

    /// Returns whether `.dockerignore` excludes a path of the directory. The last line that matches the path, or a
    /// directory above it, decides.
    pub fn ignores(&self, relative: &Path) -> bool {
        let matches = |rule: &Rule| {
            relative
                .ancestors()
                .filter(|path| !path.as_os_str().is_empty())
                .any(|path| rule.pattern.matches_path_with(path, OPTIONS))
        };
        self.ignored.iter().rev().find(|rule| matches(rule)).is_some_and(|rule| rule.excludes)
    }

    /// Returns whether a whole directory can be left out: no later line may bring back a part of it.
    pub fn prunes(&self, relative: &Path) -> bool {
        self.ignores(relative) && self.ignored.iter().all(|rule| rule.excludes)
    }
}

fn rules(text: &str) -> Result<Vec<Rule>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rule = |line: &str| {
        let (pattern, excludes) = match line.strip_prefix('!') {
            Some(pattern) => (pattern.trim(), false),
            None => (line, true),
        };
        let path = inside(pattern);
        let pattern =
            Pattern::new(&path.to_string_lossy()).map_err(|error| format!("{line}: {}", error.msg))?;
        Ok(Rule { pattern, excludes })
    };
    lines.map(rule).collect()
}

/// Returns a path relative to the directory, without `.` and `..`, as if nothing were above the directory.
fn inside(path: &str) -> PathBuf {
    let mut inside = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::ParentDir => drop(inside.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    inside
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    fn context(files: &[&str], ignore: &str) -> (tempfile::TempDir, Context) {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        if !ignore.is_empty() {
            fs::write(directory.path().join(IGNORE_FILE), ignore).unwrap();
        }
        let context = Context::open(directory.path()).unwrap();
        (directory, context)
    }

    #[test]
    fn the_last_line_that_matches_decides() {
        let ignore = "# comment\n*.log\n!keep.log\n**/node_modules\ntarget/\n/secret\nsub/*/x\n";
        let (_directory, context) = context(&["a"], ignore);
        for (path, expect) in [
            ("a.log", true),
            ("keep.log", false),
            ("sub/a.log", false),
            ("node_modules", true),
            ("a/b/node_modules/c/d", true),
            ("target/debug/x", true),
            ("secret", true),
            ("sub/secret", false),
            ("sub/1/x", true),
            ("sub/1/2/x", false),
        ] {
            assert_eq!(context.ignores(Path::new(path)), expect, "{path}");
        }
        assert!(!context.prunes(Path::new("target")), "a later line may bring back a part");
    }

    #[test]
    fn sources_are_found_and_never_outside() {
        let (directory, context) = context(&["a.txt", "b.txt", "sub/c.txt", "no.txt"], "no.txt");
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("key"), "secret").unwrap();
        symlink(outside.path(), directory.path().join("out")).unwrap();
        symlink("a.txt", directory.path().join("link.txt")).unwrap();
        symlink(outside.path().join("key"), directory.path().join("key.txt")).unwrap();
        let found = |source: &str| match context.find(source) {
            Ok(paths) => {
                let relative =
                    |path: &PathBuf| path.strip_prefix(context.root()).unwrap().display().to_string();
                paths.iter().map(relative).collect::<Vec<_>>().join(" ")
            }
            Err(why) => format!("error: {why}"),
        };
        assert_eq!(found("a.txt"), "a.txt");
        assert_eq!(found("/sub/../a.txt"), "a.txt");
        assert_eq!(found("../../a.txt"), "a.txt");
        assert_eq!(found("."), "");
        assert_eq!(found("link.txt"), "a.txt");
        assert_eq!(found("[ab].txt"), "a.txt b.txt");
        assert_eq!(found("sub/*"), "sub/c.txt");
        for (source, expect) in [
            ("missing", "there is no missing"),
            ("x*", "nothing matches x*"),
            ("no.txt", "no.txt is excluded by .dockerignore"),
            ("out/key", "out/key leads out of"),
            ("out", "out leads out of"),
            ("key.txt", "key.txt leads out of"),
            ("k*.txt", "k*.txt leads out of"),
            ("[", "["),
        ] {
            assert!(
                found(source).starts_with("error: ") && found(source).contains(expect),
                "{}",
                found(source)
            );
        }
    }
}
