//! Brings the branches of a workspace back as commits, with their messages, authors and merges.
//!
//! ```text
//!   sandbox: git upload-pack ──► upload_pack ──► quarantine: index-pack, rev-list ──► objects, refs/banger/NAME/*
//!             hostile            counted          checked                             the user's repository
//! ```
//!
//! git in the sandbox sends the pack, and everything that it says is bounded and checked on the host. The repository in
//! the sandbox began with a commit of the host, so what was done on top of it fits the host's history. Nothing is checked
//! out, no hook runs, and only refs below `refs/banger/` change, besides a new branch that was asked for.

mod quarantine;
mod upload_pack;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    time::Duration,
};

use banger_proto::{
    bus::names::VM_INTERFACE,
    guest::{Exec, FailureKind, Request},
};
use serde_json::{Value, json};

use self::{
    quarantine::{Quarantine, lines},
    upload_pack::{Branches, ENDED, Negotiation, UploadPack, cannot},
};
use super::{apply::sent_from, git::Git, record::StoredWorkspace, source::Repository, stop::to_the_end};
use crate::{
    error::{Error, Result},
    guest::agent::{Call, Guest},
    ui::progress::{Meter, Track},
};

/// How long git in the sandbox may send nothing. It sends something every five seconds while it looks for objects.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Limit on the commits that are named as known. The newest come first.
const MAX_HAVES: usize = 256;
/// Limit on the shallow commits of the user's repository that are named.
const MAX_SHALLOW: usize = 1000;
/// Limit on the list of uncommitted files.
const MAX_STATUS: usize = 1 << 20;
/// The name of a commit that is checked out without a branch.
const DETACHED: &str = "HEAD";

/// A branch that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its name in the sandbox.
    pub name: String,
    /// The ref on the host.
    pub reference: String,
    /// Its commit.
    pub commit: String,
    /// The commit that the ref had before.
    pub old: Option<String>,
    /// How many commits the repository did not have.
    pub new_commits: u64,
}

/// What was fetched.
#[derive(Debug)]
pub struct Commits {
    /// The branches.
    pub branches: Vec<Fetched>,
    /// The ref of what is checked out in the sandbox.
    pub current: Option<String>,
    /// The branch that was created on the host.
    pub created: Option<String>,
    /// Files that are not committed in the sandbox.
    pub uncommitted: Vec<Vec<u8>>,
}

impl Commits {
    /// Returns the branches that are new or have moved.
    pub fn moved(&self) -> impl Iterator<Item = &Fetched> {
        self.branches.iter().filter(|one| one.old.as_ref() != Some(&one.commit))
    }

    /// Returns the JSON object that a command prints.
    pub fn json(&self, kept: &StoredWorkspace) -> Value {
        let branch = |one: &Fetched| {
            json!({
                "name": one.name,
                "ref": one.reference,
                "commit": one.commit,
                "old_commit": one.old,
                "new_commits": one.new_commits,
            })
        };
        json!({
            "guest_path": kept.record.guest_path,
            "source": kept.record.source,
            "branches": self.branches.iter().map(branch).collect::<Value>(),
            "current": self.current,
            "branch": self.created,
            "uncommitted": self.uncommitted.iter().map(|path| String::from_utf8_lossy(path)).collect::<Value>(),
        })
    }
}

/// Fetches the branches of a workspace to `refs/banger/NAME/`, and creates a branch at what is checked out there if one
/// is named.
pub async fn fetch(
    guest: &mut Guest,
    kept: &StoredWorkspace,
    branch: Option<&str>,
    track: &Track,
) -> Result<Commits> {
    let sandbox = guest.bus().properties(guest.vm(), VM_INTERFACE).await?.text("Name").to_owned();
    let target = Target::open(kept, &sandbox, branch)?;
    track.stage("fetch", &format!("commits from {}", kept.record.guest_path));
    let (stored, meter) = (kept.clone(), track.meter(0));
    let request = Request::Exec(git(kept, &["upload-pack", &kept.record.guest_path]));
    let fetched = guest.call(request, move |call| target.fetch(&stored, call, meter)).await;
    let commits = fetched.map_err(|error| without_git(error, &kept.record.guest_path))?;
    Ok(Commits { uncommitted: uncommitted(guest, kept).await?, ..commits })
}

/// Returns the request for a command of git in the sandbox. Whatever it does there is the guest's business.
fn git(kept: &StoredWorkspace, arguments: &[&str]) -> Exec {
    let words = ["git", "-c", "safe.directory=*"].iter().chain(arguments);
    let variables = [("GIT_PROTOCOL", "version=2"), ("GIT_OPTIONAL_LOCKS", "0"), ("LC_ALL", "C")];
    Exec {
        argv: words.map(ToString::to_string).collect(),
        cwd: Some("/".to_owned()),
        user: Some(kept.record.owner().to_owned()),
        env: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..Exec::default()
    }
}

fn without_git(error: Error, guest_path: &str) -> Error {
    match &error {
        Error::Guest(failure) if failure.kind == FailureKind::NotFound => Error::Refused(format!(
            "cannot fetch the commits of {guest_path}: git is not installed in the sandbox"
        ))
        .with_hint(
            "`banger vm exec NAME -- apt-get install -y git` installs it in an image of Debian; `banger vm \
                     workspace export NAME` brings the work back without it.",
        ),
        _ => error,
    }
}

/// Returns the files that are not committed in the sandbox, as far as git there names them.
async fn uncommitted(guest: &mut Guest, kept: &StoredWorkspace) -> Result<Vec<Vec<u8>>> {
    let arguments = ["-C", &kept.record.guest_path, "status", "--porcelain", "--no-renames", "-z"];
    let status = guest.call(Request::Exec(git(kept, &arguments)), |call| {
        call.end_input()?;
        call.limit_idle(IDLE_LIMIT)?;
        let mut status = Vec::new();
        while let Some(bytes) = call.output()? {
            status.extend(bytes);
            if status.len() > MAX_STATUS {
                break;
            }
        }
        Ok(status)
    });
    Ok(parse_status(&status.await?))
}

/// Parses the output of `status --porcelain --no-renames -z`: two letters, a space, the path, and a zero byte.
fn parse_status(status: &[u8]) -> Vec<Vec<u8>> {
    status.split(|byte| *byte == 0).filter_map(|entry| entry.get(3..)).map(<[u8]>::to_vec).collect()
}

/// The repository that gets the commits.
struct Target {
    repository: Repository,
    /// What its refs begin with.
    prefix: String,
    /// The refs that it has there.
    old: BTreeMap<String, String>,
    /// The branch to create.
    branch: Option<String>,
}

impl Target {
    /// Opens the repository that was sent, and checks what can be checked before anything is asked of the sandbox.
    fn open(kept: &StoredWorkspace, sandbox: &str, branch: Option<&str>) -> Result<Self> {
        let repository = sent_from(kept)?;
        if let Some(branch) = branch {
            check_new_branch(&repository.git(), branch)?;
        }
        if let Some(commit) = &kept.record.commit
            && repository.git().line(&["cat-file", "-t", commit])?.is_none()
        {
            return Err(Error::Refused(format!(
                "{} no longer has the commit {commit}, which was sent",
                repository.root.display()
            ))
            .with_hint(
                "`banger vm workspace export NAME` brings the work back as a patch, and with `--apply` into the work \
                 tree.",
            ));
        }
        let prefix = format!("refs/banger/{sandbox}/");
        let old = refs(&repository.git(), &prefix)?;
        Ok(Self { repository, prefix, old, branch: branch.map(str::to_owned) })
    }

    fn fetch(self, kept: &StoredWorkspace, call: &mut Call, meter: Meter) -> Result<Commits> {
        call.limit_idle(IDLE_LIMIT)?;
        let done = self.talk(kept, call, meter);
        // What git in the sandbox has said explains best why it ended.
        done.map_err(|error| match (&error, call.notes().into_iter().next_back()) {
            (Error::Refused(text), Some(note)) if text.ends_with(ENDED) => {
                let note = note.strip_prefix("fatal: ").unwrap_or(&note);
                cannot(&format!("git in the sandbox refuses: {note}"))
            }
            _ => error,
        })
    }

    fn talk(&self, kept: &StoredWorkspace, call: &mut Call, meter: Meter) -> Result<Commits> {
        let mut server = UploadPack::begin(&mut *call, kept.record.algorithm)?;
        let Branches { mut tips, head, current } = server.branches()?;
        let is_detached = current.as_ref().is_none_or(|name| !tips.contains_key(name));
        if let Some(head) = head.filter(|_| is_detached) {
            tips.insert(DETACHED.to_owned(), head);
        }
        let current = if is_detached { DETACHED.to_owned() } else { current.unwrap_or_default() };
        let all: Vec<String> = tips.values().collect::<HashSet<_>>().into_iter().cloned().collect();
        self.check_names(tips.keys())?;
        let quarantine = Quarantine::create(&self.repository)?;
        let wants = self.missing(&all)?;
        if !wants.is_empty() {
            let wanted = Negotiation { wants, haves: self.haves(kept)?, shallow: self.shallow()? };
            let mut receiver = quarantine.receive(meter)?;
            let sent = server.fetch(&wanted, &mut receiver);
            // If git has stopped to read, it says why.
            match sent {
                Err(Error::Io { .. }) => receiver.finish().and(sent)?,
                sent => sent.and_then(|()| receiver.finish())?,
            }
        }
        server.end()?;
        quarantine.check(&all)?;
        to_the_end(|| quarantine.release().and_then(|()| self.store(tips, &current)))
    }

    /// Checks that git takes the names of the branches, before their commits are stored.
    fn check_names<'a>(&self, names: impl Iterator<Item = &'a String>) -> Result<()> {
        let git = self.repository.git();
        let new =
            names.map(|name| format!("{}{name}", self.prefix)).filter(|name| !self.old.contains_key(name));
        for reference in new {
            if !git.output(&["check-ref-format", &reference], b"")?.status.success() {
                let name = reference.strip_prefix(&self.prefix).unwrap_or(&reference);
                return Err(cannot(&format!("{name} in the sandbox is not a valid name for a branch")));
            }
        }
        Ok(())
    }

    /// Returns those of these commits that the repository does not have.
    fn missing(&self, ids: &[String]) -> Result<Vec<String>> {
        let found = self.repository.git().run(&["cat-file", "--batch-check"], lines(ids).as_bytes())?;
        let found = String::from_utf8_lossy(&found).into_owned();
        Ok(found.lines().filter_map(|line| line.strip_suffix(" missing")).map(str::to_owned).collect())
    }

    /// Returns commits that the repository has with their history: what was sent, and its newest refs.
    fn haves(&self, kept: &StoredWorkspace) -> Result<Vec<String>> {
        let count = format!("--count={MAX_HAVES}");
        let newest = ["for-each-ref", "--sort=-committerdate", "--format=%(objectname)", &count];
        let newest = self.repository.git().run(&newest, b"")?;
        let newest = String::from_utf8_lossy(&newest).into_owned();
        let mut seen = HashSet::new();
        let sent = kept.record.commit.iter().cloned().chain(self.repository.head.commit.clone());
        Ok(sent.chain(newest.lines().map(str::to_owned)).filter(|id| seen.insert(id.clone())).collect())
    }

    /// Returns the commits whose parents the repository does not have, if it is a shallow clone.
    fn shallow(&self) -> Result<Vec<String>> {
        let Some(path) = self.repository.git().line(&["rev-parse", "--git-path", "shallow"])? else {
            return Ok(Vec::new());
        };
        let list =
            fs::read_to_string(self.repository.root.join(super::source::os(&path))).unwrap_or_default();
        Ok(list.lines().take(MAX_SHALLOW).map(str::to_owned).collect())
    }

    /// Points the refs to the commits.
    fn store(&self, tips: BTreeMap<String, String>, current: &str) -> Result<Commits> {
        let git = self.repository.git();
        let mut branches = Vec::new();
        for (name, commit) in tips {
            let reference = format!("{}{name}", self.prefix);
            let old = self.old.get(&reference).cloned();
            let new_commits = match old.as_ref() == Some(&commit) {
                true => 0,
                false => count_new(&git, &commit)?,
            };
            branches.push(Fetched { name, reference, commit, old, new_commits });
        }
        update(
            &git,
            &in_the_way(&self.old, &branches).map(|name| format!("delete {name}\0\0")).collect::<String>(),
        )?;
        let mut updates: String =
            branches.iter().map(|one| format!("update {}\0{}\0\0", one.reference, one.commit)).collect();
        let current = branches.iter().find(|one| one.name == current);
        if let Some(branch) = &self.branch {
            let commit = current.map(|one| &one.commit).ok_or_else(|| {
                Error::Refused(format!("cannot create the branch {branch}: the sandbox has no commits"))
            })?;
            updates.push_str(&format!("create refs/heads/{branch}\0{commit}\0"));
        }
        update(&git, &updates)?;
        let current = current.map(|one| one.reference.clone());
        Ok(Commits { branches, current, created: self.branch.clone(), uncommitted: Vec::new() })
    }
}

/// Returns refs of an earlier fetch that cannot exist beside the new ones: `a` beside `a/b`.
fn in_the_way<'a>(old: &'a BTreeMap<String, String>, new: &'a [Fetched]) -> impl Iterator<Item = &'a String> {
    let is_below =
        |name: &str, above: &str| name.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    old.keys().filter(move |old| {
        new.iter().any(|one| is_below(&one.reference, old) || is_below(old, &one.reference))
    })
}

/// Changes refs: all, or none.
fn update(git: &Git, updates: &str) -> Result<()> {
    if updates.is_empty() {
        return Ok(());
    }
    let done = git.run(&["update-ref", "-z", "--stdin", "-m", "banger: fetch"], updates.as_bytes());
    done.map(drop).map_err(|error| {
        let cause = error.causes().join(" ");
        Error::Refused(format!("cannot store the branches of the sandbox: {cause}"))
    })
}

/// Counts the commits that no ref of the repository reaches.
fn count_new(git: &Git, commit: &str) -> Result<u64> {
    let count = git.run(&["rev-list", "--count", commit, "--not", "--all"], b"")?;
    Ok(String::from_utf8_lossy(&count).trim().parse().unwrap_or_default())
}

/// Returns the refs below a prefix, with their commits.
fn refs(git: &Git, prefix: &str) -> Result<BTreeMap<String, String>> {
    let list = git.run(&["for-each-ref", "--format=%(refname) %(objectname)", prefix], b"")?;
    let list = String::from_utf8_lossy(&list).into_owned();
    Ok(list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect())
}

/// Checks that a branch can be created.
pub(super) fn check_new_branch(git: &Git, branch: &str) -> Result<()> {
    if branch.starts_with('-') || git.line(&["check-ref-format", "--branch", branch])?.is_none() {
        return Err(Error::Refused(format!("{branch} is not a valid name for a branch")));
    }
    if git.line(&["rev-parse", "-q", "--verify", &format!("refs/heads/{branch}")])?.is_some() {
        return Err(Error::Refused(format!("the branch {branch} already exists"))
            .with_hint("choose another name, or delete it with `git branch -D`."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_of_an_earlier_fetch_give_way() {
        let old = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), String::new())).collect();
        let new = |name: &str| Fetched {
            name: name.to_owned(),
            reference: name.to_owned(),
            commit: String::new(),
            old: None,
            new_commits: 0,
        };
        for (before, after, expect) in [
            (&["p/a"][..], "p/a", &[][..]),
            (&["p/a"], "p/a/b", &["p/a"]),
            (&["p/a/b", "p/a/c", "p/ab"], "p/a", &["p/a/b", "p/a/c"]),
            (&["p/ab"], "p/a", &[]),
        ] {
            let (old, new): (BTreeMap<_, _>, _) = (old(before), [new(after)]);
            assert_eq!(in_the_way(&old, &new).collect::<Vec<_>>(), expect, "{before:?} {after}");
        }
    }

    #[test]
    fn uncommitted_files_are_named() {
        assert_eq!(parse_status(b" M a b\0?? new\nline\0"), [b"a b".to_vec(), b"new\nline".to_vec()]);
        for odd in [&b""[..], b"\0\0", b"x", b"ab"] {
            assert_eq!(parse_status(odd), Vec::<Vec<u8>>::new());
        }
    }
}
