//! Egress policies: what may be asked for, and what sandboxes were denied.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::{
    egress::{
        Egress,
        allow_list::{AllowList, MAX_NETS, beyond, under},
        log::EgressLog,
    },
    id::VmId,
    net::nic::Nat,
};

use super::{
    Engine, Shared,
    error::{Error, Result},
    request::{Configure, EgressChange},
    view::Event,
};

/// Pause between announcements, so that a flood of denials costs little.
const PAUSE: Duration = Duration::from_millis(100);

impl Engine {
    /// Returns what a restricted sandbox was allowed and denied since it started.
    pub fn egress_log(&self, vm: VmId) -> EgressLog {
        self.shared.ports.network.egress_log(vm)
    }

    /// Changes what a sandbox may reach, at once.
    pub async fn set_egress(&self, vm: VmId, change: impl Into<EgressChange>) -> Result<()> {
        self.configure_vm(vm, Configure { egress: Some(change.into()), ..Configure::default() }).await
    }
}

impl Shared {
    /// Returns a policy after a change. What is added is checked, and what was there is not: entries can be removed from
    /// a policy that the administrator does not allow any more.
    pub(super) fn changed_egress(&self, now: &Egress, change: EgressChange) -> Result<Egress> {
        let (allow, deny) = match change {
            EgressChange::Replace(new) if new == *now => return Ok(new),
            EgressChange::Replace(new) => return self.check_egress(&new).map(|()| new),
            EgressChange::Entries { allow, deny } => (allow, deny),
        };
        self.check_egress(&allow)?;
        let changed = now.with(&allow).and_then(|more| more.without(&deny));
        let changed = changed.map_err(|error| Error::InvalidOption { why: error.to_string() })?;
        if allow != Egress::Nothing {
            self.check_nets(&changed)?;
        }
        Ok(changed)
    }

    /// Checks that a policy names known presets, has few networks, and stays within the administrator's ceiling.
    pub(super) fn check_egress(&self, egress: &Egress) -> Result<()> {
        let presets = &self.settings.presets;
        if let Some(missing) = presets.missing_in(egress) {
            let known = presets.names().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let known =
                if known.is_empty() { "this host has none".to_owned() } else { format!("there are {known}") };
            let why = format!("there is no egress preset {missing}; {known}");
            return Err(Error::InvalidOption { why });
        }
        self.check_nets(egress)?;
        self.check_ceiling(egress)
    }

    fn check_nets(&self, egress: &Egress) -> Result<()> {
        match AllowList::of(egress, &self.settings.presets).nets().len() {
            0..=MAX_NETS => Ok(()),
            count => {
                let why = format!("an egress policy can have at most {MAX_NETS} networks, not {count}");
                Err(Error::InvalidOption { why })
            }
        }
    }

    /// Checks that a policy stays within the administrator's ceiling, which may have become lower since it was set.
    pub(super) fn check_ceiling(&self, egress: &Egress) -> Result<()> {
        let ceiling = &self.settings.egress_ceiling;
        let Some(entry) = beyond(egress, ceiling, &self.settings.presets) else { return Ok(()) };
        let what = match egress {
            Egress::Everything => "everything, which NAT and image builds need".to_owned(),
            _ => entry,
        };
        Err(Error::BeyondCeiling { what, ceiling: ceiling.to_string() })
    }

    /// Returns whether a policy is NAT for everything, and what it allows otherwise. A sandbox that was running when the
    /// ceiling became lower has what is left of its policy.
    pub(super) fn reach(&self, egress: &Egress) -> (Nat, Arc<AllowList>) {
        match under(egress, &self.settings.egress_ceiling, &self.settings.presets) {
            None => (Nat::On, Arc::default()),
            Some(allowed) => (Nat::Off, Arc::new(allowed)),
        }
    }
}

/// Announces denials until the engine is dropped.
pub(super) async fn announce(shared: Weak<Shared>) {
    while let Some(network) = shared.upgrade().map(|shared| Arc::clone(&shared.ports.network)) {
        let denials = network.denials().await;
        let Some(shared) = shared.upgrade() else { return };
        for denial in denials {
            if let Some(view) = shared.inventory.vm(denial.vm) {
                shared.events.send(Event::EgressDenied { view, destination: denial.destination });
            }
        }
        drop(shared);
        tokio::time::sleep(PAUSE).await;
    }
}
