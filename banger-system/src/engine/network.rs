//! The network as the engine sees it: the addresses of this host's guests, chosen once and kept, and the
//! interface of each machine.

use banger_domain::{
    net::{nic::Nic, prefix::Prefix4, subnet::Subnet},
    vm::Vm,
};

use super::{
    Shared,
    capability::{self, Plan},
    guest_archive, now,
};
use crate::ports::{Error, Result};

impl Shared {
    /// Makes what all guests share, once; a start that comes later tries again what has failed.
    pub(super) async fn subnet(&self) -> Result<Subnet> {
        if let Some(subnet) = self.subnet.get() {
            return Ok(*subnet);
        }
        let subnet = self.subnet.get_or_try_init(|| self.set_up_network()).await.copied()?;
        self.registry.touch();
        Ok(subnet)
    }

    async fn set_up_network(&self) -> Result<Subnet> {
        let (store, network, registry) = (&self.ports.store, &self.ports.network, &self.ports.registry);
        let subnet = match store.subnet().await? {
            Some(subnet) => subnet,
            None => {
                let subnet = self.choose_subnet(&network.occupied().await?)?;
                store.put_subnet(subnet).await?;
                subnet
            }
        };
        // Guests of an earlier run may be there whether or not the rest of this works.
        registry.keep_away_from(subnet);
        network.prepare(subnet).await?;
        tracing::info!(%subnet, "the network of guests is up");
        Ok(subnet)
    }

    fn choose_subnet(&self, occupied: &[Prefix4]) -> Result<Subnet> {
        let [a, b, c, d, e, ..] = *uuid::Uuid::new_v4().as_bytes();
        let random = [a, b, c, d, e];
        let not_ready = |message: String| Error::HostNotReady { message };
        let Some(wish) = self.settings.subnet else {
            return Subnet::choose(occupied, random).map_err(|none| not_ready(none.to_string()));
        };
        match occupied.iter().find(|taken| taken.length() > 0 && taken.overlaps(wish)) {
            Some(taken) => Err(not_ready(format!(
                "network.subnet ({wish}) overlaps with {taken}, to which the host has a route; change \
                 network.subnet in the configuration"
            ))),
            None => Subnet::at(wish, random)
                .ok_or_else(|| not_ready(format!("network.subnet must be a /16, not {wish}"))),
        }
    }

    /// What a machine is to start with.
    pub(super) async fn plan(&self, vm: &Vm) -> Result<Plan> {
        let subnet = self.subnet().await?;
        let full = || Error::HostNotReady { message: "all addresses for guests are taken".to_owned() };
        let nic = Nic::new(vm.id, vm.owner, subnet, vm.slot).ok_or_else(full)?;
        let nic = Nic { same_owner: self.settings.siblings, ..nic };
        // Without its image a machine does not start; what its programs would be like does not matter then.
        let image = self.registry.image(vm.image).map(|image| image.config.clone()).unwrap_or_default();
        let guest = guest_archive::config(vm, &image, &nic, subnet, now(&*self.ports.clock));
        let mut plan = Plan { nic, guest };
        for capability in capability::ALL {
            capability.add_to(&mut plan, vm, subnet);
        }
        Ok(plan)
    }

    /// The interface of a sandbox, as wanted.
    pub(super) async fn nic(&self, vm: &Vm) -> Result<Nic> {
        Ok(self.plan(vm).await?.nic)
    }
}
