//! `banger vm snapshot restore`.

use banger_proto::bus::{ErrorName, option::stop, proxy::Options};
use clap::Args;
use zbus::Variant;

use crate::{
    client::{bus::Bus, job::Jobs, service::Kind},
    error::{Error, Result},
    ui::{
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

/// Put a sandbox back to a snapshot
///
/// The sandbox gets the disks of the snapshot. What it has written since is lost, unless you create another snapshot
/// first. If the snapshot has memory, the next start continues its programs. The sandbox keeps its name, addresses, disk
/// sizes and other settings, and its snapshots stay.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm snapshot restore web clean
  banger vm snapshot restore --force web clean   if it runs or is suspended

Next: `banger vm start web` starts it again.")]
pub struct Restore {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Name of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// End the sandbox first if it runs or is suspended; what is in its memory is lost
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Restore {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let about = |error: Error| hint(error).about(&self.sandbox);
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(about)?;
        let jobs = Jobs::of(&bus);
        let mut listener = Signals::catch()?.listen();
        // A signal from here on cancels the job.
        let job = match bus.restore_snapshot(&vm, &self.snapshot).await {
            // The service looks at the state last: nothing else is in the way.
            Err(error) if self.force && is_up(&error) => {
                let options = Options::from([(stop::FORCE, Variant::from(true))]);
                let job = bus.change_vm(&vm, "Stop", &options).await.map_err(about)?;
                jobs.finish(&bus, &job, progress.track(None), &mut listener).await.map_err(about)?;
                bus.restore_snapshot(&vm, &self.snapshot).await
            }
            job => job,
        };
        let job = job.map_err(about)?;
        jobs.finish(&bus, &job, progress.track(None), &mut listener).await.map_err(about)?;
        Ok(0)
    }
}

/// Returns whether a sandbox cannot be restored only because it runs or is suspended.
fn is_up(error: &Error) -> bool {
    matches!(error.name(), Some(ErrorName::InvalidState | ErrorName::Suspended | ErrorName::Paused))
}

/// Adds a hint for a sandbox that is not down.
fn hint(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::InvalidState) => {
            error.with_hint("`banger vm stop NAME` stops it, and `--force` ends it at once.")
        }
        Some(ErrorName::Suspended) => error.with_hint("`--force` discards its memory."),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_snapshot_restore() {
        use crate::ui::wording::{check, of_service, shown};

        let by_name = [ErrorName::InvalidState, ErrorName::Suspended, ErrorName::NoSuchSnapshot];
        check(
            "hints_of_snapshot_restore",
            &shown(by_name.map(|name| (name.as_str(), hint(of_service(name)).about("web")))),
        );
    }
}
