//! Captures a guest, and lets others continue from it, over the control protocol.
//!
//! The memory is a file that all VMMs see (`x-ignore-shared` of QEMU's migration), so the stream that QEMU writes and
//! reads is only the state of processors and devices: a few hundred KiB. QEMU 7.2 and later load it in milliseconds.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use banger_proto::size::Bytes;
use serde_json::json;

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
    ignore_shared(qmp).await?;
    qmp.run("stop", json!({})).await?;
    qmp.pass_file(STATE, state.as_fd()).await?;
    qmp.run("migrate", json!({"uri": format!("fd:{STATE}")})).await?;
    let status = until(qmp, "query-migrate", |status| matches!(status, "completed" | "failed")).await?;
    if status == "failed" {
        return Err(Error::Failed { message: "QEMU cannot save the state of the guest".to_owned() });
    }
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
    ignore_shared(qmp).await?;
    qmp.pass_file(STATE, state.as_fd()).await?;
    qmp.run("migrate-incoming", json!({"uri": format!("fd:{STATE}")})).await?;
    // QEMU exits if the state does not fit.
    until(qmp, "query-status", |status| status != "inmigrate").await?;
    qmp.run("cont", json!({})).await?;
    Ok(())
}

/// Returns whether the guest runs, or has ended by itself. One that waits for a capture, or has just loaded it, does not.
pub async fn runs(qmp: &mut Qmp) -> Result<bool> {
    let answer = qmp.run("query-status", json!({})).await?;
    Ok(!matches!(answer["status"].as_str(), Some("inmigrate" | "paused" | "prelaunch")))
}

async fn ignore_shared(qmp: &mut Qmp) -> Result<()> {
    let on = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
    qmp.run("migrate-set-capabilities", on).await?;
    Ok(())
}

/// Waits until the answer to a command has one of these states, and returns it.
async fn until(qmp: &mut Qmp, command: &str, is_done: impl Fn(&str) -> bool) -> Result<String> {
    let polled = async {
        loop {
            let answer = qmp.run(command, json!({})).await?;
            if let Some(status) = answer["status"].as_str()
                && is_done(status)
            {
                return Ok(status.to_owned());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let late = |_| Error::timeout("moving the state of a guest", TIMEOUT);
    tokio::time::timeout(TIMEOUT, polled).await.map_err(late)?
}
