//! Refs of fetched commits on the host. They may be the only name of somebody's work: none is deleted, and each change is in
//! its reflog.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    process::{ChildStdin, ChildStdout},
};

use crate::{
    error::{Error, Result},
    workspace::git::{Git, Running},
};

/// Limit on the sandboxes of one name, and the workspaces in them, that have refs.
const MAX_PREFIXES: usize = 100;

/// Returns what the refs of a workspace begin with: what it has used before, or a name that no other has used.
pub fn prefix(git: &Git, sandbox: &str, used: Option<&str>) -> Result<String> {
    let numbered = |number| match number {
        1 => format!("refs/banger/{sandbox}/"),
        _ => format!("refs/banger/{sandbox}-{number}/"),
    };
    let mut names = (1..=MAX_PREFIXES).map(numbered);
    if let Some(used) = names.clone().find(|name| Some(name.as_str()) == used) {
        return Ok(used);
    }
    let free = names.find_map(|name| match below(git, &name) {
        Ok(refs) => refs.is_empty().then_some(Ok(name)),
        Err(error) => Some(Err(error)),
    });
    free.unwrap_or_else(|| {
        Err(Error::Refused(format!(
            "{MAX_PREFIXES} sandboxes with the name {sandbox} have refs in the repository"
        ))
        .with_hint("`git update-ref -d` deletes those that you no longer need."))
    })
}

/// Returns the refs below a prefix, with their commits.
pub fn below(git: &Git, prefix: &str) -> Result<BTreeMap<String, String>> {
    let list = git.run(&["for-each-ref", "--format=%(refname) %(objectname)", prefix], b"")?;
    let list = String::from_utf8_lossy(&list).into_owned();
    Ok(list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect())
}

/// Returns a ref that cannot exist beside this one: `a` beside `a/b`.
pub fn conflict<'a>(reference: &str, others: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let is_below =
        |name: &str, above: &str| name.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    let mut others = others;
    others.find(|other| is_below(reference, other) || is_below(other, reference))
}

/// Refs that only this process can change, until [`Self::commit`] or [`Self::abort`].
#[derive(Debug)]
pub struct Locked {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    running: Running,
}

impl Locked {
    /// Locks the refs of these updates (git-update-ref(1), `--stdin -z`), and checks that they can be made.
    pub fn prepare(git: &Git, updates: &str) -> Result<Self> {
        let mut running =
            git.start(&["update-ref", "--create-reflog", "-z", "--stdin", "-m", "banger: fetch"])?;
        let child = running.child()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::io("run git", io::ErrorKind::Other.into()));
        };
        let mut this = Self { input, output: BufReader::new(output), running };
        let asked = this.input.write_all(format!("start\0{updates}prepare\0").as_bytes());
        match asked.is_ok() && this.hears("start: ok") && this.hears("prepare: ok") {
            true => Ok(this),
            false => Err(this.finish().err().unwrap_or_else(|| cannot("git update-ref has ended"))),
        }
    }

    /// Makes the updates.
    pub fn commit(mut self) -> Result<()> {
        // If git has stopped reading, its status says why.
        let _ = self.input.write_all(b"commit\0");
        self.finish()
    }

    /// Leaves the refs as they are. A git that is killed would leave them locked.
    pub fn abort(self) {
        // An aborted transaction fails.
        let _ = self.finish();
    }

    fn hears(&mut self, expect: &str) -> bool {
        let mut line = String::new();
        self.output.read_line(&mut line).is_ok() && line.trim_end() == expect
    }

    fn finish(self) -> Result<()> {
        let Self { input, mut output, running } = self;
        drop(input);
        // Until its end, so that git can write.
        let _ = io::copy(&mut output, &mut io::sink());
        running.finish().map_err(|error| cannot(&error.causes().join(" ")))
    }
}

fn cannot(reason: &str) -> Error {
    Error::Refused(format!("cannot store the branches of the sandbox: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_that_cannot_exist_side_by_side_are_found() {
        for (reference, others, expect) in [
            ("p/a", &["p/a"][..], None),
            ("p/a/b", &["p/x", "p/a"], Some("p/a")),
            ("p/a", &["p/ab", "p/a/b"], Some("p/a/b")),
            ("p/a", &["p/ab"], None),
        ] {
            let others: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(conflict(reference, others.iter()).map(String::as_str), expect, "{reference}");
        }
    }
}
