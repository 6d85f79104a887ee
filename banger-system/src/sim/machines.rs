//! The list of virtual machines in memory.

use async_trait::async_trait;
use banger_domain::id::VmId;

use super::Sim;
use crate::ports::{HostError, host_error::Result, machines::Machines};

impl Sim {
    /// Returns the process of each sandbox in the list.
    pub fn machines(&self) -> Vec<(VmId, u32)> {
        self.lock().machines.iter().map(|(vm, pid)| (*vm, *pid)).collect()
    }

    /// Makes the list refuse all sandboxes, and lose those that it has.
    pub fn lose_machines(&self, lost: bool) {
        let mut state = self.lock();
        state.lost_machines = lost;
        state.machines.clear();
    }
}

#[async_trait]
impl Machines for Sim {
    async fn register(&self, vm: VmId, pid: u32, _tap: &str) -> Result<()> {
        let mut state = self.lock();
        if state.lost_machines {
            return Err(HostError::NotReady { message: "there is no list".to_owned() });
        }
        state.machines.insert(vm, pid);
        Ok(())
    }
}
