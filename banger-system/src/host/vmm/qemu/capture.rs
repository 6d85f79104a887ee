//! Captures a guest, and lets others continue from it, over the control protocol.
//!
//! The memory is a file that all VMMs see (`x-ignore-shared` of QEMU's migration), so the stream that QEMU writes and
//! reads is only the state of processors and devices: a few hundred KiB. QEMU 7.2 and later load it in milliseconds.
//!
//! A suspended guest is different: its memory is in the stream, too. Many guests continue from a template, and their
//! memory is private to their process, so there is no file to copy.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use banger_proto::size::Bytes;
use serde_json::{Value, json};

use super::qmp::Qmp;
use crate::{
    host::{blocking::blocking, memory},
    ports::{
        FromHost as _,
        vmm::{Capture, Error, Result},
    },
};

/// How long saving or loading the state of the devices may take: milliseconds, except on a busy host.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long saving or loading the memory of a guest may take.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// QEMU's limit in bytes per second, which is 128 MiB unless it is set.
const UNLIMITED: u64 = 1 << 40;
/// Pause before asking again whether it is done.
const POLL: Duration = Duration::from_millis(2);
/// The most memory that is copied: several times what a kernel of a distribution uses until then.
const MOST_MEMORY: Bytes = Bytes::mib(512);
/// QEMU's name for the file with the state.
const STATE: &str = "state";

/// Stops a guest and captures it.
pub async fn capture(qmp: &mut Qmp, of: OwnedFd) -> Result<Capture> {
    let os = |error: io::Error| Error::os("save the state of a guest", error);
    let state = memory::file("banger-state", 0o600).map_err(os)?;
    set_memory(qmp, Memory::Elsewhere).await?;
    qmp.run("stop", json!({})).await?;
    qmp.pass_file(STATE, state.as_fd()).await?;
    qmp.run("migrate", json!({"uri": format!("fd:{STATE}")})).await?;
    until_saved(qmp, TIMEOUT).await?;
    memory::seal(&state).map_err(os)?;
    let of = File::from(of);
    let size = memory::size_of(&of).map_err(os)?;
    if size > MOST_MEMORY {
        let message =
            format!("the guest has used {size} before its configuration; at most {MOST_MEMORY} are kept");
        return Err(Error::Failed { message });
    }
    let copy = move || memory::sealed_copy(&of).map_err(os);
    let memory = blocking("copy the memory of a guest", copy).await?;
    Ok(Capture { state: state.into(), memory: memory.into() })
}

/// Loads a capture, and lets the guest run.
pub async fn resume(qmp: &mut Qmp, capture: &Capture) -> Result<()> {
    // A file of its own, whose position is the start. Others may load the same capture at the same time.
    let state = File::open(format!("/proc/self/fd/{}", capture.state.as_raw_fd()));
    let state = state.map_err(|error| Error::os("open the state of a guest", error))?;
    set_memory(qmp, Memory::Elsewhere).await?;
    read_state(qmp, state.as_fd(), TIMEOUT).await?;
    qmp.run("cont", json!({})).await?;
    Ok(())
}

/// Stops a guest, and writes out what the disks have cached.
pub async fn halt(qmp: &mut Qmp) -> Result<()> {
    qmp.run_within(MEMORY_TIMEOUT, "stop", json!({})).await?;
    Ok(())
}

/// Stops a guest, and has QEMU write its memory and its state into a pipe.
pub async fn save(qmp: &mut Qmp, to: OwnedFd) -> Result<()> {
    set_memory(qmp, Memory::InTheStream).await?;
    qmp.run("migrate-set-parameters", json!({"max-bandwidth": UNLIMITED})).await?;
    halt(qmp).await?;
    qmp.pass_file(STATE, to.as_fd()).await?;
    // The reader sees the end once QEMU closes its own copy.
    drop(to);
    qmp.run("migrate", json!({"uri": format!("fd:{STATE}")})).await?;
    until_saved(qmp, MEMORY_TIMEOUT).await
}

/// Loads what [`save`] has written. The guest does not run yet.
pub async fn load(qmp: &mut Qmp, from: OwnedFd) -> Result<()> {
    set_memory(qmp, Memory::InTheStream).await?;
    read_state(qmp, from.as_fd(), MEMORY_TIMEOUT).await
}

/// Lets a guest run that stands still. What is still being saved is given up.
pub async fn go_on(qmp: &mut Qmp) -> Result<()> {
    let is_over = |status: &str| !matches!(status, "setup" | "active" | "device" | "cancelling");
    let answer = qmp.run("query-migrate", json!({})).await?;
    if !is_over(status_of(&answer)) {
        qmp.run("migrate_cancel", json!({})).await?;
        until(qmp, "query-migrate", TIMEOUT, is_over).await?;
    }
    qmp.run_within(MEMORY_TIMEOUT, "cont", json!({})).await?;
    Ok(())
}

/// Returns the version of the running VMM.
pub async fn version(qmp: &mut Qmp) -> Result<String> {
    let answer = qmp.run("query-version", json!({})).await?;
    let number = |part| answer["qemu"][part].as_u64().unwrap_or_default();
    let package: String = answer["package"].as_str().unwrap_or_default().chars().take(100).collect();
    Ok(format!("QEMU {}.{}.{} {package}", number("major"), number("minor"), number("micro")))
}

async fn until_saved(qmp: &mut Qmp, timeout: Duration) -> Result<()> {
    let is_over = |status: &str| matches!(status, "completed" | "failed" | "cancelled");
    match until(qmp, "query-migrate", timeout, is_over).await?.as_str() {
        "completed" => Ok(()),
        _ => Err(Error::Failed { message: "QEMU cannot save the state of the guest".to_owned() }),
    }
}

async fn read_state(qmp: &mut Qmp, from: BorrowedFd<'_>, timeout: Duration) -> Result<()> {
    qmp.pass_file(STATE, from).await?;
    qmp.run("migrate-incoming", json!({"uri": format!("fd:{STATE}")})).await?;
    // QEMU exits if the state does not fit.
    until(qmp, "query-status", timeout, |status| status != "inmigrate").await?;
    Ok(())
}

/// Returns whether the guest runs, or has ended by itself. One that waits for a capture, is captured or was, or has just
/// loaded it, does not.
pub async fn runs(qmp: &mut Qmp) -> Result<bool> {
    let answer = qmp.run("query-status", json!({})).await?;
    Ok(!answer["status"].as_str().is_some_and(stands_still))
}

/// Returns whether a guest in this state (`RunState` of QEMU's QMP reference) stands still until it is told to run.
fn stands_still(status: &str) -> bool {
    matches!(
        status,
        "inmigrate" | "paused" | "prelaunch" | "finish-migrate" | "postmigrate" | "save-vm" | "restore-vm"
    )
}

/// Where the memory of a guest is while its state is in a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    InTheStream,
    Elsewhere,
}

async fn set_memory(qmp: &mut Qmp, memory: Memory) -> Result<()> {
    let is_elsewhere = memory == Memory::Elsewhere;
    let set = json!({"capabilities": [{"capability": "x-ignore-shared", "state": is_elsewhere}]});
    qmp.run("migrate-set-capabilities", set).await?;
    Ok(())
}

/// Returns the state in an answer. Without one, nothing was ever saved.
fn status_of(answer: &Value) -> &str {
    answer["status"].as_str().unwrap_or("none")
}

/// Waits until the answer to a command has one of these states, and returns it.
async fn until(
    qmp: &mut Qmp,
    command: &str,
    timeout: Duration,
    is_done: impl Fn(&str) -> bool,
) -> Result<String> {
    let polled = async {
        loop {
            let answer = qmp.run(command, json!({})).await?;
            let status = status_of(&answer);
            if is_done(status) {
                return Ok(status.to_owned());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let late = |_| Error::timeout("moving the state of a guest", timeout);
    tokio::time::timeout(timeout, polled).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_was_captured_stands_still() {
        for (status, expect) in [
            ("running", false),
            ("inmigrate", true),
            ("prelaunch", true),
            ("paused", true),
            ("finish-migrate", true),
            ("postmigrate", true),
            ("shutdown", false),
            ("guest-panicked", false),
            ("io-error", false),
        ] {
            assert_eq!(stands_still(status), expect, "{status}");
        }
    }
}
