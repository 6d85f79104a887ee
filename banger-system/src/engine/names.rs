//! Publishes the DNS names of sandboxes. All names are computed again after any change that matters to them, and so
//! starts, stops, renames, crashes and recovery need no code of their own.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, Weak},
    time::{Duration, Instant},
};

use banger_domain::{
    dns::{
        label::UserLabel,
        table::{NamedVm, Presence, Table},
    },
    id::Uid,
    lifecycle::State,
    net::subnet::Subnet,
    vm::Vm,
};
use futures_util::future::join_all;
use tokio::sync::watch;

use super::{Shared, view::VmView};

/// DNS labels of users. An account is looked up once, because name services may be slow. A renamed user gets the new
/// name when the service restarts.
type Labels = HashMap<Uid, UserLabel>;

/// Pause before the name service is asked again that did not answer.
const RETRY: Duration = Duration::from_secs(10);
/// How much longer the pause after a computation is than the computation itself. Changes that come meanwhile are computed
/// together: a thousand sandboxes that start cost a tenth of a processor at most.
const REST: u32 = 9;
/// The longest of these pauses. A computation that had no processor for a while must not keep a policy that was tightened
/// from the name server.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// Publishes names until the engine is dropped.
pub(super) async fn run(shared: Weak<Shared>, mut changes: watch::Receiver<()>) {
    let (mut labels, mut all_known) = (Labels::new(), true);
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !all_known => {}
        }
        let Some(shared) = shared.upgrade() else { return };
        let Some(&subnet) = shared.subnet.get() else { continue };
        let views = shared.inventory.vms();
        all_known = look_up_owners(&shared, &views, &mut labels).await;
        let begun = Instant::now();
        let names = Arc::new(table(&shared, subnet, &views, &labels));
        let took = begun.elapsed();
        {
            let mut published = shared.names.write().unwrap_or_else(PoisonError::into_inner);
            if published.as_ref() != Some(&names) {
                shared.ports.names.publish(Arc::clone(&names));
                *published = Some(names);
            }
        }
        drop(shared);
        tokio::time::sleep(rest_after(took)).await;
    }
}

/// Returns the pause after a computation that took this long.
fn rest_after(took: Duration) -> Duration {
    took.saturating_mul(REST).min(LONGEST_REST)
}

/// Looks up the owners that are not known yet. Returns whether all are known now. The sandboxes of the others have no
/// names.
async fn look_up_owners(shared: &Shared, views: &[Arc<VmView>], labels: &mut Labels) -> bool {
    let owners: BTreeSet<Uid> = views.iter().map(|view| view.vm.owner).collect();
    let new = owners.into_iter().filter(|owner| !labels.contains_key(owner));
    // At once: a name service that does not answer must not delay the others by every user.
    let look_up = new.map(async |owner| (owner, shared.ports.users.login_of(owner).await));
    let mut all_known = true;
    for (owner, login) in join_all(look_up).await {
        match login {
            Ok(login) => {
                let label = UserLabel::of(&login.unwrap_or_default(), owner);
                // Two users with one login name must not see each other's sandboxes.
                let taken = labels.values().any(|other| *other == label);
                labels.insert(owner, if taken { UserLabel::of("", owner) } else { label });
            }
            Err(error) => {
                tracing::warn!(%owner, %error, "cannot look up a user");
                all_known = false;
            }
        }
    }
    all_known
}

/// Returns whether the guest of a VM can answer; none if the VM has no names.
pub(super) fn presence(vm: &Vm) -> Option<Presence> {
    match vm.state {
        // Somebody has woken it already.
        State::Resuming => Some(Presence::Asleep),
        _ if vm.wakes() => Some(Presence::Asleep),
        state => state.is_up().then_some(Presence::Up),
    }
}

fn table(shared: &Shared, subnet: Subnet, views: &[Arc<VmView>], labels: &Labels) -> Table {
    let holders = views.iter().filter_map(|view| {
        let presence = presence(&view.vm)?;
        let (nat, allowed) = shared.reach(&view.vm.spec.egress);
        Some(NamedVm {
            vm: view.vm.id,
            name: view.vm.name.clone(),
            user: labels.get(&view.vm.owner)?.clone(),
            slot: view.vm.slot,
            nat,
            allowed,
            since: view.vm.started_at,
            presence,
        })
    });
    Table::of(subnet, holders.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_computation_that_had_no_processor_does_not_delay_the_next_one_for_long() {
        let check =
            |took, rest| assert_eq!(rest_after(Duration::from_millis(took)), Duration::from_millis(rest));
        check(0, 0);
        check(1, 9);
        check(11, 99);
        check(12, 100);
        check(1000, 100);
        assert_eq!(rest_after(Duration::MAX), LONGEST_REST);
    }
}
