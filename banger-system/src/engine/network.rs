//! The guest network: one subnet per host, chosen once and stored, and one interface per VM.

use banger_domain::{
    net::{nic::Nic, prefix::Prefix4, subnet::Subnet},
    vm::Vm,
};

use banger_image::record::Image;

use super::{
    Shared,
    capability::{self, Plan},
    error::Result,
    guest_config, now,
};
use crate::ports::{FromHost as _, HostError};

impl Shared {
    /// Sets up the network that all guests share, once. A later start retries what failed.
    pub(super) async fn subnet(&self) -> Result<Subnet> {
        if let Some(subnet) = self.subnet.get() {
            return Ok(*subnet);
        }
        if let Some(subnet) = self.subnet.get() {
            return Ok(*subnet);
        }
        let subnet = self.subnet.get_or_try_init(|| self.set_up_network()).await.copied()?;
        self.inventory.notify_names();
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
        // Guests of an earlier run may be up, whether or not the rest of this works.
        registry.forbid_guests(subnet);
        network.prepare(subnet).await?;
        tracing::info!(%subnet, "the guest network is up");
        Ok(subnet)
    }

    fn choose_subnet(&self, occupied: &[Prefix4]) -> Result<Subnet> {
        let [a, b, c, d, e, ..] = *uuid::Uuid::new_v4().as_bytes();
        let random = [a, b, c, d, e];
        let not_ready = |message: String| HostError::not_ready(message).into();
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

    /// Returns what a VM starts with.
    pub(super) async fn plan(&self, vm: &Vm) -> Result<Plan> {
        let subnet = self.subnet().await?;
        let full = || HostError::not_ready("no address is free for another guest");
        let nic = Nic::new(vm.id, vm.owner, subnet, vm.slot).ok_or_else(full)?;
        let (nat, allowed) = self.reach(&vm.spec.egress);
        let nic = Nic { same_owner: self.settings.same_owner, nat, allowed, ..nic };
        // A VM without its image does not start, and so its configuration does not matter.
        let image =
            self.inventory.item::<Image>(vm.image).map(|image| image.config.clone()).unwrap_or_default();
        let guest = guest_config::config(vm, &image, &nic, subnet, now(&*self.ports.clock));
        let mut plan = Plan { nic, guest };
        for capability in capability::ALL {
            capability.add_to(&mut plan, vm, subnet);
        }
        Ok(plan)
    }

    /// Returns the network interface of a VM, as its settings say.
    pub(super) async fn nic(&self, vm: &Vm) -> Result<Nic> {
        Ok(self.plan(vm).await?.nic)
    }
}
