//! The host's own kernel, which sandboxes boot by default: imported on first use, and again after the host's package
//! has changed. Every start of a sandbox that uses it looks at the host's files; nothing else does.
//!
//! The newest import is the shared kernel `host` of root. An import that replaces it sets the old one aside under
//! another name, as long as a sandbox uses it. A sandbox of an old one boots the newest one at its next start.

use std::sync::{Arc, Mutex, PoisonError};

use banger_domain::{
    id::{JobId, KernelId, Uid},
    name::{Name, Reference},
};
use banger_image::record::Kernel;

use super::{
    Engine, Shared,
    error::{Error, Kind, Result, one_line},
    job::{JobHandle, Stages},
    now,
    pipeline::{self, Order, RequestedBy, commit, reserve},
    single_flight::PullRequest,
    view::{JobKind, KernelView, Object, Outcome},
};
use crate::ports::kernel_files::HostKernel;

/// The name that means the host's own kernel.
pub const NAME: &str = "host";
/// What the source of such a kernel begins with. No catalog has a colon in its name.
const SOURCE: &str = "host:";
/// Digits of the id in the name of an old import.
const ID_DIGITS: usize = 8;
const IMPORT: Stages = &["import"];

/// The kernel of a sandbox that waits for the first import. No kernel has this id.
pub(in crate::engine) const AWAITED: KernelId = KernelId::from_bits(0);

/// The import that failed last.
#[derive(Default)]
pub(super) struct FailedImport(Mutex<Option<(String, String)>>);

impl FailedImport {
    fn note(&self, source: &str, why: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((source.to_owned(), why));
    }

    /// Returns why the import of exactly these files failed, if it did.
    fn of(&self, source: &str) -> Option<String> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(failed, _)| failed == source).map(|(_, why)| why.clone())
    }
}

/// What a sandbox has to do about its kernel before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Freshness {
    /// Nothing.
    Fresh,
    /// Boot this one, which was imported meanwhile.
    Switch(KernelId),
    /// Wait for an import.
    Stale,
}

/// The state of the host's own kernel, for `doctor`.
pub(in crate::engine) struct HostKernelReport {
    /// The newest import.
    pub(in crate::engine) imported: Option<Arc<KernelView>>,
    /// What is installed, or why nothing is.
    pub(in crate::engine) installed: std::result::Result<HostKernel, String>,
    /// Whether the import is of what is installed.
    pub(in crate::engine) is_fresh: bool,
    /// Why what is installed could not be imported, if that was tried.
    pub(in crate::engine) failed: Option<String>,
}

impl Engine {
    /// Returns the kernel for a new sandbox. Fails before anything is created if it has to be imported from the host,
    /// and the host has none.
    pub(in crate::engine) async fn kernel_for(&self, owner: Uid, reference: &Reference) -> Result<KernelId> {
        match (self.kernel_by(owner, reference), reference) {
            (Ok(kernel), _) => Ok(kernel.id),
            (Err(Error::NoSuch { .. }), Reference::Name(name)) if name.as_str() == NAME => {
                self.shared.ports.kernel_files.on_host().await?;
                Ok(AWAITED)
            }
            (Err(error), _) => Err(error),
        }
    }

    pub(in crate::engine) async fn report_host_kernel(&self) -> HostKernelReport {
        let imported = self.shared.host_kernel();
        let installed = self.shared.ports.kernel_files.on_host().await.map_err(|error| error.to_string());
        let source = installed.as_ref().ok().map(source_of);
        let is_fresh = source.is_some() && imported.as_ref().map(|kernel| kernel.source.clone()) == source;
        let failed = source.and_then(|source| self.shared.library.failed_import.of(&source));
        HostKernelReport { imported, installed, is_fresh, failed }
    }
}

impl Shared {
    /// Returns the newest import of the host's own kernel.
    fn host_kernel(&self) -> Option<Arc<KernelView>> {
        let kernels = self.inventory.all::<Kernel>();
        kernels.into_iter().find(|kernel| is_of_host(kernel) && kernel.name.as_str() == NAME)
    }

    /// Returns what a sandbox with this kernel has to do before it starts. Looks only at names and times of files.
    pub(in crate::engine) async fn freshness(&self, kernel: KernelId) -> Freshness {
        // One that is gone was an old import: all others stay while a sandbox uses them.
        let is_gone = !self.has_kernel(kernel);
        if self.inventory.item::<Kernel>(kernel).is_some_and(|kernel| !is_of_host(&kernel)) {
            return Freshness::Fresh;
        }
        let newest = self.host_kernel();
        match (self.ports.kernel_files.on_host().await, newest) {
            (Ok(found), Some(newest)) if self.is_import_due(&source_of(&found), &newest) => Freshness::Stale,
            (_, Some(newest)) if newest.id == kernel => Freshness::Fresh,
            (_, Some(newest)) => Freshness::Switch(newest.id),
            (Ok(_), None) => Freshness::Stale,
            // An old import is better than none.
            (Err(_), None) if is_gone => Freshness::Stale,
            (Err(_), None) => Freshness::Fresh,
        }
    }

    /// Returns whether a kernel is on this host. One that is awaited is not.
    pub(in crate::engine) fn has_kernel(&self, kernel: KernelId) -> bool {
        self.inventory.item::<Kernel>(kernel).is_some()
    }

    /// Returns whether what is installed differs from the newest import, and may be one that guests can boot.
    fn is_import_due(&self, source: &str, newest: &KernelView) -> bool {
        newest.source != source && self.library.failed_import.of(source).is_none()
    }

    /// Removes old imports that nothing uses any more.
    pub(in crate::engine) async fn remove_old_host_kernels(&self) {
        let kernels = self.inventory.all::<Kernel>();
        let old = kernels.iter().filter(|kernel| is_of_host(kernel) && kernel.name.as_str() != NAME);
        for kernel in old {
            match pipeline::delete::<Kernel>(self, kernel.id).await {
                Ok(()) => tracing::info!(release = kernel.facts.release, "removed an old kernel of the host"),
                // The next sandbox that is deleted or started with another one tries again.
                Err(Error::InUse { .. } | Error::NoSuch { .. }) => {}
                Err(error) => {
                    tracing::warn!(error = %one_line(&error), "cannot remove an old kernel of the host")
                }
            }
        }
    }
}

/// Does what [`import`] does for a job, unless that is cancelled.
pub(in crate::engine) async fn import_for(shared: &Arc<Shared>, job: &JobHandle) -> Result<KernelId> {
    pipeline::unless_canceled(job, import(shared)).await?
}

/// Imports the host's own kernel, and returns it. Callers at the same time share one import, which continues if they
/// stop waiting.
pub(in crate::engine) async fn import(shared: &Arc<Shared>) -> Result<KernelId> {
    let job = start(shared)?;
    match shared.jobs.wait(job, None).await?.outcome.clone() {
        Some(Outcome::Done) => shared.host_kernel().map(|kernel| kernel.id).ok_or(Error::Canceled),
        Some(Outcome::Failed(why)) => Err(Error::Dependency { why }),
        Some(Outcome::Canceled) | None => Err(Error::Canceled),
    }
}

fn start(shared: &Arc<Shared>) -> Result<JobId> {
    let name: Name = NAME.parse()?;
    let pulls = shared.library.running_pulls.lock();
    if let Some(job) = pulls.job_of(Kind::Kernel, Uid::ROOT, &name, &PullRequest::HostKernel) {
        return Ok(job);
    }
    let order = Order::<Kernel> {
        owner: Uid::ROOT,
        name: name.clone(),
        replaces: shared.host_kernel().map(|kernel| kernel.id),
        kind: JobKind::KernelImport,
        stages: IMPORT,
        // The jobs of the sandboxes that wait for it hold turns.
        requested_by: RequestedBy::Job,
    };
    let reserved = reserve(shared, order)?.shared_by(pulls, PullRequest::HostKernel);
    Ok(reserved.run(move |shared, job| Box::pin(run(shared, job, name))))
}

async fn run(shared: &Arc<Shared>, job: &JobHandle, name: Name) -> Result<()> {
    let files = &shared.ports.kernel_files;
    let found = files.on_host().await?;
    let source = source_of(&found);
    let old = shared.host_kernel();
    if old.as_ref().is_some_and(|kernel| kernel.source == source) {
        return Ok(());
    }
    let _worker = job.acquire_worker().await?;
    job.stage("import", format!("importing the kernel {} of this host", found.installed.release));
    let id = KernelId::random();
    let facts = files.import_from_host(id, &found).await;
    let facts = facts.inspect_err(|error| shared.library.failed_import.note(&source, one_line(error)))?;
    let kernel = Kernel {
        id,
        name,
        owner: Uid::ROOT,
        shared: true,
        source,
        created_at: now(&*shared.ports.clock),
        facts,
    };
    if let Some(old) = old {
        set_aside(shared, &old).await?;
    }
    commit(shared, job, &kernel, None).await?;
    job.add_object(Object::Kernel(id));
    shared.remove_old_host_kernels().await;
    Ok(())
}

/// Gives an old import another name, so that the next one gets its own.
async fn set_aside(shared: &Shared, old: &KernelView) -> Result<()> {
    let id = old.id.to_string();
    let name: Name = format!("{NAME}-{}", id.get(..ID_DIGITS).unwrap_or(&id)).parse()?;
    pipeline::rename::<Kernel>(shared, old.id, &name).await
}

/// Returns whether a kernel was imported from the host, and an administrator has not given it a name of its own.
pub(in crate::engine) fn is_of_host(kernel: &KernelView) -> bool {
    let is_named =
        kernel.name.as_str().strip_prefix(NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    kernel.owner == Uid::ROOT && kernel.source.starts_with(SOURCE) && is_named
}

fn source_of(found: &HostKernel) -> String {
    format!("{SOURCE}{}@{}", found.installed.vmlinuz.display(), found.stamp)
}
