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
mod refs;
mod upload_pack;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    time::Duration,
};

use banger_proto::{
    bus::names::VM_INTERFACE,
    guest::{Exec, FailureKind, Request, message::Exit},
};
use serde_json::{Value, json};

use self::{
    quarantine::{Quarantine, lines},
    refs::{Locked, conflict},
    upload_pack::{Branches, ENDED, Negotiation, UploadPack, cannot},
};
use super::{
    apply::sent_from,
    git::Git,
    record::{StoredWorkspace, shell_word},
    source::Repository,
    stop::to_the_end,
};
use crate::{
    error::{Error, Result},
    guest::agent::{Call, Guest},
    ui::progress::{Meter, Track},
};

/// How long git in the sandbox may send nothing. It sends something every five seconds while it looks for objects.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Limit on the new commits of a branch that are counted.
const MAX_COUNTED: u64 = 10_000;
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
    /// Whether the old commit is not part of the new one's history.
    pub forced: bool,
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
    /// Files that are not committed in the sandbox; `None` if it does not list them.
    pub uncommitted: Option<Uncommitted>,
}

/// Files that are not committed in a sandbox.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uncommitted {
    /// Their names.
    pub files: Vec<Vec<u8>>,
    /// Whether there are more.
    pub is_cut: bool,
}

impl Uncommitted {
    /// Returns the names as text.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.files.iter().map(|path| String::from_utf8_lossy(path).into_owned())
    }
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
                "forced": one.forced,
            })
        };
        json!({
            "guest_path": kept.record.guest_path,
            "source": kept.record.source,
            "branches": self.branches.iter().map(branch).collect::<Value>(),
            "current": self.current,
            "branch": self.created,
            "uncommitted": self.uncommitted.as_ref().map(|files| files.names().collect::<Value>()),
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
    let (mut stored, meter) = (kept.clone(), track.meter(0));
    let request = Request::Exec(git(kept, &["upload-pack", &kept.record.guest_path]));
    let fetched = guest.call(request, move |call| target.fetch(&mut stored, call, meter)).await;
    let commits = fetched.map_err(|error| without_git(error, &kept.record.guest_path))?;
    let uncommitted = match uncommitted(guest, kept).await {
        Err(error) if error.is_interrupted() => return Err(error),
        listed => listed.unwrap_or_default(),
    };
    Ok(Commits { uncommitted, ..commits })
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

/// Returns the files that are not committed in the sandbox; `None` if git there fails.
async fn uncommitted(guest: &mut Guest, kept: &StoredWorkspace) -> Result<Option<Uncommitted>> {
    let arguments = ["-C", &kept.record.guest_path, "status", "--porcelain", "--no-renames", "-z"];
    let status = guest.call(Request::Exec(git(kept, &arguments)), |call| {
        call.end_input()?;
        call.limit_idle(IDLE_LIMIT)?;
        let mut status = Vec::new();
        while let Some(bytes) = call.output()? {
            status.extend(bytes);
            if status.len() > MAX_STATUS {
                return Ok(Some(parse_status(&status)));
            }
        }
        Ok((call.exit() == Some(Exit::Code(0))).then(|| parse_status(&status)))
    });
    status.await
}

/// Parses the output of `status --porcelain --no-renames -z`: two letters, a space, the path, and a zero byte.
/// What follows the last one is the beginning of an entry that was cut.
fn parse_status(status: &[u8]) -> Uncommitted {
    let mut entries: Vec<&[u8]> = status.split(|byte| *byte == 0).collect();
    let is_cut = entries.pop().is_some_and(|rest| !rest.is_empty());
    let files = entries.into_iter().filter_map(|entry| entry.get(3..)).map(<[u8]>::to_vec).collect();
    Uncommitted { files, is_cut }
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
        let prefix = refs::prefix(&repository.git(), sandbox, kept.record.fetched_to.as_deref())?;
        let old = refs::below(&repository.git(), &prefix)?;
        Ok(Self { repository, prefix, old, branch: branch.map(str::to_owned) })
    }

    fn fetch(self, kept: &mut StoredWorkspace, call: &mut Call, meter: Meter) -> Result<Commits> {
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

    fn talk(&self, kept: &mut StoredWorkspace, call: &mut Call, meter: Meter) -> Result<Commits> {
        let mut server = UploadPack::begin(&mut *call, kept.record.algorithm)?;
        let Branches { mut tips, head, current } = server.branches()?;
        let is_detached = current.as_ref().is_none_or(|name| !tips.contains_key(name));
        if let Some(head) = head.filter(|_| is_detached) {
            tips.insert(DETACHED.to_owned(), head);
        }
        let current = if is_detached { DETACHED.to_owned() } else { current.unwrap_or_default() };
        let all: Vec<String> = tips.values().collect::<HashSet<_>>().into_iter().cloned().collect();
        self.check_names(tips.keys())?;
        if let Some(branch) = self.branch.as_ref().filter(|_| !tips.contains_key(&current)) {
            return Err(Error::Refused(format!(
                "cannot create the branch {branch}: the sandbox has no commits"
            )));
        }
        let quarantine = Quarantine::create(&self.repository)?;
        let wants = self.missing(&all)?;
        if !wants.is_empty() {
            let wanted = Negotiation { wants, haves: self.haves(kept), shallow: self.shallow()? };
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
        let git = quarantine.git();
        let compare = |(name, commit)| self.compare(&git, name, commit);
        let branches: Vec<Fetched> = tips.into_iter().map(compare).collect::<Result<_>>()?;
        let current = branches.iter().find(|one| one.name == current).cloned();
        kept.update(|record| record.fetched_to = Some(self.prefix.clone()))?;
        to_the_end(|| {
            let locked = self.lock(&git, &branches, current.as_ref())?;
            match quarantine.release() {
                Ok(()) => locked.commit(),
                Err(error) => {
                    locked.abort();
                    Err(error)
                }
            }
        })?;
        let current = current.map(|one| one.reference);
        Ok(Commits { branches, current, created: self.branch.clone(), uncommitted: None })
    }

    /// Checks that git takes the names of the branches, before their commits are stored.
    fn check_names<'a>(&self, names: impl Iterator<Item = &'a String>) -> Result<()> {
        let git = self.repository.git();
        let all: Vec<String> = names.map(|name| format!("{}{name}", self.prefix)).collect();
        for reference in all.iter().filter(|name| !self.old.contains_key(*name)) {
            if !git.output(&["check-ref-format", reference], b"")?.status.success() {
                let name = reference.strip_prefix(&self.prefix).unwrap_or(reference);
                return Err(cannot(&format!("{name} in the sandbox is not a valid name for a branch")));
            }
            if let Some(other) = conflict(reference, self.old.keys().chain(&all)) {
                return Err(cannot(&format!("{reference} cannot exist beside {other}")).with_hint(format!(
                    "`git -C {} update-ref -d {}` deletes that, if you no longer need it.",
                    shell_word(&self.repository.root.display().to_string()),
                    shell_word(other),
                )));
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

    /// Returns commits that the sandbox can know: what was sent, what is checked out on the host, and what was fetched.
    fn haves(&self, kept: &StoredWorkspace) -> Vec<String> {
        let sent = kept.record.commit.iter().chain(&self.repository.head.commit);
        sent.chain(self.old.values()).collect::<BTreeSet<_>>().into_iter().cloned().collect()
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

    /// Compares a branch with what the repository has of it.
    fn compare(&self, git: &Git, name: String, commit: String) -> Result<Fetched> {
        let reference = format!("{}{name}", self.prefix);
        let old = self.old.get(&reference).cloned();
        let (mut new_commits, mut forced) = (0, false);
        if old.as_ref() != Some(&commit) {
            new_commits = count_new(git, &commit)?;
        }
        if let Some(old) = old.as_ref().filter(|old| **old != commit) {
            forced = !git.output(&["merge-base", "--is-ancestor", old, &commit], b"")?.status.success();
        }
        Ok(Fetched { name, reference, commit, old, new_commits, forced })
    }

    /// Locks the refs to change them: all, or none.
    fn lock(&self, git: &Git, branches: &[Fetched], current: Option<&Fetched>) -> Result<Locked> {
        let mut updates = String::new();
        for Fetched { reference, commit, old, .. } in branches {
            updates += &match old {
                Some(old) => format!("update {reference}\0{commit}\0{old}\0"),
                None => format!("create {reference}\0{commit}\0"),
            };
        }
        if let (Some(branch), Some(current)) = (&self.branch, current) {
            updates += &format!("create refs/heads/{branch}\0{}\0", current.commit);
        }
        Locked::prepare(git, &updates)
    }
}

/// Counts the commits that no ref of the repository reaches, up to a limit.
fn count_new(git: &Git, commit: &str) -> Result<u64> {
    let limit = format!("--max-count={MAX_COUNTED}");
    let count = git.run(&["rev-list", "--count", &limit, commit, "--not", "--all"], b"")?;
    Ok(String::from_utf8_lossy(&count).trim().parse().unwrap_or_default())
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
    let branches = refs::below(git, "refs/heads/")?;
    if let Some(other) = conflict(&format!("refs/heads/{branch}"), branches.keys()) {
        let other = other.trim_start_matches("refs/heads/");
        return Err(Error::Refused(format!("the branch {branch} cannot exist beside the branch {other}"))
            .with_hint("choose another name."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uncommitted_files_are_named() {
        let all = |files: &[&[u8]], is_cut| Uncommitted {
            files: files.iter().map(|name| name.to_vec()).collect(),
            is_cut,
        };
        assert_eq!(parse_status(b" M a b\0?? new\nline\0"), all(&[b"a b", b"new\nline"], false));
        assert_eq!(parse_status(b" M a\0?? ne"), all(&[b"a"], true));
        for odd in [&b""[..], b"\0\0"] {
            assert_eq!(parse_status(odd), all(&[], false));
        }
    }
}
