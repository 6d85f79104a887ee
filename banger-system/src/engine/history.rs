//! The recent history of each VM: its changes of state, and the phases of its last boot.
//!
//! It is kept in memory: it begins with the service, ends with the VM, and has a fixed length. What has to outlive the
//! service is in the journal.

use std::{collections::VecDeque, time::Duration};

use banger_domain::{
    id::Timestamp,
    lifecycle::{Reason, State},
};

use super::view::VmView;

/// How many changes of one VM are kept: some twenty starts and stops.
const CHANGES: usize = 64;

/// A part of a start. The phases are in the order in which they are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The rest of an earlier boot is released, and kernel and network are looked up.
    Prepare,
    /// The disks are attached.
    Disks,
    /// The jail is described and started.
    Jail,
    /// The network interface is made, and the row is stored.
    Network,
    /// The VMM is started in the jail and configured.
    Vmm,
    /// The memory of a suspended guest is loaded.
    Load,
    /// The agent asks for its configuration and gets it.
    Agent,
    /// The guest boots or continues, until its agent answers and its clock is right.
    Guest,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 8] = [
        Phase::Prepare,
        Phase::Disks,
        Phase::Jail,
        Phase::Network,
        Phase::Vmm,
        Phase::Load,
        Phase::Agent,
        Phase::Guest,
    ];

    /// Returns the word on the bus and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Prepare => "prepare",
            Phase::Disks => "disks",
            Phase::Jail => "jail",
            Phase::Network => "network",
            Phase::Vmm => "vmm",
            Phase::Load => "load",
            Phase::Agent => "agent",
            Phase::Guest => "guest",
        }
    }
}

/// What the history shows of a VM at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its state.
    pub state: State,
    /// Whether its guest answers.
    pub ready: bool,
    /// Why it is in this state.
    pub reason: Reason,
}

impl Condition {
    /// Returns the condition of a VM.
    fn of(view: &VmView) -> Self {
        Self { state: view.vm.state, ready: view.is_ready(), reason: view.vm.reason.clone() }
    }
}

/// The recent history of a VM.
#[derive(Debug, Clone, Default)]
pub struct History {
    changes: VecDeque<(Timestamp, Condition)>,
    phases: Vec<(Phase, Duration)>,
}

impl History {
    /// Notes how a VM is, if that is new.
    pub(super) fn note(&mut self, at: Timestamp, view: &VmView) {
        let condition = Condition::of(view);
        if self.changes.back().is_some_and(|(_, last)| *last == condition) {
            return;
        }
        if self.changes.len() == CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back((at, condition));
    }

    /// Forgets the phases, because a new boot begins.
    pub(super) fn begin_boot(&mut self) {
        self.phases.clear();
    }

    /// Adds the time that a phase took. A start that is tried a second time has some phases twice: their times add up.
    pub(super) fn end_phase(&mut self, phase: Phase, took: Duration) {
        match self.phases.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, sum)) => *sum += took,
            None => self.phases.push((phase, took)),
        }
    }

    /// Returns the changes of state, the oldest first.
    pub fn changes(&self) -> impl Iterator<Item = &(Timestamp, Condition)> {
        self.changes.iter()
    }

    /// Returns the phases of the last boot that have ended, in order. None if an earlier run of the service began it.
    pub fn phases(&self) -> &[(Phase, Duration)] {
        &self.phases
    }
}
