//! A repository as git reports it: its paths, its HEAD, and its index.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use banger_proto::guest::message::Algorithm;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::git::Git;
use crate::error::{Error, Result};

/// How much of a repository goes into a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The files, and only the checked-out commit of the history
    #[default]
    Shallow,
    /// The files, those of submodules too, and all of `.git`
    #[value(alias = "full_copy")]
    FullCopy,
}

/// A repository with a work tree.
#[derive(Debug, Clone)]
pub struct Repository {
    /// The top of the work tree.
    pub root: PathBuf,
    /// The given path relative to the work tree, empty or with a trailing slash.
    pub prefix: OsString,
    /// The git directory of this work tree: `.git`, or a directory in the main work tree's.
    pub git_dir: PathBuf,
    /// The directory of objects.
    pub objects: PathBuf,
    /// The hash function of its object names.
    pub algorithm: Algorithm,
    /// What is checked out.
    pub head: Head,
}

/// What is checked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The branch, such as `refs/heads/main`; `None` for a detached HEAD.
    pub branch: Option<String>,
    /// The commit; `None` before the first.
    pub commit: Option<String>,
}

/// An entry of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// `100644`, `100755`, `120000`, or `160000` for a submodule.
    pub mode: u32,
    /// The object name of its content.
    pub id: String,
    /// 0, or 1 to 3 during a merge with conflicts.
    pub stage: u8,
    /// Whether it is excluded from a sparse checkout.
    pub skipped: bool,
    /// The file's attributes when it last matched the index.
    pub stat: Stat,
    /// Its name.
    pub path: Vec<u8>,
}

/// Modification time in seconds and nanoseconds, and the lower 32 bits of the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// The time.
    pub mtime: (i64, i64),
    /// The length.
    pub size: u32,
}

/// The mode of a submodule in a tree.
pub const SUBMODULE: u32 = 0o160000;
/// The mode of a symbolic link in a tree.
pub const SYMLINK: u32 = 0o120000;
/// The mode of an executable file.
pub const PROGRAM: u32 = 0o100755;
/// The mode of any other file.
pub const FILE: u32 = 0o100644;

impl Repository {
    /// Opens the repository that contains this path.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let path = path.canonicalize().map_err(|source| Error::io(format!("read {shown}"), source))?;
        if !path.is_dir() {
            return Err(Error::Refused(format!("{shown} is not a directory"))
                .with_hint("give a directory of a repository; `banger vm cp` copies a single file."));
        }
        let git = Git::within(&path);
        let kind = git.output(&["rev-parse", "--is-bare-repository", "--is-inside-work-tree"], b"")?;
        match (kind.status.success(), kind.stdout.as_slice()) {
            (true, b"false\ntrue\n") => {}
            (true, b"true\nfalse\n") => {
                return Err(bare(&path));
            }
            (true, _) => {
                return Err(Error::Refused(format!(
                    "{shown} is inside the `.git` directory of a repository"
                ))
                .with_hint("give the directory above `.git`."));
            }
            (false, _) => return Err(refused(&path, &String::from_utf8_lossy(&kind.stderr))),
        }
        let answer = |what: &[&str]| {
            let line = git.line(what)?.ok_or_else(|| refused(&path, "unexpected output"))?;
            Ok::<_, Error>(OsString::from_vec(line))
        };
        let text = |line: Option<Vec<u8>>| line.and_then(|line| String::from_utf8(line).ok());
        let objects = PathBuf::from(answer(&["rev-parse", "--git-path", "objects"])?);
        Ok(Self {
            root: answer(&["rev-parse", "--show-toplevel"])?.into(),
            prefix: answer(&["rev-parse", "--show-prefix"])?,
            git_dir: answer(&["rev-parse", "--absolute-git-dir"])?.into(),
            objects: if objects.is_absolute() { objects } else { path.join(objects) },
            algorithm: match answer(&["rev-parse", "--show-object-format"])?.as_bytes() {
                b"sha256" => Algorithm::Sha256,
                _ => Algorithm::Sha1,
            },
            head: Head {
                branch: text(git.line(&["symbolic-ref", "-q", "HEAD"])?),
                commit: text(git.line(&["rev-parse", "-q", "--verify", "HEAD^{commit}"])?),
            },
        })
    }

    /// Returns whether its files, its settings and its objects are all in this directory, which has no links in its
    /// path. Objects of another repository are outside.
    pub fn is_within(&self, directory: &Path) -> bool {
        let is_inside = |path: &Path| path.canonicalize().is_ok_and(|path| path.starts_with(directory));
        let (packs, alternates) = (self.objects.join("pack"), self.objects.join("info/alternates"));
        // A repository without packs need not have the directory.
        let has_own_packs = is_inside(&packs) || packs.symlink_metadata().is_err();
        let common = self.objects.parent().is_some_and(is_inside);
        let is_inside = [&self.root, &self.git_dir, &self.index(), &self.objects]
            .map(|path| is_inside(path) || (*path == self.index() && path.symlink_metadata().is_err()));
        !is_inside.contains(&false) && common && has_own_packs && alternates.symlink_metadata().is_err()
    }

    /// Returns the path of its index.
    pub fn index(&self) -> PathBuf {
        self.git_dir.join("index")
    }

    /// Returns git in this repository.
    pub fn git(&self) -> Git {
        Git::within(&self.root)
    }

    /// Returns the commit of a revision.
    pub fn commit(&self, revision: &str) -> Result<String> {
        let wanted = format!("{revision}^{{commit}}");
        let found = self.git().line(&["rev-parse", "-q", "--verify", "--end-of-options", &wanted])?;
        found.and_then(|line| String::from_utf8(line).ok()).ok_or_else(|| {
            Error::Refused(format!("there is no commit {revision} in {}", self.root.display()))
                .with_hint("`git log` and `git branch --all` list the commits and branches.")
        })
    }

    /// Returns the current commit of HEAD.
    pub fn head_now(root: &Path) -> Result<Option<String>> {
        let line = Git::within(root).line(&["rev-parse", "-q", "--verify", "HEAD^{commit}"])?;
        Ok(line.and_then(|line| String::from_utf8(line).ok()))
    }

    /// Returns the entries of the index.
    pub fn tracked(&self) -> Result<Vec<Tracked>> {
        parse_index(&self.git().run(&["ls-files", "-z", "-s", "-t", "--debug"], b"")?).ok_or_else(|| {
            Error::Refused("cannot read the git index: unexpected output of `git ls-files`".to_owned())
        })
    }

    /// Returns the entries of the index and of the submodules' indexes, without file attributes.
    pub fn tracked_with_submodules(&self) -> Result<Vec<Tracked>> {
        let list = self.git().run(&["ls-files", "-z", "-s", "-t", "--recurse-submodules", "--debug"], b"")?;
        parse_index(&list).ok_or_else(|| {
            Error::Refused("cannot read the git index: unexpected output of `git ls-files`".to_owned())
        })
    }

    /// Returns files that are neither tracked nor ignored. Nested repositories have a trailing slash.
    pub fn untracked(&self) -> Result<Vec<Vec<u8>>> {
        let list = self.git().run(&["ls-files", "-z", "-o", "--exclude-standard"], b"")?;
        Ok(list.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// Returns the files of a commit.
    pub fn files_of(&self, commit: &str) -> Result<Vec<Tracked>> {
        parse_tree(&self.git().run(&["ls-tree", "-r", "-z", "--full-tree", commit], b"")?).ok_or_else(|| {
            Error::Refused("cannot read a tree of git: unexpected output of `git ls-tree`".to_owned())
        })
    }
}

fn bare(path: &Path) -> Error {
    Error::Refused(format!("{} is a bare repository: it has no files", path.display()))
        .with_hint("clone it, and give the clone.")
}

/// Explains why git does not accept a directory as a repository.
fn refused(path: &Path, said: &str) -> Error {
    let shown = path.display();
    if said.contains("dubious ownership") {
        return Error::Refused(format!("git refuses to read {shown}: it belongs to another user"))
            .with_hint(format!("if you trust it: `git config --global --add safe.directory {shown}`."));
    }
    if said.contains("cannot use bare repository") {
        return bare(path);
    }
    if said.contains("not a git repository") {
        return Error::Refused(format!("{shown} is not in a git repository"))
            .with_hint("`git init` makes it one; `banger vm cp` copies any directory into a sandbox.");
    }
    Error::Refused(format!("git cannot read {shown}: {}", said.trim().trim_start_matches("fatal: ")))
}

/// Parses the output of `ls-files -z -s -t --debug`: for each entry a letter, mode, object name, stage, a tab, the
/// path and a zero byte, then five lines of file attributes.
fn parse_index(mut list: &[u8]) -> Option<Vec<Tracked>> {
    const DEBUG_LINES: usize = 5;
    let mut entries = Vec::new();
    while !list.is_empty() {
        let end = list.iter().position(|byte| *byte == 0)?;
        let (entry, rest) = (&list[..end], &list[end + 1..]);
        let length = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(DEBUG_LINES - 1)?.0 + 1;
        let (debug, rest) = rest.split_at(length);
        list = rest;
        let (letter, entry) = (*entry.first()?, entry.get(2..)?);
        let stat = parse_stat(std::str::from_utf8(debug).ok()?)?;
        entries.push(Tracked { skipped: letter == b'S', stat, ..parse_entry(entry)? });
    }
    Some(entries)
}

/// Parses `MODE ID STAGE\tPATH`.
fn parse_entry(entry: &[u8]) -> Option<Tracked> {
    let tab = entry.iter().position(|byte| *byte == b'\t')?;
    let mut fields = std::str::from_utf8(&entry[..tab]).ok()?.split(' ');
    let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
    let (id, stage) = (fields.next()?.to_owned(), fields.next()?.parse().ok()?);
    Some(Tracked { mode, id, stage, skipped: false, stat: Stat::default(), path: entry[tab + 1..].to_vec() })
}

fn parse_stat(debug: &str) -> Option<Stat> {
    let value = |name: &str| {
        debug
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(name))
            .and_then(|rest| rest.split(['\t', ' ']).next().map(str::to_owned))
    };
    let mtime = value("mtime: ")?;
    let (seconds, nanoseconds) = mtime.split_once(':')?;
    // The index has 32 bits for each.
    let mtime = (i64::from(seconds.parse::<u32>().ok()?), nanoseconds.parse().ok()?);
    Some(Stat { mtime, size: value("size: ")?.parse().ok()? })
}

/// Parses the output of `ls-tree -r -z`: `MODE TYPE ID\tPATH` and a zero byte.
fn parse_tree(list: &[u8]) -> Option<Vec<Tracked>> {
    let entries = list.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let tab = entry.iter().position(|byte| *byte == b'\t')?;
            let mut fields = std::str::from_utf8(&entry[..tab]).ok()?.split(' ');
            let (mode, _, id) = (fields.next()?, fields.next()?, fields.next()?.to_owned());
            let mode = u32::from_str_radix(mode, 8).ok()?;
            let path = entry[tab + 1..].to_vec();
            Some(Tracked { mode, id, stage: 0, skipped: false, stat: Stat::default(), path })
        })
        .collect()
}

/// Formats a path of a repository for people.
pub struct DisplayPath<'a>(pub &'a [u8]);

impl fmt::Display for DisplayPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if !text.contains(char::is_control) => f.write_str(text),
            _ => write!(f, "\"{}\"", self.0.escape_ascii()),
        }
    }
}

/// Converts a path of a repository for the system.
pub fn os(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_index_is_parsed_with_any_names() {
        let debug = "  ctime: 1:2\n  mtime: 1795266148:504\n  dev: 1\tino: 2\n  uid: 0\tgid: 0\n  size: 4123\tflags: 0\n";
        let id = "7593b35f84be40eca0c54497ffa0ab7dddbcf557";
        let mut list = format!("H 100644 {id} 0\ta b\n\tc\0{debug}S 120000 {id} 0\t").into_bytes();
        list.extend(b"\xff\0");
        list.extend(debug.bytes());
        list.extend(format!("M 100755 {id} 2\tx\0{debug}").bytes());
        let entries = parse_index(&list).unwrap();
        let seen: Vec<_> = entries.iter().map(|e| (e.path.as_slice(), e.mode, e.stage, e.skipped)).collect();
        assert_eq!(
            seen,
            [(&b"a b\n\tc"[..], FILE, 0, false), (b"\xff", SYMLINK, 0, true), (b"x", PROGRAM, 2, false)]
        );
        assert_eq!(entries[0].stat, Stat { mtime: (1_795_266_148, 504), size: 4123 });
        assert_eq!(entries[0].id, id);
        assert_eq!(parse_index(b"H 100644 x 0\ta\0 no debug"), None);
    }

    #[test]
    fn names_are_shown_on_one_line() {
        assert_eq!(DisplayPath("grün b".as_bytes()).to_string(), "grün b");
        assert_eq!(DisplayPath(b"a\nb").to_string(), r#""a\nb""#);
        assert_eq!(DisplayPath(b"\xff\x1b").to_string(), r#""\xff\x1b""#);
    }

    #[test]
    fn refusals_of_repositories() {
        use crate::ui::wording::{check, shown};

        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let git = |arguments: &[&str]| Git::within(dir.path()).run(arguments, b"").unwrap();
        git(&["init", "-q", "work"]);
        git(&["init", "-q", "--bare", "bare.git"]);
        std::fs::create_dir(path("plain")).unwrap();
        std::fs::write(path("file"), "").unwrap();
        let refusal = |name: &'static str| (name, Repository::open(&path(name)).unwrap_err());
        let revision = Repository::open(&path("work")).unwrap().commit("v1").unwrap_err();
        let errors = ["missing", "file", "plain", "bare.git", "work/.git"].map(refusal);
        let text = shown(errors.into_iter().chain([("work, revision v1", revision)]));
        let canonical = dir.path().canonicalize().unwrap();
        let text =
            text.replace(canonical.to_str().unwrap(), "DIR").replace(dir.path().to_str().unwrap(), "DIR");
        check("refusals_of_repositories", &text);
    }
}
