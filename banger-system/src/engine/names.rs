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
        table::{NamedVm, Table},
    },
    id::Uid,
    net::subnet::Subnet,
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
        {
            let mut published = shared.names.write().unwrap_or_else(PoisonError::into_inner);
            if published.as_ref() != Some(&names) {
                shared.ports.names.publish(Arc::clone(&names));
                *published = Some(names);
            }
        }
        drop(shared);
        tokio::time::sleep(begun.elapsed() * REST).await;
    }
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

fn table(shared: &Shared, subnet: Subnet, views: &[Arc<VmView>], labels: &Labels) -> Table {
    let up = views.iter().filter(|view| view.vm.state.is_up());
    let holders = up.filter_map(|view| {
        let (nat, allowed) = shared.reach(&view.vm.spec.egress);
        Some(NamedVm {
            vm: view.vm.id,
            name: view.vm.name.clone(),
            user: labels.get(&view.vm.owner)?.clone(),
            slot: view.vm.slot,
            nat,
            allowed,
            since: view.vm.started_at,
        })
    });
    Table::of(subnet, holders.collect())
}
