//! Repairs at the request of an administrator what can be repaired without risk (`banger doctor --fix`).
//!
//! The service repairs most of it by itself, when it starts and every minute ([`super::recover`]). A repair does this at
//! once and for the whole host, and says what it did. It takes these steps:
//!
//! | step | what is removed or restored | why it is ours, and unused |
//! |---|---|---|
//! | orphans | resources of sandboxes that are gone | the ledger names them, or their own mark on the host does, and no row, sandbox, snapshot or template has this id |
//! | problems | what recovery or the end of a sandbox could not do | the task of the sandbox decides |
//! | network | the link, the rules of the packet filter and the elements of guests | their names are ours alone |
//! | caches | downloads that nothing has used for a month, templates that no start can use | they are fetched or made again |
//!
//! What is left is in the checks, whose hints say who can do something about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use banger_domain::{
    id::{Uid, VmId},
    resource::Resource,
};
use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::{
    Engine, Shared,
    error::{Error, Result, one_line},
    problems::{Subject, noun, plural},
    recover::look,
    vm_task::Command,
};
use crate::ports::{Check, Status, network::Restored, registry::Prune};

/// How long the tasks of sandboxes may take for what they are asked to do. One may be busy with a start.
const TASKS: Duration = Duration::from_secs(30);
/// How long a repair waits for the end of another one, or of a retry.
const TURN: Duration = Duration::from_secs(10);
/// How long a download in the cache may be unused.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);

impl Engine {
    /// Repairs the host. Returns what was repaired, and then all checks, as root sees them. A repeat is safe. Fails with
    /// [`Error::Repairing`] if another repair does not end.
    pub async fn repair(&self, caller: Uid) -> Result<Vec<Check>> {
        let mut checks = self.shared.repair().await?;
        checks.extend(self.checks(caller, Uid::ROOT).await);
        Ok(checks)
    }
}

impl Shared {
    async fn repair(self: &Arc<Self>) -> Result<Vec<Check>> {
        let turn = tokio::time::timeout(TURN, self.repairing.lock()).await;
        let turn = turn.map_err(|_| Error::Repairing)?;
        let before: Vec<(Subject, String)> = self
            .problems
            .all()
            .into_keys()
            .filter_map(|subject| Some((subject, self.mended(subject)?)))
            .collect();
        let mut checks = Vec::new();
        self.remove_orphans(&mut checks).await;
        self.retry().await;
        if !before.is_empty() {
            self.settle().await;
        }
        self.restore_network(&mut checks).await;
        self.clean_caches(&mut checks).await;
        drop(turn);
        let left = self.problems.all();
        for (subject, mended) in before {
            let is_mended = !left.contains_key(&subject) && self.is_needed(subject);
            if is_mended && !checks.iter().any(|check| check.message == mended) {
                checks.push(fixed("leftovers", mended));
            }
        }
        for Check { name, status, message, .. } in &checks {
            match status {
                Status::Fixed => tracing::info!(check = name, message, "repaired"),
                _ => tracing::warn!(check = name, message, "a repair failed"),
            }
        }
        Ok(checks)
    }

    /// Returns whether the end of a problem means that something was done: the interface of a sandbox that is down has gone.
    fn is_needed(&self, subject: Subject) -> bool {
        match subject {
            Subject::Interface(vm) => {
                self.inventory.vm(vm).is_some_and(|view| view.vm.state.is_up() || view.vm.wakes())
            }
            _ => true,
        }
    }

    /// Removes the resources of sandboxes that are gone, and of none that has a row.
    async fn remove_orphans(&self, checks: &mut Vec<Check>) {
        let mut found: BTreeMap<VmId, BTreeSet<Resource>> = BTreeMap::new();
        match self.ports.store.ledger().await {
            Ok(ledger) => ledger.into_iter().for_each(|(vm, resource)| {
                found.entry(vm).or_default().insert(resource);
            }),
            Err(error) => checks.push(failed("ledger", "read the ledger", &error)),
        }
        for resource in Resource::ALL {
            match look(&self.ports, resource).await {
                Ok(vms) => vms.into_keys().for_each(|vm| {
                    found.entry(vm).or_default().insert(resource);
                }),
                // Tried again as any other problem.
                Err(error) => self.note(Subject::Scan(resource), Err(error)),
            }
        }
        // A sandbox is known before it has any resource, and these were found before this look at the sandboxes. One that
        // is not known may have a row nevertheless: it could not be deleted, and the next start of the service takes it over.
        found.retain(|vm, _| !self.is_known(*vm));
        if found.is_empty() {
            return;
        }
        match self.rows().await {
            Ok(rows) => found.retain(|vm, _| !rows.contains(vm)),
            Err(error) => return checks.push(failed("leftovers", "read which sandboxes there are", &error)),
        }
        let there = match self.look_again(&mut found).await {
            Ok(there) => there,
            Err(error) => return checks.push(failed("ledger", "read the ledger", &error)),
        };
        for (vm, resources) in found {
            let left = self.remove_orphan(vm, resources.clone()).await;
            let is_left = |resource| left.iter().any(|(other, _)| *other == resource);
            for resource in resources.into_iter().filter(|resource| !is_left(*resource)) {
                if there.contains(&(vm, resource)) {
                    checks.push(fixed("leftovers", removed(resource, &deleted(vm))));
                }
            }
        }
    }

    /// Keeps only what is still there: a sandbox may have been deleted while this was being found. Returns what is on the
    /// host, and not in the ledger alone.
    async fn look_again(
        &self,
        found: &mut BTreeMap<VmId, BTreeSet<Resource>>,
    ) -> Result<BTreeSet<(VmId, Resource)>> {
        let mut there = BTreeSet::new();
        let kinds: BTreeSet<Resource> = found.values().flatten().copied().collect();
        for resource in kinds {
            // What cannot be listed is removed only if it is in the ledger.
            let vms = look(&self.ports, resource).await.unwrap_or_default();
            there.extend(vms.into_keys().map(|vm| (vm, resource)));
        }
        let recorded: BTreeSet<_> = self.ports.store.ledger().await?.into_iter().collect();
        for (vm, resources) in found.iter_mut() {
            resources.retain(|resource| {
                let key = (*vm, *resource);
                there.contains(&key) || recorded.contains(&key)
            });
        }
        found.retain(|_, resources| !resources.is_empty());
        Ok(there)
    }

    fn is_known(&self, vm: VmId) -> bool {
        self.makes_template_in(vm) || self.inventory.is_snapshot(vm) || self.inventory.inbox(vm).is_ok()
    }

    /// Waits until the tasks of all sandboxes have done what they were asked to do, for at most [`TASKS`].
    async fn settle(&self) {
        let inboxes =
            self.inventory.vms().into_iter().filter_map(|view| self.inventory.inbox(view.vm.id).ok());
        let settled = join_all(inboxes.map(async |inbox| {
            let (reply, settled) = oneshot::channel();
            // A task that has ended has nothing left to do.
            if inbox.send(Command::Settle { reply }).await.is_ok() {
                let _ = settled.await;
            }
        }));
        // What is not done yet is still a problem, and shown as one.
        let _ = tokio::time::timeout(TASKS, settled).await;
    }

    async fn restore_network(&self, checks: &mut Vec<Check>) {
        const NAME: &str = "network";
        if self.subnet.get().is_none() {
            return checks.push(match self.subnet().await {
                Ok(_) => fixed(NAME, "set up the network of guests".to_owned()),
                Err(error) => {
                    Check { status: Status::Fail, ..failed(NAME, "set up the network of guests", &error) }
                }
            });
        }
        match self.ports.network.restore().await {
            Ok(Restored { link, rules, guests, forwarding }) => {
                let done = [
                    (link, "set up the link between the host and its guests again"),
                    (rules, "loaded the rules of the packet filter again: some were missing or not banger's"),
                    (guests, "added sandboxes to the packet filter again, which had lost them"),
                    (forwarding, "enabled forwarding for sandboxes again"),
                ];
                let done = done.into_iter().filter(|(done, _)| *done);
                checks.extend(done.map(|(_, what)| fixed(NAME, what.to_owned())));
            }
            Err(error) => {
                let failed = failed(NAME, "restore the network of guests", &error);
                checks.push(Check { status: Status::Fail, ..failed });
            }
        }
    }

    async fn clean_caches(&self, checks: &mut Vec<Check>) {
        match self.ports.registry.prune(Prune { older_than: Some(UNUSED), dry_run: false }).await {
            Ok(pruned) if pruned.blobs > 0 => {
                let downloads = if pruned.blobs == 1 { "download" } else { "downloads" };
                let what = format!(
                    "removed {} {downloads} of {} that nothing has used for 30 days",
                    pruned.blobs, pruned.bytes
                );
                checks.push(fixed("cache", what));
            }
            Ok(_) => {}
            Err(error) => checks.push(failed("cache", "remove unused downloads", &error)),
        }
        match self.tidy_templates().await {
            Ok(0) => {}
            Ok(1) => checks.push(fixed("templates", "removed a template that no start can use".to_owned())),
            Ok(count) => {
                checks.push(fixed("templates", format!("removed {count} templates that no start can use")));
            }
            Err(error) => checks.push(failed("templates", "remove old templates", &error)),
        }
    }

    /// Returns what was done if a problem no longer exists; none if it no longer matters.
    fn mended(&self, subject: Subject) -> Option<String> {
        let name = |vm| self.inventory.vm(vm).map(|view| view.vm.name.to_string());
        Some(match subject {
            Subject::Scan(resource) => format!("listed the {} of sandboxes", plural(resource)),
            Subject::KernelOrphans => "removed unused files of kernels, if there were any".to_owned(),
            Subject::ImageOrphans => "removed unused files of images, if there were any".to_owned(),
            Subject::KernelFiles(_) => "removed the files of a deleted kernel".to_owned(),
            Subject::ImageFiles(_) => "removed the files of a deleted image".to_owned(),
            Subject::Resource(vm, resource) => removed(resource, &name(vm).unwrap_or_else(|| deleted(vm))),
            Subject::Interface(vm) => format!("set up the network interface of {} again", name(vm)?),
        })
    }
}

fn deleted(vm: VmId) -> String {
    format!("the deleted sandbox {vm}")
}

fn removed(resource: Resource, of: &str) -> String {
    format!("removed the {} of {of}", noun(resource))
}

fn fixed(name: &'static str, message: String) -> Check {
    Check { name, status: Status::Fixed, message, hint: String::new() }
}

fn failed<E: std::error::Error>(name: &'static str, what: &str, error: &E) -> Check {
    let message = format!("cannot {what}: {}", one_line(error));
    let hint =
        "`journalctl -u banger-system` has more; remove the cause, and run `banger doctor --fix` again";
    Check { name, status: Status::Warn, message, hint: hint.to_owned() }
}
