//! Captures of suspended sandboxes: the memory of their guests, and the state of their processors and devices.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use async_trait::async_trait;
use banger_domain::{
    id::{Timestamp, VmId},
    net::nic::Mac,
    vm::Token,
};
use banger_proto::size::Bytes;

use super::HostError;

/// The captures of this host, at most one for each VM. Several VMs may share the memory in theirs, each with a manifest of
/// its own. They hold all that was in the memory of a guest, so only the
/// service reads them.
#[async_trait]
pub trait Captures: Send + Sync {
    /// Reads what a VMM writes into a pipe until it closes it, and stores it under a temporary name. Replaces an
    /// earlier one, so a repeat is safe. Fails if it is more than `most`, and with [`HostError::NoSpace`]. Safe to
    /// cancel.
    async fn receive(&self, vm: VmId, from: OwnedFd, most: Bytes) -> Result<Box<dyn Unfinished>>;
    /// Checks that a capture can be loaded where these facts hold, before any of it is loaded. Fails with
    /// [`Error::Damaged`] if the VM has no capture.
    async fn check(&self, vm: VmId, facts: &HostFacts) -> Result<()>;
    /// Writes a capture into a pipe, and verifies it on the way. Fails with [`Error::Damaged`] after the last byte. If
    /// the other side closes the pipe, or does not read for a minute, the rest is verified only.
    async fn send(&self, vm: VmId, to: OwnedFd) -> Result<()>;
    /// Gives a VM the capture of another one. It can be loaded where the facts of that capture hold, with these in place of
    /// those of the same name. The memory is shared. Replaces an earlier capture, so a repeat is safe. Fails with
    /// [`Error::Damaged`] if there is nothing to share.
    async fn share(&self, of: VmId, with: VmId, facts: &HostFacts) -> Result<Stored>;
    /// Returns whose guest a capture is, if it is a copy of another VM's that has never run.
    async fn origin(&self, vm: VmId) -> Result<Option<Origin>>;
    /// Returns what is known of a capture; none if the VM has none, or none that is complete.
    async fn stored(&self, vm: VmId) -> Result<Option<Stored>>;
    /// Removes the capture of a VM, complete or not. A repeat is safe.
    async fn remove(&self, vm: VmId) -> Result<()>;
    /// Returns the VMs that have a capture, complete or not.
    async fn found(&self) -> Result<Vec<VmId>>;
}

/// A capture without a name. Dropping it removes it.
#[async_trait]
pub trait Unfinished: Send {
    /// Gives it its name, once all of it is on the disk. It can be loaded where these facts hold. `origin` is the VM whose
    /// guest it is, if that is another one.
    async fn finish(
        self: Box<Self>,
        facts: &HostFacts,
        at: Timestamp,
        origin: Option<Origin>,
    ) -> Result<Stored>;
}

/// What is known of a capture without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// What it takes on disk.
    pub size: Bytes,
    /// When it was made.
    pub at: Timestamp,
    /// The number of its file, which several VMs may share. None while it is written.
    pub file: Option<u64>,
}

/// What a copied guest knows of the VM that it was copied from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The token that its agent expects.
    pub token: Token,
    /// The hardware address of its interface.
    pub mac: Mac,
}

/// What the state of a guest depends on: a value for each part of the host, by its noun.
pub type HostFacts = BTreeMap<String, String>;

/// Why a capture cannot be stored or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was made where something else was the case.
    #[error("{what} has changed")]
    Differs {
        /// The part that differs.
        what: String,
    },
    /// It is incomplete, or was changed.
    #[error("{message}")]
    Damaged {
        /// What is wrong with it.
        message: String,
    },
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The longest value that an error repeats: a version, and not all features of a processor.
const MAX_VALUE: usize = 80;

/// Returns the first part that differs between a capture and the host, with what it was and is.
pub fn difference(captured: &HostFacts, now: &HostFacts) -> Option<String> {
    let part = captured.keys().chain(now.keys()).find(|&part| captured.get(part) != now.get(part))?;
    Some(match (captured.get(part), now.get(part)) {
        (Some(was), Some(is)) if was.len().max(is.len()) <= MAX_VALUE => {
            format!("{part} ({}, now {})", was.trim(), is.trim())
        }
        _ => part.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(parts: &[(&str, &str)]) -> HostFacts {
        parts.iter().map(|&(part, value)| (part.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn the_part_that_differs_is_named() {
        let was = facts(&[("the VMM", "QEMU 7.2.1 "), ("the host's kernel", "6.1")]);
        let long = "x".repeat(MAX_VALUE + 1);
        for (now, expect) in [
            (was.clone(), None),
            (
                facts(&[("the VMM", "QEMU 7.2.2 "), ("the host's kernel", "6.1")]),
                Some("the VMM (QEMU 7.2.1, now QEMU 7.2.2)"),
            ),
            (facts(&[("the VMM", &long), ("the host's kernel", "6.1")]), Some("the VMM")),
            (facts(&[("the VMM", "QEMU 7.2.1 ")]), Some("the host's kernel")),
            (facts(&[("disk", "1"), ("the VMM", "QEMU 7.2.1 "), ("the host's kernel", "6.1")]), Some("disk")),
        ] {
            assert_eq!(difference(&was, &now).as_deref(), expect, "{now:?}");
        }
    }
}
