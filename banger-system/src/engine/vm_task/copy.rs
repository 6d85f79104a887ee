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

use std::time::Duration;

use banger_domain::{lifecycle::State, vm::Vm};
use banger_proto::guest::rejuvenation::{Identity, NewNetwork};

use super::{VmTask, fork_memory::thaw, suspend::go_on};
use crate::{
    engine::error::{Error, Result, one_line},
    ports::captures::Origin,
};

/// How long the agent may take to confirm its new identity.
const TIMEOUT: Duration = Duration::from_secs(60);

impl VmTask {
    /// Lets a loaded guest continue with the identity of this VM. After a failure it must not run.
    pub(super) async fn continue_copy(&self, origin: &Origin) -> Result<()> {
        let (ports, vm) = (&self.shared.ports, self.vm.id);
        let identity = self.identity(origin).await?;
        go_on(ports, vm).await?;
        let renewed = ports.guest.rejuvenate(vm, &origin.token, &self.vm.token, Some(&identity), TIMEOUT);
        renewed.await.map_err(|error| Error::CannotResume {
            message: format!("the guest did not take its new identity: {}", one_line(&error)),
        })?;
        ports.store.put_vm(&Vm { state: State::Running, ..self.vm.clone() }).await?;
        if let Err(error) = thaw(ports, &self.vm).await {
            // Its VMM is ended, and the next try begins with the capture again.
            ports.store.put_vm(&self.vm).await?;
            return Err(error);
        }
        Ok(())
    }

    /// Returns what makes the guest a different one from that of the capture.
    async fn identity(&self, origin: &Origin) -> Result<Identity> {
        let guest = self.shared.plan(&self.vm).await?.guest;
        Ok(Identity {
            hostname: guest.hostname,
            names: guest.names,
            machine_id: self.vm.id.to_string(),
            generation: uuid::Uuid::new_v4().simple().to_string(),
            network: guest.network.map(|network| NewNetwork { replaces: origin.mac.0, network }),
            ssh: guest.ssh,
        })
    }
}
