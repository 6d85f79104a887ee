//! `banger vm workspace prepare`.

use std::path::PathBuf;

use banger_proto::guest::message::Placement;
use clap::Args;
use serde_json::json;

use crate::{
    client::service::id_of,
    command::vm::workspace_args::{WorkspaceArgs, note_left, print_plan},
    error::Result,
    guest::agent::Guest,
    ssh::installed,
    ui::{
        output,
        progress::{Progress, ProgressArgs},
    },
    workspace::prepare::{self, Target},
};

/// Send a repository into a running sandbox
///
/// Sends tracked files with their uncommitted changes, and enough of git's metadata to work and to commit in the
/// sandbox. Untracked and ignored files stay on the host unless you ask for them.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm workspace prepare web
  banger vm workspace prepare web ~/src/project --guest-path /srv/project
  banger vm workspace prepare web --branch attempt --from v1.2
  banger vm workspace prepare web --dry-run      what would be sent

Next: `banger vm exec web` opens a shell, `banger vm workspace export web` brings the work back.")]
pub struct Prepare {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Directory of the repository
    #[arg(value_name = "PATH", default_value = ".")]
    path: PathBuf,
    /// Replace what is at that path, including all work done there
    #[arg(short, long)]
    force: bool,
    /// Print a JSON object about what was sent
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    workspace: WorkspaceArgs,
}

impl Prepare {
    pub async fn run(&self) -> Result<u8> {
        let plan = self.workspace.plan(&self.path)?;
        let path = self.workspace.guest_path(None);
        let progress = Progress::new(self.progress);
        if self.workspace.dry_run {
            print_plan(&plan, path, self.json)?;
            note_left(&plan, &progress, true);
            return Ok(0);
        }
        note_left(&plan, &progress, false);
        let mut guest = Guest::of(&self.sandbox).await?;
        let (count, bytes) = (plan.files.len(), plan.bytes());
        let target = Target {
            vm_id: id_of(guest.vm()),
            path: path.to_owned(),
            placement: if self.force { Placement::Replace } else { Placement::New },
        };
        let track = progress.track(None);
        track.stage("copy", &prepare::summary(count, bytes, path));
        let kept = prepare::send(&mut guest, plan, target, track.meter(bytes)).await;
        drop(track);
        let kept = kept.map_err(|error| match prepare::is_in_the_way(&error) {
            true => {
                error.with_hint("`--force` replaces what is there; `--guest-path PATH` chooses another path.")
            }
            false => error,
        });
        let record = kept.map_err(|error| error.about(&self.sandbox))?.record;
        installed::refresh(guest.bus()).await;
        if self.json {
            output::json(&json!({
                "source": record.source,
                "guest_path": record.guest_path,
                "branch": record.branch,
                "commit": record.commit,
                "files": count,
                "bytes": bytes,
            }))?;
        } else {
            output::text(&format!("{}: {} is at {path}\n", self.sandbox, record.source.display()))?;
        }
        Ok(0)
    }
}
