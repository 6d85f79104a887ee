//! `banger vm snapshot create`.

use banger_proto::bus::{ErrorName, names::VM_INTERFACE, option::snapshot as key};
use clap::Args;

use super::row;
use crate::{
    client::{bus::Bus, job::Jobs, object::Object, service::Kind},
    error::{Error, Result},
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

/// Create a snapshot of a sandbox
///
/// A snapshot keeps the files of a sandbox, and its programs if it runs. A running sandbox pauses while its memory is
/// saved, and then continues. Under Firecracker, and where disks are not overlays of QEMU, stop the sandbox first.
///
/// A snapshot counts as a sandbox against your limits, and is deleted with its sandbox.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm snapshot create web clean

Next: `banger vm fork --from-snapshot clean web` makes a sandbox of it.")]
pub struct Create {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Name for the snapshot, unique among those of the sandbox
    #[arg(value_name = "NEW-SNAPSHOT")]
    name: String,
    /// Print the snapshot as a JSON object instead of its name
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Create {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let about = |error: Error| hint(error).about(&self.sandbox);
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(about)?;
        let jobs = Jobs::of(&bus);
        let mut listener = Signals::catch()?.listen();
        // A signal from here on cancels the job.
        let job = bus.create_snapshot(&vm, &self.name).await.map_err(about)?;
        jobs.finish(&bus, &job, progress.track(None), &mut listener).await.map_err(about)?;
        match self.json {
            true => {
                let sandbox = bus.properties(&vm, VM_INTERFACE).await?;
                let all = bus.list_snapshots(&vm).await?.into_iter().map(Object::new);
                let made = all.into_iter().find(|snapshot| snapshot.text(key::NAME) == self.name);
                let message = format!("the snapshot {} was deleted meanwhile", self.name);
                let missing = Error::Service { name: ErrorName::NoSuchSnapshot, message };
                output::json(&row(sandbox.name(), &made.ok_or(missing)?))?;
            }
            false => output::text(&format!("{}\n", self.name))?,
        }
        Ok(0)
    }
}

/// Adds a hint for a sandbox that cannot be forked as it is, and for a name that is taken.
fn hint(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::InvalidState) => error.with_hint("`banger vm stop NAME` stops it."),
        Some(ErrorName::NameTaken) => {
            error.with_hint("choose another name; `banger vm snapshot list NAME` shows those that are taken.")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_snapshot_create() {
        use crate::ui::wording::{check, of_service, shown};

        let by_name = [ErrorName::InvalidState, ErrorName::NameTaken, ErrorName::Suspended];
        check(
            "hints_of_snapshot_create",
            &shown(by_name.map(|name| (name.as_str(), hint(of_service(name)).about("web")))),
        );
    }
}
