//! The names of sandboxes: all computed again whenever a sandbox has changed in any way. Starts, stops,
//! renames, crashes and recoveries are all the same to it.

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

/// The labels of users. An account is looked up once: name services may be slow, and a user who is renamed
/// gets the new name with the next run of the service.
type Labels = HashMap<Uid, UserLabel>;

/// Publishes the names for as long as there is an engine.
pub(super) async fn keep(shared: Weak<Shared>, mut changes: watch::Receiver<()>) {
    let mut labels = Labels::new();
    while changes.changed().await.is_ok() {
        let Some(shared) = shared.upgrade() else { return };
        let Some(&subnet) = shared.subnet.get() else { continue };
        let views = shared.registry.vms();
        learn(&shared, &views, &mut labels).await;
        let names = Arc::new(table(subnet, &views, &labels));
        let mut published = shared.names.write().unwrap_or_else(PoisonError::into_inner);
        if published.as_ref() != Some(&names) {
            shared.ports.names.publish(Arc::clone(&names));
            *published = Some(names);
        }
    }
}

/// Looks the owners up that are new.
async fn learn(shared: &Shared, views: &[Arc<VmView>], labels: &mut Labels) {
    for owner in views.iter().map(|view| view.vm.owner) {
        if labels.contains_key(&owner) {
            continue;
        }
        let users = Arc::clone(&shared.ports.users);
        let login = tokio::task::spawn_blocking(move || users.name_of(owner)).await;
        // A look-up that broke leaves the number.
        let label = UserLabel::of(&login.unwrap_or_default(), owner);
        // One login name for two numbers would let each know of the other's machines.
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
