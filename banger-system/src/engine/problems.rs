//! What went wrong on the host and is not mended yet. `doctor` shows it, and recovery tries again ([`super::recover`]).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use banger_domain::{
    id::{ImageId, KernelId, Uid, VmId},
    resource::Resource,
};
use tokio::sync::watch;

use super::{Engine, error::one_line};
use crate::ports::{Check, Status};

/// What has a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// It is not known which resources of this kind exist on the host.
    Scan(Resource),
    /// There may be files of kernels that are in no row.
    KernelOrphans,
    /// There may be files of images that are in no row.
    ImageOrphans,
    /// The files of a kernel that is gone.
    KernelFiles(KernelId),
    /// The files of an image that is gone.
    ImageFiles(ImageId),
    /// A resource that a sandbox no longer needs. The sandbox may be gone.
    Resource(VmId, Resource),
    /// The network interface of a running sandbox, which may have rules of an earlier run.
    Interface(VmId),
}

/// The current problems. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Problems {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// With the causes of each, on one line.
    all: Mutex<BTreeMap<Subject, String>>,
    changes: watch::Sender<()>,
}

impl Problems {
    /// Adds a problem, or replaces its cause.
    pub(super) fn set(&self, subject: Subject, cause: &dyn std::error::Error) {
        self.lock().insert(subject, one_line(cause));
        self.inner.changes.send_replace(());
    }

    /// Removes a problem, because it is mended.
    pub(super) fn clear(&self, subject: Subject) {
        self.lock().remove(&subject);
    }

    pub(super) fn all(&self) -> BTreeMap<Subject, String> {
        self.lock().clone()
    }

    /// Waits until there is a problem.
    pub(super) async fn wait(&self) {
        let mut changes = self.inner.changes.subscribe();
        while self.lock().is_empty() {
            // The sender lives in `self`.
            let _ = changes.changed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Subject, String>> {
        self.inner.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the noun for a kind of resource of one sandbox.
pub(super) const fn noun(resource: Resource) -> &'static str {
    match resource {
        Resource::Disks => "disks",
        Resource::Capture => "suspended memory",
        Resource::Mapper => "block devices",
        Resource::Nic => "network interface",
        Resource::Sockets => "sockets",
        Resource::Unit => "VMM process",
    }
}

/// Returns the noun for the resources of this kind of all sandboxes.
pub(super) const fn plural(resource: Resource) -> &'static str {
    match resource {
        Resource::Disks => "disks",
        Resource::Capture => "suspended memory",
        Resource::Mapper => "block devices",
        Resource::Nic => "network interfaces",
        Resource::Sockets => "sockets",
        Resource::Unit => "VMM processes",
    }
}

impl Engine {
    /// Returns the checks about problems that concern this user: all of the host's, and those of the user's own
    /// sandboxes. Root sees those of all.
    pub(super) fn problem_checks(&self, caller: Uid) -> Vec<Check> {
        let problems = self.shared.problems.all();
        problems
            .into_iter()
            .filter_map(|(subject, cause)| self.problem_check(caller, subject, &cause))
            .collect()
    }

    fn problem_check(&self, caller: Uid, subject: Subject, cause: &str) -> Option<Check> {
        const WAIT: &str = "banger tries again every minute, and at once for `banger doctor --fix`";
        let (name, message) = match subject {
            Subject::Scan(resource) => {
                ("recovery", format!("cannot list the {} of sandboxes", plural(resource)))
            }
            Subject::KernelOrphans => ("recovery", "unused files of kernels may be left".to_owned()),
            Subject::ImageOrphans => ("recovery", "unused files of images may be left".to_owned()),
            Subject::KernelFiles(_) => {
                ("leftovers", "cannot remove the files of a deleted kernel".to_owned())
            }
            Subject::ImageFiles(_) => ("leftovers", "cannot remove the files of a deleted image".to_owned()),
            Subject::Resource(vm, resource) => {
                let of = match self.vm(vm) {
                    Some(view) if view.vm.owner == caller || caller == Uid::ROOT => view.vm.name.to_string(),
                    None if caller == Uid::ROOT => format!("the deleted sandbox {vm}"),
                    _ => return None,
                };
                ("leftovers", format!("cannot remove the {} of {of}", noun(resource)))
            }
            Subject::Interface(vm) => match self.vm(vm) {
                Some(view) if view.vm.owner == caller || caller == Uid::ROOT => {
                    ("recovery", format!("cannot set up the network interface of {} again", view.vm.name))
                }
                _ => return None,
            },
        };
        let message = format!("{message}: {cause}");
        Some(Check { name, status: Status::Warn, message, hint: WAIT.to_owned() })
    }
}
