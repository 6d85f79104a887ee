//! The part of the initramfs that is one boot's own: what the agent is told.

use super::error::Result;
use crate::domain::{id::Timestamp, vm::Vm};

/// The archive for this boot of a machine.
pub(super) fn of(_vm: &Vm, _now: Timestamp) -> Result<Vec<u8>> {
    Ok(Vec::new())
}
