//! `banger vm fork`.

use banger_proto::bus::{ErrorName, names::VM_INTERFACE, option::fork as option, proxy::Options};
use clap::Args;
use zbus::{OwnedObjectPath, Variant};

use super::{
    change::{self, ChangeArgs},
    numbers::positive,
};
use crate::{
    client::{bus::Bus, job::Jobs, service::Kind},
    command::batch::{self, Effect, Found},
    error::{Error, Result},
    ui::{progress::Progress, signals::Signals},
};

/// Make new sandboxes from another one, and start them
///
/// Each has the same files, sizes and settings, and a host name, addresses, ssh host key and machine id of its own.
/// Published ports stay with the original. They do not share later writes.
///
/// A running sandbox pauses while its memory is saved, and then continues. The new ones continue with its programs.
/// Under Firecracker, and where disks are not overlays of QEMU, stop the sandbox first.
///
/// Data written before the fork is shared if the disks are overlays of QEMU, and copied otherwise.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm fork web                            makes and starts web-1
  banger vm fork web -n 3                       the next three free numbers
  banger vm fork web --name left --name right
  banger vm fork --from-snapshot clean web      from its snapshot clean

Next: `banger vm exec web-1` opens a shell in one of them.")]
pub struct Fork {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// How many to make, at most 100 [default: 1, or as many as names]
    #[arg(short = 'n', long, value_name = "NUMBER", value_parser = positive)]
    count: Option<u32>,
    /// Name for a new sandbox [default: the original's name with a number]
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Make them from this snapshot of the sandbox, instead of from the sandbox as it is now
    #[arg(long, value_name = "SNAPSHOT")]
    from_snapshot: Option<String>,
    /// Make the sandboxes without starting them
    #[arg(long)]
    no_start: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Fork {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.change.progress);
        let bus = Bus::connect().await?;
        let children = self.fork(&bus, &progress).await?;
        match self.no_start {
            true => {
                let made = async |_, _| Ok(Effect::Changed);
                batch::each(children, &progress, "created", self.change.output, made).await
            }
            false => change::start(bus, children, self.change).await,
        }
    }

    /// Makes the sandboxes. Returns them with their names.
    async fn fork(&self, bus: &Bus, progress: &Progress) -> Result<Vec<Found>> {
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        let count = self.count.unwrap_or_else(|| u32::try_from(self.names.len()).unwrap_or(u32::MAX).max(1));
        let mut options = Options::new();
        if !self.names.is_empty() {
            options.insert(option::NAMES, Variant::from(self.names.clone()));
        }
        if let Some(snapshot) = &self.from_snapshot {
            options.insert(option::SNAPSHOT, Variant::from(snapshot.clone()));
        }
        let jobs = Jobs::of(bus);
        let mut listener = Signals::catch()?.listen();
        // A signal from here on cancels the job.
        let begun = bus.fork_vm(&vm, count, &options).await;
        let (children, job) = begun.map_err(|error| hint(error).about(&self.sandbox))?;
        jobs.finish(bus, &job, progress.track(None), &mut listener)
            .await
            .map_err(|error| error.about(&self.sandbox))?;
        let mut found = Vec::new();
        for child in children {
            found.push((name_of(bus, &child).await?, Ok(child)));
        }
        Ok(found)
    }
}

async fn name_of(bus: &Bus, vm: &OwnedObjectPath) -> Result<String> {
    Ok(bus.properties(vm, VM_INTERFACE).await?.name().to_owned())
}

/// Adds a hint for a sandbox that runs and for a name that is taken.
fn hint(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::InvalidState) => error.with_hint("`banger vm stop NAME` stops it."),
        Some(ErrorName::NameTaken) => error.with_hint("choose another name with `--name`."),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_fork() {
        use crate::ui::wording::{check, of_service, shown};

        let by_name = [ErrorName::InvalidState, ErrorName::NameTaken, ErrorName::TooDeep, ErrorName::Busy];
        check(
            "hints_of_fork",
            &shown(by_name.map(|name| (name.as_str(), hint(of_service(name)).about("web")))),
        );
    }
}
