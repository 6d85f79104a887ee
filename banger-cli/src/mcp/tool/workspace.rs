//! Tools that send a repository into a sandbox, and bring the work back.

use std::time::Duration;

use banger_proto::{count::counted, guest::message::Placement};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, Effect, Found, LONG, Tool, blocking};
use crate::{
    client::service::id_of,
    command::vm::workspace_args::{WorkspaceArgs, guest_path},
    error::{Error, Result},
    mcp::failure::{invalid, not_allowed},
    workspace::{
        apply::{self, Dirty},
        commits::{self, Commits, Fetched},
        export::{self, Difference, Range},
        prepare::{self, Target},
        record::{Records, StoredWorkspace},
        source::Repository,
    },
};

/// Arguments of `prepare`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// A directory of the repository on the host, relative to the directory that the user has chosen for this server.
    #[serde(default = "here")]
    path: String,
    /// Where to put it in the sandbox: `/root/repo` if absent.
    #[serde(default)]
    guest_path: Option<String>,
    /// Whether to send files that git neither tracks nor ignores, too.
    #[serde(default)]
    include_untracked: bool,
}

fn here() -> String {
    ".".to_owned()
}

/// Result of `prepare`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Prepared {
    /// Where it is in the sandbox. Commands run there from now on.
    guest_path: String,
    /// The branch.
    branch: Option<String>,
    /// The commit that it was at.
    commit: Option<String>,
    /// How many files were sent.
    files: usize,
    /// How many bytes were sent.
    bytes: u64,
}

impl Tool for Prepare {
    const NAME: &'static str = "prepare";
    const ABOUT: &'static str = "Sends the user's git repository into a running sandbox: the tracked files with their \
                                 uncommitted changes.";
    const TIME_LIMIT: Duration = LONG;
    const EFFECT: Effect = Effect::Adds;
    const USES_HOST_FILES: bool = true;
    type Output = Prepared;

    async fn run(self, call: Call) -> Result<Prepared> {
        let directory = call.policy().host_dir()?;
        let path = directory.resolve(&self.path)?;
        path.refuse_link()?;
        let to = self.guest_path.as_deref().map(guest_path).transpose();
        let to = to.map_err(|error| invalid(format!("cannot read guest_path: {error}")))?;
        let wishes = WorkspaceArgs::wanted(to, self.include_untracked);
        let found = call.find_for_use(&self.sandbox).await?;
        let guest_path = wishes.guest_path(None).to_owned();
        let plan =
            blocking(&call, move || wishes.plan(&path.path()).map_err(|error| path.explain(error))).await?;
        if !plan.repository.is_within(directory.path()) {
            return Err(not_allowed(format!(
                "cannot send {}: its files, its `.git` directory or its objects are outside of {}",
                plan.repository.root.display(),
                directory.path().display()
            )));
        }
        let (files, bytes) = (plan.files.len(), plan.bytes());
        let target = Target { vm_id: id_of(&found.path), path: guest_path, placement: Placement::New };
        let track = call.progress().track(None);
        track.stage("copy", &prepare::summary(files, bytes, &target.path));
        let sent = prepare::send(&mut call.guest(&found), plan, target, track.meter(bytes)).await;
        let record = sent.map_err(|error| found.about(error))?.record;
        let (guest_path, branch, commit) = (record.guest_path, record.branch, record.commit);
        Ok(Prepared { guest_path, branch, commit, files, bytes })
    }
}

/// A file that has changed in a sandbox.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Changed {
    /// Its path in the repository.
    path: String,
    /// `added`, `modified` or `deleted`.
    status: &'static str,
}

impl From<Difference> for Changed {
    fn from(difference: Difference) -> Self {
        let status = difference.status();
        Self { path: String::from_utf8_lossy(&difference.path).into_owned(), status }
    }
}

/// Arguments of `diff`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Diff {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// The repository at this path in the sandbox. The one that was sent last if absent.
    #[serde(default)]
    guest_path: Option<String>,
}

/// Result of `diff`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Differences {
    /// The files that have changed; the first 1000.
    files: Vec<Changed>,
    /// How many files have changed.
    count: usize,
    /// The changes as a patch, or its beginning.
    patch: String,
    /// Whether something is left out of the patch or of the list of files.
    truncated: bool,
}

/// How many changed files are listed.
const MAX_FILES: usize = 1000;

impl Tool for Diff {
    const NAME: &'static str = "diff";
    const ABOUT: &'static str = "Shows what has changed in a sandbox since a repository was sent, commits included, as a \
                                 patch.";
    const TIME_LIMIT: Duration = LONG;
    const EFFECT: Effect = Effect::Reads;
    type Output = Differences;

    async fn run(self, call: Call) -> Result<Differences> {
        let found = call.find_for_use(&self.sandbox).await?;
        let kept = fetch(&call, &found, self.guest_path.as_deref()).await?;
        let limit = call.policy().output_limit;
        blocking(&call, move || {
            let range = Range::new(&kept, None)?;
            let mut differences = range.differences()?;
            let (patch, is_whole) = range.patch_up_to(limit)?;
            let count = differences.len();
            differences.truncate(MAX_FILES);
            Ok(Differences {
                files: differences.into_iter().map(Changed::from).collect(),
                count,
                patch: String::from_utf8_lossy(&patch).into_owned(),
                truncated: !is_whole || count > MAX_FILES,
            })
        })
        .await
    }
}

/// Arguments of `apply`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// The repository at this path in the sandbox. The one that was sent last if absent.
    #[serde(default)]
    guest_path: Option<String>,
    /// Whether to merge into files that the user has changed since they were sent.
    #[serde(default)]
    merge: bool,
}

/// Result of `apply`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Applied {
    /// The work tree on the host.
    directory: String,
    /// The files that have changed there; the first 1000.
    files: Vec<Changed>,
    /// How many files have changed there.
    count: usize,
}

impl Tool for Apply {
    const NAME: &'static str = "apply";
    const ABOUT: &'static str = "Applies what has changed in a sandbox to the work tree on the host that was sent. Refuses if \
                                 the user has changed it since, unless `merge` is set.";
    const TIME_LIMIT: Duration = LONG;
    const EFFECT: Effect = Effect::Changes;
    const USES_HOST_FILES: bool = true;
    type Output = Applied;

    async fn run(self, call: Call) -> Result<Applied> {
        let directory = call.policy().host_dir()?;
        let found = call.find_for_use(&self.sandbox).await?;
        let kept = kept(&found, self.guest_path.as_deref())?;
        let source = kept.record.source.clone();
        // The work tree is changed only if git still finds it at this path, which then has no links.
        if !directory.contains(&source) {
            return Err(not_allowed(format!(
                "cannot change {}: it is outside of {}",
                source.display(),
                directory.path().display()
            )));
        }
        let kept = fetch(&call, &found, self.guest_path.as_deref()).await?;
        let dirty = if self.merge { Dirty::Merge } else { Dirty::Refuse };
        let mut differences = blocking(&call, move || apply::to_work_tree(&kept, dirty)).await?;
        let count = differences.len();
        call.progress().note(&format!("{} changed in {}.", counted(count, "file"), source.display()));
        differences.truncate(MAX_FILES);
        let files = differences.into_iter().map(Changed::from).collect();
        Ok(Applied { directory: source.display().to_string(), files, count })
    }
}

/// Arguments of `fetch_commits`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchCommits {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// The repository at this path in the sandbox. The one that was sent last if absent.
    #[serde(default)]
    guest_path: Option<String>,
}

/// A branch that was fetched.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Branch {
    /// Its name in the sandbox.
    name: String,
    /// The ref on the host, for `git merge`.
    #[serde(rename = "ref")]
    reference: String,
    /// Its commit.
    commit: String,
    /// How many commits the repository on the host did not have.
    new_commits: u64,
}

impl From<Fetched> for Branch {
    fn from(fetched: Fetched) -> Self {
        let Fetched { name, reference, commit, new_commits, .. } = fetched;
        Self { name, reference, commit, new_commits }
    }
}

/// Result of `fetch_commits`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FetchedCommits {
    /// The work tree on the host whose repository has the commits now.
    directory: String,
    /// The branches.
    branches: Vec<Branch>,
    /// The ref on the host of what is checked out in the sandbox.
    current: Option<String>,
    /// Files that are not committed in the sandbox, and stayed there; the first 1000. Null if git there cannot list them.
    uncommitted: Option<Vec<String>>,
}

impl Tool for FetchCommits {
    const NAME: &'static str = "fetch_commits";
    const ABOUT: &'static str = "Fetches the commits made in a sandbox into the repository on the host that was sent, to refs \
                                 below `refs/banger/`. Nothing is checked out, and no branch of the user changes.";
    const TIME_LIMIT: Duration = LONG;
    const EFFECT: Effect = Effect::Adds;
    const USES_HOST_FILES: bool = true;
    type Output = FetchedCommits;

    async fn run(self, call: Call) -> Result<FetchedCommits> {
        let found = call.find_for_use(&self.sandbox).await?;
        let kept = kept(&found, self.guest_path.as_deref())?;
        let (directory, source) = (call.policy().host_dir()?, kept.record.source.clone());
        let opened = blocking(&call, move || Repository::open(&source)).await?;
        if !directory.contains(&kept.record.source) || !opened.is_within(directory.path()) {
            return Err(not_allowed(format!(
                "cannot fetch commits into {}: its files, its `.git` directory or its objects are outside of {}",
                kept.record.source.display(),
                directory.path().display()
            )));
        }
        let track = call.progress().track(None);
        let fetched = commits::fetch(&mut call.guest(&found), &kept, None, &track).await;
        let Commits { branches, current, uncommitted, .. } = fetched.map_err(|error| found.about(error))?;
        Ok(FetchedCommits {
            directory: kept.record.source.display().to_string(),
            branches: branches.into_iter().map(Branch::from).collect(),
            current,
            uncommitted: uncommitted.map(|files| files.names().take(MAX_FILES).collect()),
        })
    }
}

fn kept(found: &Found, path: Option<&str>) -> Result<StoredWorkspace> {
    Records::of(&id_of(&found.path))?.find(path).ok_or_else(|| {
        Error::Refused(format!("no repository was sent to {}", found.reference))
            .with_hint("the tool `prepare` sends one; `read_file` and `download` fetch any file.")
    })
}

/// Fetches what has changed in a sandbox.
async fn fetch(call: &Call, found: &Found, path: Option<&str>) -> Result<StoredWorkspace> {
    let kept = kept(found, path)?;
    let fetched = export::fetch(&mut call.guest(found), &kept, &call.progress().track(None)).await;
    fetched.map_err(|error| found.about(error))?;
    Ok(kept)
}
