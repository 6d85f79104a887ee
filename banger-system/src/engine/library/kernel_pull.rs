//! Pulls kernels from catalogs.

use std::{os::fd::OwnedFd, sync::Arc};

use banger_domain::{
    id::{JobId, KernelId},
    name::Name,
};
use banger_image::{
    catalog::{Provenance, index::KernelTarget},
    record::Kernel,
};
use banger_proto::size::Bytes;

use super::{
    Engine, Shared, catalog,
    error::{Error, Kind, Result},
    job::{JobHandle, Stages},
    now,
    pipeline::{Order, RequestedBy, commit, report, reserve, unless_canceled},
    request::{OnConflict, PullKernel},
    single_flight::PullRequest,
    view::JobKind,
};
use crate::ports::Progress;

const PULL: Stages = &["resolve", "pull", "import"];

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
        start(&self.shared, RequestedBy::User, request)
    }
}

/// Starts to pull a kernel for a user or for a running job.
pub(super) fn start(shared: &Arc<Shared>, requested_by: RequestedBy, request: PullKernel) -> Result<JobId> {
    let owner = request.owner;
    let name = request.name.clone().unwrap_or_else(|| request.entry.clone());
    let identity = PullRequest::Kernel(request.clone());
    let pulls = shared.library.running_pulls.lock();
    if let Some(job) = pulls.job_of(Kind::Kernel, owner, &name, &identity) {
        if requested_by == RequestedBy::Job {
            shared.jobs.promote(job);
        }
        return Ok(job);
    }
    let old = shared.inventory.own::<Kernel>(owner, &name);
    let old = old.filter(|kernel| request.shared || !kernel.shared).map(|kernel| kernel.id);
    let order = Order::<Kernel> {
        owner,
        name: name.clone(),
        replaces: old,
        kind: JobKind::KernelPull,
        stages: PULL,
        requested_by,
    };
    let reserved = reserve(shared, order)?.shared_by(pulls, identity);
    let pull = Pull { request, name, old };
    Ok(reserved.run(move |shared, job| Box::pin(run(shared, job, pull))))
}

async fn run(shared: &Shared, job: &JobHandle, pull: Pull) -> Result<()> {
    let request = &pull.request;
    let (from, target) = resolve(shared, job, &request.entry).await?;
    let source = from.to_string();
    let old = pull.old.and_then(|id| shared.inventory.item::<Kernel>(id)).filter(|old| old.name == pull.name);
    if let Some(old) = &old {
        if old.source == source && old.shared == request.shared {
            report(job, &**old);
            return Ok(());
        }
        if request.on_conflict == OnConflict::Fail {
            return Err(Error::NameTaken { kind: Kind::Kernel, name: pull.name.to_string() });
        }
        shared.inventory.check_unused(&**old)?;
    }
    let (vmlinuz, modules) = fetch(shared, job, &from, &target).await?;
    let _worker = job.acquire_worker().await?;
    job.stage("import", format!("extracting {}", request.entry));
    let id = KernelId::random();
    let facts = shared.ports.kernel_files.import(id, request.owner, vmlinuz, modules).await?;
    let kernel = Kernel {
        id,
        name: pull.name,
        owner: request.owner,
        shared: request.shared,
        source,
        created_at: now(&*shared.ports.clock),
        facts,
    };
    commit(shared, job, &kernel, old.as_deref()).await?;
    report(job, &kernel);
    Ok(())
}

/// Finds the entry in the catalogs.
async fn resolve(shared: &Shared, job: &JobHandle, entry: &Name) -> Result<(Provenance, KernelTarget)> {
    job.stage("resolve", format!("looking for {entry} in the catalogs"));
    let found = unless_canceled(job, catalog::find_kernel(shared, entry)).await??;
    let found = found.ok_or_else(|| catalog::not_found(shared, Kind::Kernel, entry))?;
    let target = found.entry.target.clone().ok_or_else(|| found.not_published())?;
    let digest = target.kernel.digest();
    Ok((Provenance { catalog: found.catalog, entry: entry.clone(), digest }, target))
}

async fn fetch(
    shared: &Shared,
    job: &JobHandle,
    from: &Provenance,
    target: &KernelTarget,
) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let total = target.size();
    job.stage("pull", format!("fetching {total} of {}", from.entry));
    let progress = |before| Arc::new(FileProgress { whole: job.progress("pull"), before, total });
    let fetch = |file, before| shared.ports.catalogs.fetch(&from.catalog, file, progress(before));
    let first = unless_canceled(job, fetch(&target.kernel, Bytes(0))).await??;
    let modules = match &target.modules {
        Some(modules) => Some(unless_canceled(job, fetch(modules, target.kernel.size())).await??),
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
