//! Shared code of the commands that change many sandboxes at once.

use banger_proto::bus::{ErrorName, names::VM_INTERFACE, proxy::Options};
use clap::Args;
use zbus::OwnedObjectPath;

use super::{
    proxy::ProxyRelays,
    wait::{self, Wait},
};
use crate::{
    client::{bus::Bus, job::Jobs, object::Object, service::Kind},
    command::batch::{self, Effect, ResultArgs},
    error::{Error, Result},
    guest::agent::Guest,
    ssh::installed,
    ui::{
        progress::{Progress, ProgressArgs},
        signals::{Listener, Signals, unless_ended},
    },
    workspace::devcontainer::lifecycle::{self, Lifecycle},
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

/// Starts these sandboxes, and prints their names.
pub async fn start(bus: Bus, found: Vec<batch::Found>, args: ChangeArgs) -> Result<u8> {
    let progress = Progress::new(args.progress);
    all(bus, found, ("Start", None), Options::new(), (progress, args.output), "started").await
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
            let changed = async {
                let before = unless_ended(&mut listener, look(bus, &vm, method)).await?;
                let job = unless_ended(&mut listener, bus.change_vm(&vm, method, options)).await?;
                jobs.finish(bus, &job, track, &mut listener).await?;
                let after = unless_ended(&mut listener, look(bus, &vm, method)).await?;
                let effect = effect(method, &before, &after);
                if matches!(method, "Start" | "Restart") && after.text("BootedFrom") != "suspension" {
                    set_up(bus, &vm, progress, &mut listener).await?;
                }
                if wait.is_some() {
                    let track = progress.track(label);
                    wait::until(&mut Guest::new(bus.clone(), vm.clone(), listener), wait, &track).await?;
                }
                Ok(effect)
            };
            let changed: Result<Effect> = changed.await;
            match changed {
                Err(error) if error.is_interrupted() || error.is_detached() => {
                    Err(explain_signal(error, bus.properties(&vm, VM_INTERFACE).await.as_ref()))
                }
                changed => changed.map_err(|error| add_hint(error, method)),
            }
        }
    };
    let status = batch::each(found, progress, done, output, change).await;
    if method == "Delete" {
        installed::refresh(bus).await;
    }
    status
}

/// Runs what the repositories in a sandbox ask for after a boot.
async fn set_up(bus: &Bus, vm: &OwnedObjectPath, progress: &Progress, listener: &mut Listener) -> Result<()> {
    let workspaces = unless_ended(listener, lifecycle::set_up_at_boot(bus, vm)).await?;
    if workspaces.is_empty() {
        return Ok(());
    }
    let proxies = unless_ended(listener, ProxyRelays::by_default(bus, vm)).await?;
    let lifecycle = Lifecycle { bus, vm, proxies: proxies.variables(), progress, listener };
    for kept in &workspaces {
        lifecycle.boot(kept).await?;
    }
    Ok(())
}

/// Reads a sandbox before and after a method that may find nothing to do. It has no properties if it cannot be read.
async fn look(bus: &Bus, vm: &OwnedObjectPath, method: &str) -> Result<Object> {
    match method {
        "Start" | "Stop" | "Suspend" | "Resume" => {
            Ok(bus.properties(vm, VM_INTERFACE).await.unwrap_or_default())
        }
        _ => Ok(Object::default()),
    }
}

/// Returns what a method did, from a sandbox before and after it. A boot in between has another start time.
fn effect(method: &str, before: &Object, after: &Object) -> Effect {
    let is_same = before.text("State") == after.text("State")
        && before.number("StartedAt") == after.number("StartedAt");
    match (method, after.text("State")) {
        ("Start" | "Resume", "running") if is_same => Effect::Unchanged("already running"),
        ("Suspend", "suspended") if is_same => Effect::Unchanged("already suspended"),
        ("Stop", "created" | "stopped" | "failed") if is_same => Effect::Unchanged("already stopped"),
        _ => Effect::Changed,
    }
}

/// Says what has become of a sandbox after a signal.
fn explain_signal(error: Error, sandbox: Result<&Object, &Error>) -> Error {
    if error.is_detached() {
        return error.with_hint("the service continues the work: `banger vm show NAME` shows the state.");
    }
    let gone = [Some(ErrorName::UnknownObject), Some(ErrorName::NoSuchVm)];
    let hint = match sandbox.map(|sandbox| sandbox.text("State")) {
        Ok("starting") => "it is starting: `banger vm stop NAME` stops it.",
        Ok("running") => "it is running: `banger vm stop NAME` stops it.",
        Ok("paused") => "it is paused: `banger vm unpause NAME` continues it.",
        Ok("suspending") => "the service suspends it.",
        Ok("resuming") => "the service resumes it.",
        Ok("suspended") => "it is suspended: `banger vm resume NAME` continues it.",
        Ok("stopping") => "the service stops it.",
        Ok("deleting") => "the service deletes it.",
        Ok("failed") => "it failed: `banger vm logs NAME` shows why, `banger vm start NAME` boots it.",
        Ok("created" | "stopped") => "it is stopped: `banger vm start NAME` boots it.",
        Err(error) if gone.contains(&error.name()) => "it was deleted.",
        _ => "`banger vm show NAME` shows its state.",
    };
    error.with_hint(hint)
}

/// Suggests `--force` for deleting a running sandbox.
pub fn add_hint(error: Error, method: &str) -> Error {
    match (error.name(), method) {
        (Some(ErrorName::InvalidState), "Delete") => error
            .with_hint("stop it first, or kill and delete it at once with `banger vm delete --force NAME`."),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use zbus::{OwnedVariant, Variant};

    use super::*;
    use crate::{
        command::filter::STATES,
        ui::wording::{check, of_service, shown},
    };

    #[test]
    fn hints_of_changes() {
        let refused = add_hint(of_service(ErrorName::InvalidState), "Delete").about("web");
        let interrupted = || Error::Interrupted { signal: 2 };
        let after = |state: &'static str| {
            let state = OwnedVariant::try_from(Variant::from(state)).unwrap();
            let sandbox = Object::new(HashMap::from([("State".to_owned(), state)]));
            explain_signal(interrupted(), Ok(&sandbox)).about("web")
        };
        let unreadable = |error: Error| explain_signal(interrupted(), Err(&error)).about("web");
        let detached = explain_signal(Error::Detached { signal: 2 }, Ok(&Object::default())).about("web");
        let states = STATES;
        let errors = [
            ("delete of a running one", refused),
            ("interrupted, gone", unreadable(of_service(ErrorName::UnknownObject))),
            ("interrupted, unreadable", unreadable(Error::ServiceEnded)),
            ("detached", detached),
        ];
        check(
            "hints_of_changes",
            &shown(errors.into_iter().chain(states.map(|state| (state, after(state))))),
        );
    }

    #[test]
    fn what_already_was_as_asked_is_unchanged() {
        let sandbox = |(state, started): (&'static str, u64)| {
            let value = |value: Variant<'static>| OwnedVariant::try_from(value).unwrap();
            Object::new(HashMap::from([
                ("State".to_owned(), value(Variant::from(state))),
                ("StartedAt".to_owned(), value(Variant::from(started))),
            ]))
        };
        let running = Effect::Unchanged("already running");
        let stopped = Effect::Unchanged("already stopped");
        for (method, before, after, expect) in [
            ("Start", ("running", 1), ("running", 1), running),
            ("Start", ("running", 1), ("running", 2), Effect::Changed),
            ("Start", ("starting", 1), ("running", 1), Effect::Changed),
            ("Start", ("stopped", 1), ("running", 2), Effect::Changed),
            ("Stop", ("running", 1), ("stopped", 1), Effect::Changed),
            ("Stop", ("stopped", 1), ("stopped", 1), stopped),
            ("Stop", ("created", 0), ("created", 0), stopped),
            ("Stop", ("failed", 1), ("failed", 1), stopped),
            ("Stop", ("failed", 1), ("stopped", 1), Effect::Changed),
            ("Restart", ("running", 1), ("running", 1), Effect::Changed),
            ("Suspend", ("running", 1), ("suspended", 1), Effect::Changed),
            ("Suspend", ("suspended", 1), ("suspended", 1), Effect::Unchanged("already suspended")),
            ("Resume", ("suspended", 1), ("running", 2), Effect::Changed),
            ("Resume", ("running", 2), ("running", 2), running),
        ] {
            let found = effect(method, &sandbox(before), &sandbox(after));
            assert_eq!(found, expect, "{method} {before:?} {after:?}");
        }
        // It may be gone, or not readable.
        assert_eq!(effect("Stop", &sandbox(("stopped", 1)), &Object::default()), Effect::Changed);
    }
}
