//! `banger vm run --detach` with a command: the command runs in the sandbox without this process.

use banger_proto::{
    bus::{
        ErrorName,
        names::VM_INTERFACE,
        option::{agent, lifetime},
        proxy::Options,
    },
    guest::Exec,
};
use zbus::OwnedObjectPath;

use crate::{
    client::bus::Bus,
    error::{Error, Result},
    guest::attach,
    ui::signals::{Listener, unless_ended},
};

/// Starts a detached command in a new sandbox. With `exec.power_off`, the sandbox is deleted at its end.
///
/// Such a sandbox is bound to this process until the command runs, so that nothing is left if this process is killed.
/// From then on its guest powers off when the command ends, and the service deletes what has stopped.
pub async fn start(bus: &Bus, vm: &OwnedObjectPath, exec: &Exec, listener: &mut Listener) -> Result<()> {
    let stream = unless_ended(listener, bus.open_agent(vm, agent::COMMAND, None)).await?;
    unless_ended(listener, attach::detach(stream, exec)).await?;
    if !exec.power_off {
        return Ok(());
    }
    match bus.set_lifetime(vm, lifetime::UNTIL_STOPPED).await {
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => delete_if_over(bus, vm).await,
    }
}

/// Deletes a sandbox that has stopped before its lifetime was set.
async fn delete_if_over(bus: &Bus, vm: &OwnedObjectPath) -> Result<()> {
    let state = match bus.properties(vm, VM_INTERFACE).await {
        Ok(sandbox) => sandbox.text("State").to_owned(),
        Err(_) => return Ok(()),
    };
    if !matches!(state.as_str(), "stopped" | "failed") {
        return Ok(());
    }
    match bus.change_vm(vm, "Delete", &Options::new()).await {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Returns whether the sandbox of a failed call has been deleted.
pub fn is_gone(error: &Error) -> bool {
    matches!(error.name(), Some(ErrorName::NoSuchVm | ErrorName::UnknownObject))
}
