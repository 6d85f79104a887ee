//! Publishes the DNS names of sandboxes. All names are computed again after any change, and so starts, stops,
//! renames, crashes and recovery need no code of their own.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, Weak},
};

use banger_domain::{
    dns::{
        label::UserLabel,
        table::{NamedVm, Table},
    },
    id::Uid,
    net::subnet::Subnet,
};
use tokio::sync::watch;

use super::{Shared, view::VmView};

/// DNS labels of users. An account is looked up once, because name services may be slow. A renamed user gets the new
/// name when the service restarts.
type Labels = HashMap<Uid, UserLabel>;

/// Publishes names until the engine is dropped.
pub(super) async fn run(shared: Weak<Shared>, mut changes: watch::Receiver<()>) {
    let mut labels = Labels::new();
    while changes.changed().await.is_ok() {
        let Some(shared) = shared.upgrade() else { return };
        let Some(&subnet) = shared.subnet.get() else { continue };
        let views = shared.inventory.vms();
        look_up_owners(&shared, &views, &mut labels).await;
        let names = Arc::new(table(subnet, &views, &labels));
        let mut published = shared.names.write().unwrap_or_else(PoisonError::into_inner);
        if published.as_ref() != Some(&names) {
            shared.ports.names.publish(Arc::clone(&names));
            *published = Some(names);
        }
    }
}

/// Looks up the owners that are not known yet.
async fn look_up_owners(shared: &Shared, views: &[Arc<VmView>], labels: &mut Labels) {
    for owner in views.iter().map(|view| view.vm.owner) {
        if labels.contains_key(&owner) {
            continue;
        }
        let users = Arc::clone(&shared.ports.users);
        let login = tokio::task::spawn_blocking(move || users.name_of(owner)).await;
        // A failed look-up leaves the number.
        let label = UserLabel::of(&login.unwrap_or_default(), owner);
        // Two users with one login name must not see each other's sandboxes.
        let taken = labels.values().any(|other| *other == label);
        labels.insert(owner, if taken { UserLabel::of("", owner) } else { label });
    }
}

fn table(subnet: Subnet, views: &[Arc<VmView>], labels: &Labels) -> Table {
    let up = views.iter().filter(|view| view.vm.state.is_up());
    let holders = up.filter_map(|view| {
        Some(NamedVm {
            vm: view.vm.id,
            name: view.vm.name.clone(),
            user: labels.get(&view.vm.owner)?.clone(),
            slot: view.vm.slot,
            nat: view.vm.spec.nat,
            since: view.vm.started_at,
        })
    });
    Table::of(subnet, holders.collect())
}
