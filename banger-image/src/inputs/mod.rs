//! Inputs that other programs write or refuse, as tables that read from top to bottom: how each is built, what the
//! reference program makes of it, and what banger makes of it. `docs/images.md` has the same tables for people.
//!
//! The answers of the reference programs are in the tables. Where a program is installed, a test asks it again, so that
//! a table does not claim what is not so; where it is not, the test says so and is skipped.

#![allow(clippy::unwrap_used)]

mod archives;
mod configurations;
mod files;
mod indexes;
mod layers;
mod packings;
#[path = "../../../banger-system/tests/skip/mod.rs"]
mod skip;

use std::{path::Path, process::Command};

use crate::rootfs::{
    Error,
    entry::{Special, What},
    tar::Tar,
    tree::{Archive, Content, Kind, ROOT, Tree},
};

/// Returns what banger makes of archives: a line for each name, in order, or why they are refused.
///
/// `KIND MODE USER:GROUP PATH`, then the content of a file or the target of a symbolic link.
fn tree_of(archives: &[Vec<u8>], kind: Archive) -> Result<Vec<String>, String> {
    let (mut tree, mut contents) = (Tree::default(), Vec::new());
    for archive in archives {
        tree.begin(kind);
        add(archive, &mut tree, &mut contents).map_err(|error| error.to_string())?;
        tree.end();
    }
    let mut paths = std::collections::HashMap::from([(ROOT, String::new())]);
    let mut lines: Vec<String> = tree
        .walk()
        .map(|(parent, name, id)| {
            let path = format!("{}/{}", paths[&parent], String::from_utf8_lossy(name));
            let path = path.trim_start_matches('/').to_owned();
            let node = tree.node(id);
            let (letter, more) = match &node.kind {
                Kind::Directory(_) => ('d', String::new()),
                Kind::File(content) => {
                    ('f', format!(" {}", String::from_utf8_lossy(&contents[content.at as usize])))
                }
                Kind::Symlink(target) => ('l', format!(" {}", String::from_utf8_lossy(target))),
                Kind::Special(Special::Fifo) => ('p', String::new()),
                Kind::Special(_) => ('c', String::new()),
            };
            paths.insert(id, path.clone());
            let meta = node.meta;
            format!("{letter} {:o} {}:{} {path}{more}", meta.mode, meta.user, meta.group)
        })
        .collect();
    lines.sort_by(|one, other| path_in(one).cmp(path_in(other)));
    Ok(lines)
}

fn add(archive: &[u8], tree: &mut Tree, contents: &mut Vec<Vec<u8>>) -> Result<(), Error> {
    let mut tar = Tar::new(archive);
    while let Some(entry) = tar.next_entry()? {
        let mut content = Vec::new();
        while let bytes @ [_, ..] = tar.data()? {
            content.extend_from_slice(bytes);
            let count = bytes.len();
            tar.consume(count);
        }
        let at = contents.len() as u64;
        let size = content.len() as u64;
        if let What::File(_) = entry.what {
            contents.push(content);
        }
        tree.put(entry, Content { at, size, segments: None })?;
    }
    Ok(())
}

/// Returns what is below a directory, in the form of [`tree_of`].
fn tree_below(directory: &Path) -> Vec<String> {
    let format = "%y %m %U:%G %P\\t%l\\n";
    let found =
        Command::new("find").arg(directory).args(["-mindepth", "1", "-printf", format]).output().unwrap();
    let mut lines: Vec<String> = String::from_utf8_lossy(&found.stdout)
        .lines()
        .map(|line| {
            let (line, target) = line.split_once('\t').unwrap();
            match (line.as_bytes()[0], target) {
                (b'f', _) => {
                    let content = std::fs::read(directory.join(path_in(line))).unwrap();
                    format!("{line} {}", String::from_utf8_lossy(&content))
                }
                (b'l', target) => format!("{line} {target}"),
                _ => line.to_owned(),
            }
        })
        .collect();
    lines.sort_by(|one, other| path_in(one).cmp(path_in(other)));
    lines
}

fn path_in(line: &str) -> &str {
    line.splitn(4, ' ').nth(3).unwrap_or_default().split(' ').next().unwrap_or_default()
}

/// Returns whether a program is installed.
fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What a table expects.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// These names, in the form of [`tree_of`].
    Tree(&'static [&'static str]),
    /// Refused with these words.
    Refused(&'static str),
}
use Expect::{Refused, Tree as Is};

impl Expect {
    #[track_caller]
    fn check(self, name: &str, found: Result<Vec<String>, String>) {
        match (self, found) {
            (Is(expect), Ok(found)) => assert_eq!(found, expect, "{name}"),
            (Refused(why), Err(found)) => assert!(found.contains(why), "{name}: {found}"),
            (expect, found) => panic!("{name}: {found:?} instead of {expect:?}"),
        }
    }
}
