//! Egress policies: what may be asked for, and what sandboxes were denied.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::{
    egress::{
        Egress,
        allow_list::{AllowList, MAX_NETS, beyond, cut, under},
        log::EgressLog,
    },
    id::{Uid, VmId},
    net::nic::Nat,
};

use super::{
    Engine, Shared,
    error::{Error, Result},
    request::{Configure, EgressChange},
    view::Event,
};
use crate::ports::{Check, Status};

/// Pause between announcements, so that a flood of denials costs little.
const PAUSE: Duration = Duration::from_millis(100);

impl Engine {
    /// Returns what a restricted sandbox was allowed and denied since it started.
    pub fn egress_log(&self, vm: VmId) -> EgressLog {
        self.shared.ports.network.egress_log(vm)
    }

    /// Returns the entries of a policy that the administrator's ceiling no longer allows, or not in full.
    pub fn egress_cut(&self, policy: &Egress) -> Vec<String> {
        cut(policy, &self.shared.settings.egress_ceiling, &self.shared.settings.presets)
    }

    /// Returns the checks about presets that are wrong, and about those that the ceiling or the caller's sandboxes name
    /// although they are gone. Root sees those of all sandboxes.
    pub(super) fn preset_checks(&self, caller: Uid) -> Vec<Check> {
        let settings = &self.shared.settings;
        let check = |message: String, hint: String| Check {
            name: "egress presets",
            status: Status::Warn,
            message,
            hint,
        };
        let of_faults = settings
            .presets
            .faults()
            .iter()
            .map(|fault| check(fault.clone(), "correct the file, and restart banger-system".to_owned()));
        let mut checks: Vec<Check> = of_faults.collect();
        let adds = |preset| format!("/etc/banger/egress.d/{preset}.toml adds it");
        for preset in settings.presets.all_missing_in(&settings.egress_ceiling) {
            let message =
                format!("egress in /etc/banger/config.toml needs the preset {preset}, which does not exist");
            checks.push(check(message, adds(preset)));
        }
        for view in self.vms().iter().filter(|view| view.vm.owner == caller || caller == Uid::ROOT) {
            for preset in settings.presets.all_missing_in(&view.vm.spec.egress) {
                let name = &view.vm.name;
                let message =
                    format!("the egress policy of {name} needs the preset {preset}, which does not exist");
                checks.push(check(message, adds(preset)));
            }
        }
        checks
    }

    /// Changes what a sandbox may reach, at once.
    pub async fn set_egress(&self, vm: VmId, change: impl Into<EgressChange>) -> Result<()> {
        self.configure_vm(vm, Configure { egress: Some(change.into()), ..Configure::default() }).await
    }
}

impl Shared {
    /// Logs the presets that a sandbox's policy needs and that do not exist: they allow nothing.
    pub(super) fn log_missing_presets(&self, vm: VmId, policy: &Egress) {
        for preset in self.settings.presets.all_missing_in(policy) {
            tracing::warn!(%vm, %preset, "an egress policy needs a preset that does not exist");
        }
    }

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
