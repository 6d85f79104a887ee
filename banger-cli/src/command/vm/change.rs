//! Shared code of the commands that change many sandboxes at once.

use banger_proto::bus::{ErrorName, proxy::Options};
use clap::Args;
use zbus::OwnedObjectPath;

use super::wait::{self, Wait};
use crate::{
    client::{bus::Bus, job::Jobs, service::Kind},
    command::batch::{self, ResultArgs},
    error::{Error, Result},
    guest::agent::Guest,
    ui::{
        progress::{Progress, ProgressArgs},
        signals::{Signals, unless_ended},
    },
};

/// The options of a command that changes many sandboxes.
#[derive(Debug, Clone, Copy, Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    pub output: ResultArgs,
    #[command(flatten)]
    pub progress: ProgressArgs,
}

/// Calls a method of each sandbox and waits for the jobs. Returns the exit status.
pub async fn each(
    references: &[String],
    method: &str,
    options: Options<'_>,
    args: ChangeArgs,
    done: &str,
) -> Result<u8> {
    each_and_wait(references, method, options, args, done, None).await
}

/// Like [`each`], for a method that boots them; also waits for a boot phase.
pub async fn each_and_wait(
    references: &[String],
    method: &str,
    options: Options<'_>,
    args: ChangeArgs,
    done: &str,
    wait: Option<Wait>,
) -> Result<u8> {
    let progress = Progress::new(args.progress);
    let bus = Bus::connect().await?;
    let found = batch::find(&bus, Kind::Vm, references).await;
    all(bus, found, (method, wait), options, (progress, args.output), done).await
}

/// Deletes the sandboxes with these ids, and prints their names.
pub async fn delete(ids: &[String], names: &[String], args: ChangeArgs) -> Result<u8> {
    let progress = Progress::new(args.progress);
    let bus = Bus::connect().await?;
    let mut found = batch::find(&bus, Kind::Vm, ids).await;
    for ((reference, _), name) in found.iter_mut().zip(names) {
        name.clone_into(reference);
    }
    all(bus, found, ("Delete", None), Options::new(), (progress, args.output), "deleted").await
}

async fn all(
    bus: Bus,
    found: Vec<batch::Found>,
    (method, wait): (&str, Option<Wait>),
    options: Options<'_>,
    (progress, output): (Progress, ResultArgs),
    done: &str,
) -> Result<u8> {
    let several = found.len() > 1;
    let signals = Signals::catch()?;
    let jobs = Jobs::of(&bus);
    let (bus, jobs, options, progress) = (&bus, &jobs, &options, &progress);
    let change = |reference: String, vm: OwnedObjectPath| {
        let mut listener = signals.listen();
        async move {
            let label = several.then_some(reference.as_str());
            let track = progress.track(label);
            let called = unless_ended(&mut listener, bus.change_vm(&vm, method, options)).await;
            let job = called.map_err(|error| add_hint(error, method))?;
            jobs.finish(bus, &job, track, &mut listener).await?;
            if wait.is_none() {
                return Ok(());
            }
            let track = progress.track(label);
            wait::until(&mut Guest::new(bus.clone(), vm, listener), wait, &track).await
        }
    };
    batch::each(found, progress, done, output, change).await
}

/// Suggests `--force` for deleting a running sandbox.
fn add_hint(error: Error, method: &str) -> Error {
    match (error.name(), method) {
        (Some(ErrorName::InvalidState), "Delete") => error
            .with_hint("stop it first, or kill and delete it at once with `banger vm delete --force NAME`."),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::wording::{check, of_service, shown};

    #[test]
    fn hints_of_delete() {
        let refused = add_hint(of_service(ErrorName::InvalidState), "Delete").about("web");
        check("hints_of_delete", &shown([("running", refused)]));
    }
}
