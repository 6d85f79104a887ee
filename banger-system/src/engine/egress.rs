//! Egress policies: what may be asked for, and what sandboxes were denied.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::{
    egress::{
        Egress,
        allow_list::{AllowList, beyond},
        log::EgressLog,
    },
    id::VmId,
    net::nic::Nat,
};

use super::{
    Engine, Shared,
    error::{Error, Result},
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
    pub async fn set_egress(&self, vm: VmId, egress: Egress) -> Result<()> {
        self.configure_vm(vm, super::request::Configure { egress: Some(egress), ..Default::default() }).await
    }
}

impl Shared {
    /// Checks that a policy names known presets and stays within the administrator's ceiling.
    pub(super) fn check_egress(&self, egress: &Egress) -> Result<()> {
        let presets = &self.settings.presets;
        if let Some(missing) = presets.missing_in(egress) {
            let known = presets.names().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let known =
                if known.is_empty() { "this host has none".to_owned() } else { format!("there are {known}") };
            let why = format!("there is no egress preset {missing}; {known}");
            return Err(Error::InvalidOption { why });
        }
        self.check_ceiling(egress)
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

    /// Returns what a policy allows without NAT.
    pub(super) fn allow_list(&self, egress: &Egress) -> Arc<AllowList> {
        Arc::new(AllowList::of(egress, &self.settings.presets))
    }
}

/// Returns whether a policy is NAT for everything.
pub(super) fn nat(egress: &Egress) -> Nat {
    if *egress == Egress::Everything { Nat::On } else { Nat::Off }
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
