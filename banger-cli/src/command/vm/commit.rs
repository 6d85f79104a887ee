//! `banger vm commit`.

use banger_proto::bus::{ErrorName, option::commit as option, proxy::Options};
use clap::Args;
use zbus::Variant;

use crate::{
    client::{bus::Bus, job::Jobs, service::Kind},
    command::add,
    error::{Error, Result},
    ui::{
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

/// Make an image of a stopped sandbox's system disk
///
/// New sandboxes of the image start with everything that was installed or changed in this one. The work disk (/root)
/// is not part of it. Histories and logs stay on the disk; `banger image build` makes images without them. Each new
/// sandbox gets a machine id of its own.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm stop web && banger vm commit web tool

Next: `banger vm run --image tool`.")]
pub struct Commit {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Name for the image
    #[arg(value_name = "NEW-IMAGE")]
    name: String,
    /// Replace your image of the same name
    #[arg(long)]
    force: bool,
    /// Print the image as a JSON object instead of its name
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Commit {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        let jobs = Jobs::of(&bus);
        let mut listener = Signals::catch()?.listen();
        let options = Options::from([(option::FORCE, Variant::from(self.force))]);
        let begun = bus.commit_vm(&vm, &self.name, &options).await;
        let job = begun.map_err(|error| hint(error).about(&self.sandbox))?;
        jobs.finish(&bus, &job, progress.track(None), &mut listener).await?;
        let image = bus.find(Kind::Image, &self.name).await?;
        add::print(&bus, Kind::Image, &image, self.json).await
    }
}

/// Adds a hint for a sandbox that runs and for a name that is taken.
fn hint(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::InvalidState) => error.with_hint("`banger vm stop NAME` stops it."),
        Some(ErrorName::NameTaken) => {
            error.with_hint("choose another name, or replace the image with `--force`.")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_commit() {
        use crate::ui::wording::{check, of_service, shown};

        let by_name = [ErrorName::InvalidState, ErrorName::NameTaken, ErrorName::Busy];
        check(
            "hints_of_commit",
            &shown(by_name.map(|name| (name.as_str(), hint(of_service(name)).about("web")))),
        );
    }
}
