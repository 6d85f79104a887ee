//! Starts a child of a running VM: a guest that continues as another one.
//!
//! The capture of a child is the guest of its parent, whose processes are frozen. Its agent gets the child's identity first,
//! and thaws the processes only then:
//!
//! ```text
//!   suspended ──► resuming: its layers are emptied, its VMM loads the memory of the parent
//!                 the guest runs, with frozen processes
//!                 rejuvenate: token, randomness, time, names, addresses, keys     a failure or a crash: suspended again
//!                 the row says `running`                                          a crash: the guest is thawed
//!                 thaw
//!                 the capture is removed
//! ```
//!
//! Until the processes run, nothing of the child is on its disks that matters. So each try begins with empty layers, and
//! loads the same capture.

use std::{sync::Arc, time::Duration};

use banger_domain::vm::Vm;
use banger_proto::guest::rejuvenation::{Identity, NewNetwork};

use super::{TaskEvent, VmTask, suspend::go_on};
use crate::{
    engine::{
        Shared,
        error::{Error, Result, one_line},
    },
    ports::captures::Origin,
};

/// How long the agent may take to confirm its new identity.
const TIMEOUT: Duration = Duration::from_secs(120);

impl VmTask {
    /// Lets a loaded guest continue with the identity of this VM, without its processes, in the background.
    pub(super) fn renew(&mut self, origin: Origin) {
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.clone());
        self.background.spawn(async move { TaskEvent::Renewed(renew(&shared, &vm, &origin).await) });
    }
}

async fn renew(shared: &Shared, vm: &Vm, origin: &Origin) -> Result<()> {
    let ports = &shared.ports;
    let identity = identity(shared, vm, origin).await?;
    go_on(ports, vm.id).await?;
    let renewed = ports.guest.rejuvenate(vm.id, &origin.token, &vm.token, Some(&identity), TIMEOUT);
    renewed.await.map_err(|error| Error::CannotResume {
        message: format!("the guest did not take its new identity: {}", one_line(&error)),
    })
}

/// Returns what makes the guest a different one from that of the capture.
async fn identity(shared: &Shared, vm: &Vm, origin: &Origin) -> Result<Identity> {
    let guest = shared.plan(vm).await?.guest;
    Ok(Identity {
        hostname: guest.hostname,
        names: guest.names,
        machine_id: vm.id.to_string(),
        generation: uuid::Uuid::new_v4().simple().to_string(),
        network: guest.network.map(|network| NewNetwork { replaces: origin.mac.0, network }),
        ssh: guest.ssh,
    })
}
