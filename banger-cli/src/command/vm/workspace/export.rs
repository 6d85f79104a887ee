//! `banger vm workspace export`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use banger_proto::count::counted;
use clap::Args;
use serde_json::{Value, json};

use super::{fetch::Fetch, stored};
use crate::{
    command::vm::workspace_args::guest_path,
    error::{Error, Result},
    guest::agent::Guest,
    ui::{
        output,
        progress::{Progress, ProgressArgs},
    },
    workspace::{
        apply::{self, Dirty},
        export::{self, Difference, Range},
        record::{StoredWorkspace, reference},
    },
};

/// Bring back the changes in a workspace
///
/// Prints the changes since the workspace was sent, including commits made in the sandbox, as a patch for `git apply`,
/// or applies them to the work tree that was sent. Nothing changes in the sandbox: neither files,
/// nor the index, nor branches.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm workspace export web | git apply
  banger vm workspace export web -o work.patch
  banger vm workspace export web --stat          only which files have changed
  banger vm workspace export web --apply         into the work tree that was sent
  banger vm workspace export web --branch work   as a commit on a new branch

Ignored files stay in the sandbox. --apply refuses a work tree with changes that were neither sent
nor committed. With --merge, texts that changed on both sides are merged; if one of them cannot be
merged, nothing is changed.")]
pub struct Export {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Export the workspace at this path in the sandbox [default: the one that was sent last]
    #[arg(long, value_name = "PATH", value_parser = guest_path)]
    guest_path: Option<String>,
    /// Compare with this revision of the repository instead of with what was sent
    #[arg(long, value_name = "REVISION", conflicts_with_all = ["apply", "branch"])]
    base_commit: Option<String>,
    /// Write the patch to this file
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["apply", "branch", "stat"])]
    output: Option<PathBuf>,
    /// Apply the changes to the work tree that was sent
    #[arg(long, conflicts_with = "branch")]
    apply: bool,
    /// Merge into files that have changed on the host since they were sent
    #[arg(long, alias = "force", short_alias = 'f', requires = "apply")]
    merge: bool,
    /// Put the changes on a new branch of the repository, as one commit
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
    /// Bring back the commits themselves, as `banger vm workspace fetch` does
    #[arg(long, conflicts_with_all = ["base_commit", "output", "apply", "message", "stat", "json"])]
    commits: bool,
    /// Message of that commit
    #[arg(short, long, value_name = "TEXT", requires = "branch")]
    message: Option<String>,
    /// Print how much has changed in each file instead of the patch
    #[arg(long)]
    stat: bool,
    /// Print a JSON object with the names of the files instead of the patch
    #[arg(long, conflicts_with = "stat")]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Export {
    pub async fn run(&self) -> Result<u8> {
        if self.commits {
            let (path, branch) = (self.guest_path.as_deref(), self.branch.as_deref());
            return Fetch::of_export(&self.sandbox, path, branch, self.json, self.progress).run().await;
        }
        let progress = Progress::new(self.progress);
        let mut guest = Guest::of(&self.sandbox).await?;
        let kept = stored(&guest, &self.sandbox, self.guest_path.as_deref())?;
        let track = progress.track(None);
        export::fetch(&mut guest, &kept, &track).await.map_err(|error| error.about(&self.reference()))?;
        drop(track);
        let differences = self.put(&kept)?;
        match (self.json, differences) {
            (true, Some(differences)) => output::json(&self.json_of(&kept, &differences))?,
            (false, Some(differences)) if !self.stat => {
                let files = counted(differences.len(), "file");
                let location = match &self.branch {
                    Some(branch) => format!("on the branch {branch} of {}", kept.record.source.display()),
                    None => format!("in {}", kept.record.source.display()),
                };
                progress.note(&format!("{files} changed {location}."));
            }
            _ => {}
        }
        Ok(0)
    }

    /// Returns the workspace as the user would type it.
    fn reference(&self) -> String {
        reference(&self.sandbox, self.guest_path.as_deref())
    }

    /// Applies the changes as requested. Returns them if they are to be printed.
    fn put(&self, kept: &StoredWorkspace) -> Result<Option<Vec<Difference>>> {
        let range = Range::new(kept, self.base_commit.as_deref())?;
        if self.stat {
            output::bytes(&range.stat()?)?;
        }
        if self.apply {
            let dirty = if self.merge { Dirty::Merge } else { Dirty::Refuse };
            let applied = apply::to_work_tree(kept, dirty);
            return applied.map(Some).map_err(|error| error.about(&self.reference()));
        }
        if let Some(branch) = &self.branch {
            let message =
                self.message.clone().unwrap_or_else(|| format!("Work from the sandbox {}", self.sandbox));
            return apply::to_branch(kept, branch, &message).map(Some);
        }
        if let Some(path) = &self.output {
            write_whole(path, &range.patch()?)?;
        } else if !self.stat && !self.json {
            output::bytes(&range.patch()?)?;
        }
        if self.json { range.differences().map(Some) } else { Ok(None) }
    }

    fn json_of(&self, kept: &StoredWorkspace, differences: &[Difference]) -> Value {
        json!({
            "guest_path": kept.record.guest_path,
            "source": kept.record.source,
            "base_commit": self.base_commit.clone().or_else(|| kept.record.commit.clone()),
            "files": differences.iter().map(Difference::json).collect::<Value>(),
        })
    }
}

/// Writes a file, completely or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::io(format!("write {}", path.display()), source);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .tempfile_in(directory)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
