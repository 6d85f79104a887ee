//! `banger vm wait`.

use banger_proto::{
    bus::{ErrorName, names::VM_INTERFACE, proxy::Options},
    guest::{Frame, Request, facts::Detached, message::Exit},
};
use clap::Args;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use zbus::OwnedObjectPath;

use super::{commands::last_without_session, run_detached::is_gone};
use crate::{
    client::{bus::Bus, object::Object, service::Kind},
    command::batch,
    error::{Error, FAILURE, Result},
    guest::agent::{Guest, protocol_error},
    ui::{
        output,
        signals::{Listener, Signals, unless_ended},
    },
};

/// How many sandboxes are waited for at once: less than the service's limit on the calls of a user.
const MAX_CONCURRENT: usize = 16;
/// The status of a sandbox without a command that has failed.
const FAILED: u8 = 1;

/// Wait until commands have ended, and print their exit statuses
///
/// For each sandbox, this waits for the detached command that was started last (`banger run -d`, `banger exec -d`) and
/// prints its exit status, or 128 plus the number of the signal that ended it. For a sandbox without one, it waits
/// until the sandbox stops and prints 0, or 1 if the sandbox failed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger run -d --name job -- make test
  banger vm wait job
  banger vm wait web db

The exit status of this command is 0 if it could wait for all of them, whatever it prints.")]
pub struct WaitExit {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl WaitExit {
    pub async fn run(&self) -> Result<u8> {
        let bus = &Bus::connect().await?;
        // On a connection of their own, so that calls need not wait behind them.
        let events = &Bus::connect().await?;
        events.subscribe(&Options::new()).await?;
        let signals = &Signals::catch()?;
        let several = self.sandboxes.len() > 1;
        let mut waits = stream::iter(batch::find(bus, Kind::Vm, &self.sandboxes).await)
            .map(|(reference, found)| async move {
                let status = match found {
                    Ok(vm) => exit_of((bus, events), &reference, vm, &mut signals.listen()).await,
                    Err(error) => Err(error),
                };
                (status.map_err(|error| error.about(&reference)), reference)
            })
            .buffered(MAX_CONCURRENT)
            .boxed_local();
        let (mut own, mut rows) = (0, Vec::new());
        while let Some((status, reference)) = waits.next().await {
            rows.push(json!({
                "sandbox": reference,
                "exit_status": status.as_ref().ok(),
                "error": status.as_ref().err().map(Error::to_string),
            }));
            match status {
                Ok(status) if !self.json => output::text(&format!("{status}\n"))?,
                Ok(_) => {}
                Err(error) => {
                    own = error.status(FAILURE);
                    error.print(several.then_some(reference.as_str()));
                }
            }
        }
        if self.json {
            output::json(&Value::Array(rows))?;
        }
        Ok(own)
    }
}

/// Returns the exit status of the last detached command of a sandbox once it has ended, or how the sandbox ended.
async fn exit_of(
    (bus, events): (&Bus, &Bus),
    reference: &str,
    vm: OwnedObjectPath,
    listener: &mut Listener,
) -> Result<u8> {
    let sandbox = bus.properties(&vm, VM_INTERFACE).await?;
    if sandbox.flag("Ready") {
        let mut guest = Guest::new(bus.clone(), vm.clone(), listener.resubscribe());
        match exit_of_command(&mut guest).await {
            Ok(None) => {}
            // The guest has ended, and the state of the sandbox says how.
            Err(Error::Attach(_)) => {}
            Err(error) if error.name() == Some(ErrorName::InvalidState) => {}
            ended => return ended.map(|exit| exit.map_or(FAILED, Exit::status)),
        }
    }
    // From before the state is read, so that no later change is missed.
    let mut changes = events.messages();
    loop {
        let sandbox = match bus.properties(&vm, VM_INTERFACE).await {
            Err(error) if is_gone(&error) => return Err(deleted(reference)),
            sandbox => sandbox?,
        };
        if let Some(status) = status_of(&sandbox) {
            return Ok(status);
        }
        loop {
            let next = async { Ok(changes.next().await) };
            let message = match unless_ended(listener, next).await? {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(events.ended(error.into()).await),
                None => return Err(events.ended(Error::ServiceEnded).await),
            };
            if concerns(&message, &vm) {
                break;
            }
        }
    }
}

/// Returns the exit of the last detached command once it has ended; none if there is no such command.
async fn exit_of_command(guest: &mut Guest) -> Result<Option<Exit>> {
    let commands: Vec<Detached> = guest.query(Request::Detached).await?;
    let Some(last) = last_without_session(commands) else { return Ok(None) };
    if let (false, Some(exit)) = (last.running, last.exit) {
        return Ok(Some(exit));
    }
    let exit = guest.call(Request::WaitDetached(last.id), |call| match call.frame()? {
        Frame::Exit(exit) => Ok(exit),
        Frame::Failed(failure) => Err(Error::Guest(failure)),
        _ => Err(protocol_error()),
    });
    exit.await.map(Some).map_err(|error| match error {
        // Its status must not be taken for that of a sandbox without a command.
        Error::Attach(_) => Error::Refused(
            "the sandbox ended before it could report the exit status of its command".to_owned(),
        ),
        error => error,
    })
}

/// Returns the status of a sandbox without a command, once it is down.
fn status_of(sandbox: &Object) -> Option<u8> {
    match sandbox.text("State") {
        "created" | "stopped" => Some(0),
        "failed" => Some(FAILED),
        _ => None,
    }
}

/// Returns whether a message announces a change of this sandbox, or its deletion.
fn concerns(message: &zbus::Message, vm: &OwnedObjectPath) -> bool {
    let header = message.header();
    let is_removal = header.member().is_some_and(|member| member.as_str() == "VMRemoved")
        && message.body().deserialize::<(String, OwnedObjectPath)>().is_ok_and(|(_, removed)| removed == *vm);
    is_removal || header.path().is_some_and(|path| path == &**vm)
}

fn deleted(reference: &str) -> Error {
    Error::Refused(format!("{reference} was deleted, and it had no command"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use zbus::{OwnedVariant, Variant};

    use super::*;

    #[test]
    fn a_sandbox_without_a_command_has_a_status_once_it_is_down() {
        for (state, expect) in [
            ("created", Some(0)),
            ("starting", None),
            ("running", None),
            ("stopping", None),
            ("stopped", Some(0)),
            ("failed", Some(1)),
        ] {
            let state = ("State".to_owned(), OwnedVariant::try_from(Variant::from(state)).unwrap());
            assert_eq!(status_of(&Object::new(HashMap::from([state]))), expect);
        }
    }
}
