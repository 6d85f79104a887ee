//! What the commands that create a sandbox say about it: its name, whether it still exists, and what to do next.

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, object::Object},
    error::{Error, Result},
    ui::output,
};

/// Returns a note about a sandbox that is still running, and what to do about it.
pub fn reminder(sandbox: &Object) -> Option<String> {
    let name = sandbox.name();
    match sandbox.text("State") {
        "running" => Some(format!(
            "{name} is still running: `banger vm exec {name}` opens a shell, `banger vm delete --force \
             {name}` deletes it."
        )),
        "suspending" | "suspended" => Some(format!(
            "{name} is suspended: `banger vm resume {name}` continues it, `banger vm delete {name}` deletes it."
        )),
        "" | "deleting" => None,
        _ => Some(format!(
            "{name} has stopped: `banger vm start {name}` boots it, `banger vm delete {name}` deletes it."
        )),
    }
}

/// Puts the name of the new sandbox into the hint of an error.
pub async fn about(bus: &Bus, vm: &OwnedObjectPath, error: Error) -> Error {
    match bus.properties(vm, VM_INTERFACE).await {
        Ok(sandbox) => error.about(sandbox.name()),
        Err(_) => error,
    }
}

/// Adds a hint about the sandbox of a creation that has failed: whether it still exists.
pub async fn explain(bus: &Bus, vm: &OwnedObjectPath, error: Error) -> Error {
    let sandbox = bus.properties(vm, VM_INTERFACE).await.unwrap_or_default();
    explain_state(sandbox.name(), sandbox.text("State"), error)
}

fn explain_state(name: &str, state: &str, error: Error) -> Error {
    match (name, state) {
        // Its logs are gone, too.
        ("", _) if error.name() == Some(ErrorName::VmmFailed) => error.with_hint(
            "the sandbox was not kept; `banger doctor` and `journalctl -u banger-system` show more.",
        ),
        ("", _) if error.is_interrupted() => error.with_hint("no sandbox was kept."),
        ("", _) => error,
        // The service has ended the job, and removes what it has created so far.
        (name, _) if error.is_interrupted() => error.with_hint(format!("the service deletes {name}.")),
        (_, "deleting") => error,
        (name, _) if error.is_detached() => error.with_hint(format!(
            "the service continues with {name}: `banger vm exec {name}` opens a shell once it is ready, \
             `banger vm delete --force {name}` deletes it."
        )),
        (name, _) => error.with_hint(format!(
            "it was kept: `banger vm logs {name}` shows its console, `banger vm delete --force {name}` \
             deletes it."
        )),
    }
}

/// Adds the hint that a new sandbox runs, to an error of what follows its boot.
pub fn kept(error: Error) -> Error {
    match error.hint() {
        Some(_) => error,
        None => error.with_hint(
            "the sandbox is running: `banger vm exec NAME` opens a shell in it, `banger vm delete --force NAME` deletes \
             it.",
        ),
    }
}

/// Prints a created sandbox: its name, or all of it.
pub async fn print_created(bus: &Bus, vm: &OwnedObjectPath, json: bool) -> Result<u8> {
    print(&bus.properties(vm, VM_INTERFACE).await?, json)
}

/// Prints a sandbox: its name, or all of it.
pub fn print(sandbox: &Object, json: bool) -> Result<u8> {
    if json {
        output::json(&sandbox.json())?;
    } else {
        output::text(&format!("{}\n", sandbox.name()))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use zbus::{OwnedVariant, Variant};

    use super::*;

    #[test]
    fn the_reminder_matches_the_state() {
        let sandbox = |state: &'static str| {
            let text = |text| OwnedVariant::try_from(Variant::from(text)).unwrap();
            Object::new(HashMap::from([
                ("Name".to_owned(), text("calm-otter")),
                ("State".to_owned(), text(state)),
            ]))
        };
        assert!(reminder(&sandbox("running")).unwrap().starts_with("calm-otter is still running"));
        assert!(reminder(&sandbox("stopped")).unwrap().starts_with("calm-otter has stopped"));
        assert_eq!(reminder(&sandbox("deleting")), None);
        assert_eq!(reminder(&Object::default()), None);
    }

    #[test]
    fn a_failed_creation_says_what_became_of_the_sandbox() {
        use crate::ui::wording::{check, of_service, shown};

        let interrupted = || Error::Interrupted { signal: 2 };
        let detached = || Error::Detached { signal: 2 };
        let late = || of_service(ErrorName::GuestTimeout);
        let errors = [
            ("interrupted, still running", explain_state("web", "running", interrupted())),
            ("interrupted, deleting", explain_state("web", "deleting", interrupted())),
            ("interrupted, gone", explain_state("", "", interrupted())),
            ("detached", explain_state("web", "starting", detached())),
            ("not ready", explain_state("web", "running", late())),
            ("interrupted after the boot", kept(interrupted()).about("web")),
            ("failed, gone", explain_state("", "", of_service(ErrorName::VmmFailed))),
        ];
        check("hints_of_create", &shown(errors));
    }
}
