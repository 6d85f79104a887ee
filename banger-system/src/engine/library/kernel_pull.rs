//! Pulls kernels from catalogs.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
};

use banger_domain::{
    id::{JobId, KernelId},
    name::Name,
};
use banger_image::{
    catalog::{Provenance, index::KernelTarget},
    record::Kernel,
};
use banger_proto::size::Bytes;
use tracing::Instrument;

use super::{
    Engine, Shared, catalog,
    error::{Error, Kind, Result},
    image_pull::unless_canceled,
    job::{JobHandle, Stages},
    now,
    request::{OnConflict, PullKernel},
    view::{Fact, JobKind, KernelView, Object},
};
use crate::ports::images::Progress;

const PULL: Stages = &["resolve", "pull", "import"];

/// Who requested a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestedBy {
    /// A user. The request is queued.
    User,
    /// A running job. In the queue, the kernel would wait for that job to end.
    Job,
}

/// What a pull creates.
struct Pull {
    request: PullKernel,
    name: Name,
    /// The kernel of the same name, if there is one.
    old: Option<KernelId>,
}

impl Engine {
    /// Starts to pull a kernel. An identical request of the same user returns the running job.
    pub fn pull_kernel(&self, request: PullKernel) -> Result<JobId> {
        self.pull_kernel_for(RequestedBy::User, request)
    }

    /// Pulls a kernel for a user or for a running job.
    pub(super) fn pull_kernel_for(&self, requested_by: RequestedBy, request: PullKernel) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let name = request.name.clone().unwrap_or_else(|| request.entry.clone());
        let key = (request.owner, name.clone());
        let mut jobs = shared.pulls.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((same, job)) = jobs.get(&key)
            && *same == request
        {
            if requested_by == RequestedBy::Job {
                shared.jobs.promote(*job);
            }
            return Ok(*job);
        }
        let is_namesake = |kernel: &KernelView| kernel.owner == request.owner && kernel.name == name;
        let old = self.kernels().into_iter().find(|kernel| is_namesake(kernel)).map(|kernel| kernel.id);
        let limit = shared.settings.limits.images;
        shared.inventory.reserve(Kind::Kernel, request.owner, &name, limit, old.map(Object::Kernel))?;
        let owner = request.owner;
        let job = match requested_by {
            RequestedBy::User => shared.jobs.begin(JobKind::KernelPull, owner, Vec::new(), PULL),
            RequestedBy::Job => Ok(shared.jobs.begin_internal(JobKind::KernelPull, owner, Vec::new(), PULL)),
        };
        let mut job = job.inspect_err(|_| shared.inventory.cancel_reservation(Kind::Kernel, owner, &name))?;
        let id = job.id();
        jobs.insert(key.clone(), (request.clone(), id));
        drop(jobs);

        let pull = Pull { request, name, old };
        tokio::spawn(async move {
            let span = job.span();
            let result = match job.wait_turn().await {
                Ok(()) => run(&shared, &job, &pull).instrument(span).await,
                Err(error) => Err(error),
            };
            shared.inventory.cancel_reservation(Kind::Kernel, pull.request.owner, &pull.name);
            shared.pulls.kernels.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            job.finish(result);
        });
        Ok(id)
    }
}

async fn run(shared: &Shared, job: &JobHandle, pull: &Pull) -> Result<()> {
    let request = &pull.request;
    job.stage("resolve", format!("looking for {} in the catalogs", request.entry));
    let found = unless_canceled(job, catalog::find_kernel(shared, &request.entry)).await??;
    let found = found.ok_or_else(|| catalog::not_found(shared, Kind::Kernel, &request.entry))?;
    let target = found.entry.target.clone().ok_or_else(|| found.not_published())?;
    let (catalog, entry) = (found.catalog, request.entry.clone());
    let from = Provenance { catalog, entry, digest: target.kernel.digest() };
    let source = from.to_string();

    let old = pull.old.and_then(|id| shared.inventory.kernel(id));
    if let Some(old) = &old {
        if old.source == source && old.shared == request.shared {
            return report(job, old);
        }
        if request.on_conflict == OnConflict::Fail {
            return Err(Error::NameTaken { kind: Kind::Kernel, name: pull.name.to_string() });
        }
        shared.inventory.check_kernel_unused(old)?;
    }
    let (kernel, modules) = fetch(shared, job, &from, &target).await?;
    let _worker = job.acquire_worker().await?;
    job.stage("import", format!("extracting {}", request.entry));
    let id = KernelId::random();
    let facts = shared.ports.kernel_files.import(id, request.owner, kernel, modules).await?;
    let kernel = Kernel {
        id,
        name: pull.name.clone(),
        owner: request.owner,
        shared: request.shared,
        source,
        created_at: now(&*shared.ports.clock),
        facts,
    };
    let kept =
        if job.is_canceled() { Err(Error::Canceled) } else { commit(shared, &kernel, old.as_deref()).await };
    if let Err(error) = kept {
        shared.ports.kernel_files.remove(id).await?;
        return Err(error);
    }
    report(job, &kernel)
}

async fn fetch(
    shared: &Shared,
    job: &JobHandle,
    from: &Provenance,
    target: &KernelTarget,
) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let kernel = target.kernel.size();
    let total = Bytes(kernel.0 + target.modules.as_ref().map_or(0, |modules| modules.size().0));
    job.stage("pull", format!("fetching {total} of {}", from.entry));
    let progress = |before| Arc::new(FileProgress { whole: job.progress("pull"), before, total });
    let fetch = |file, before| shared.ports.catalogs.fetch(&from.catalog, file, progress(before));
    let first = unless_canceled(job, fetch(&target.kernel, Bytes(0))).await??;
    let modules = match &target.modules {
        Some(modules) => Some(unless_canceled(job, fetch(modules, kernel)).await??),
        None => None,
    };
    Ok((first, modules))
}

/// The progress of one file as a part of the whole pull.
struct FileProgress {
    whole: Arc<dyn Progress>,
    before: Bytes,
    total: Bytes,
}

impl Progress for FileProgress {
    fn advanced(&self, done: Bytes, _total: Option<Bytes>) {
        self.whole.advanced(Bytes(self.before.0 + done.0), Some(self.total));
    }

    fn is_canceled(&self) -> bool {
        self.whole.is_canceled()
    }
}

/// Stores and publishes a kernel, and replaces an older one if there is one.
async fn commit(shared: &Shared, kernel: &Kernel, old: Option<&KernelView>) -> Result<()> {
    let ports = &shared.ports;
    let Some(old) = old else {
        ports.store.put_kernel(kernel).await?;
        shared.inventory.add_kernel(kernel.clone());
        return Ok(());
    };
    let taken = shared.inventory.remove_unused_kernel(old.id)?;
    if let Err(error) = ports.store.replace_kernel(kernel, old.id).await {
        shared.inventory.add_kernel(KernelView::clone(&taken));
        return Err(error.into());
    }
    shared.inventory.add_kernel(kernel.clone());
    // The new kernel is in place. Files that are left are removed at the next start of the service.
    if let Err(error) = ports.kernel_files.remove(old.id).await {
        tracing::error!(kernel = %old.id, %error, "cannot remove the files of a kernel that was replaced");
    }
    Ok(())
}

fn report(job: &JobHandle, kernel: &KernelView) -> Result<()> {
    job.add_object(Object::Kernel(kernel.id));
    job.add_result("digest", Fact::Text(kernel.facts.digest.clone()));
    job.add_result("bytes", Fact::Number(kernel.facts.size.0));
    Ok(())
}
