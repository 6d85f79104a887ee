//! The network as the engine sees it: the addresses of this host's guests, chosen once and kept, and the
//! interface of each machine.

use super::Shared;
use crate::{
    domain::{
        net::{
            nic::Nic,
            subnet::{Slot, Subnet},
        },
        vm::Vm,
    },
    ports::{Error, Result},
};

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
        let (store, network) = (&self.ports.store, &self.ports.network);
        let subnet = match store.subnet().await? {
            Some(subnet) => subnet,
            None => {
                let [a, b, c, d, e, ..] = *uuid::Uuid::new_v4().as_bytes();
                let subnet = Subnet::choose(&network.occupied().await?, [a, b, c, d, e]);
                let subnet = subnet.map_err(|none| Error::HostNotReady { message: none.to_string() })?;
                store.put_subnet(subnet).await?;
                subnet
            }
        };
        network.prepare(subnet).await?;
        tracing::info!(%subnet, "the network of guests is up");
        Ok(subnet)
    }

    /// The interface that a machine is to have.
    pub(super) async fn nic(&self, vm: &Vm) -> Result<Nic> {
        let full = || Error::HostNotReady { message: "all addresses for guests are taken".to_owned() };
        let nic = Nic::new(vm.id, vm.owner, self.subnet().await?, vm.slot).ok_or_else(full)?;
        Ok(Nic { nat: vm.spec.nat, ports: vm.spec.ports.clone(), ..nic })
    }
}

/// A place among the addresses that no machine has: the one after the highest, so that one that was just
/// given back does not lead to another guest at once.
pub(super) fn free_slot(taken: impl Iterator<Item = Slot> + Clone) -> Slot {
    let next = taken.clone().max().map_or(0, |Slot(slot)| slot + 1);
    if next < LAST_RESORT {
        return Slot(next);
    }
    let taken: std::collections::BTreeSet<Slot> = taken.collect();
    (0..).map(Slot).find(|slot| !taken.contains(slot)).unwrap_or(Slot(next))
}

/// From here on, places that were given back are given again: a subnet ends at 65533.
const LAST_RESORT: u32 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_again_only_when_the_others_are_used_up() {
        let free = |taken: &[u32]| free_slot(taken.iter().copied().map(Slot)).0;
        assert_eq!(free(&[]), 0);
        assert_eq!(free(&[0, 1, 5]), 6);
        assert_eq!(free(&[0, 1, LAST_RESORT]), 2);
    }
}
