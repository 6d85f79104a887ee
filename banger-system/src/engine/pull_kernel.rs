//! Kernels of catalogs.

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
    job::{JobHandle, Stages},
    now,
    pull::unless_canceled,
    request::{Other, PullKernel},
    view::{Fact, JobKind, KernelView, Object},
};
use crate::ports::images::Progress;

const PULL: Stages = &["resolve", "pull", "import"];

/// Who wants a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AskedBy {
    /// A user, whose request waits for its turn.
    User,
    /// A job that is under way. In line, the kernel would wait for that job's own end.
    Job,
}

/// What a pull makes.
struct Pull {
    request: PullKernel,
    name: Name,
    /// Whose place it takes, or whose name it has.
    old: Option<KernelId>,
}

impl Engine {
    /// Begins to make a kernel of a catalog's. The same request of the same user, while it is under way, is the
    /// same job.
    pub fn pull_kernel(&self, request: PullKernel) -> Result<JobId> {
        self.pull_kernel_for(AskedBy::User, request)
    }

    /// The same, for any caller.
    pub(super) fn pull_kernel_for(&self, asked_by: AskedBy, request: PullKernel) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let name = request.name.clone().unwrap_or_else(|| request.entry.clone());
        let key = (request.owner, name.clone());
        let mut jobs = shared.pulls.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((same, job)) = jobs.get(&key)
            && *same == request
        {
            if asked_by == AskedBy::Job {
                shared.jobs.promote(*job);
            }
            return Ok(*job);
        }
        let is_own = |kernel: &KernelView| kernel.owner == request.owner && kernel.name == name;
        let old = self.kernels().into_iter().find(|kernel| is_own(kernel)).map(|kernel| kernel.id);
        let limit = shared.settings.limits.images;
        shared.registry.reserve(Kind::Kernel, request.owner, &name, limit, old.map(Object::Kernel))?;
        let owner = request.owner;
        let job = match asked_by {
            AskedBy::User => shared.jobs.begin(JobKind::KernelPull, owner, Vec::new(), PULL),
            AskedBy::Job => Ok(shared.jobs.begin_unasked(JobKind::KernelPull, owner, Vec::new(), PULL)),
        };
        let mut job = job.inspect_err(|_| shared.registry.unreserve(Kind::Kernel, owner, &name))?;
        let id = job.id();
        jobs.insert(key.clone(), (request.clone(), id));
        drop(jobs);

        let pull = Pull { request, name, old };
        tokio::spawn(async move {
            let span = job.span();
            let result = match job.turn().await {
                Ok(()) => run(&shared, &job, &pull).instrument(span).await,
                Err(error) => Err(error),
            };
            shared.registry.unreserve(Kind::Kernel, pull.request.owner, &pull.name);
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
    let found = found.ok_or_else(|| catalog::nowhere(shared, Kind::Kernel, &request.entry))?;
    let target = found.entry.target.clone().ok_or_else(|| found.unpublished())?;
    let (catalog, entry) = (found.catalog, request.entry.clone());
    let from = Provenance { catalog, entry, digest: target.kernel.digest() };
    let source = from.to_string();

    let old = pull.old.and_then(|id| shared.registry.kernel(id));
    if let Some(old) = &old {
        if old.source == source && old.shared == request.shared {
            return tell(job, old);
        }
        if request.other == Other::Stays {
            return Err(Error::NameTaken { kind: Kind::Kernel, name: pull.name.to_string() });
        }
        shared.registry.check_kernel_unused(old)?;
    }
    let (kernel, modules) = fetch(shared, job, &from, &target).await?;
    let _worker = job.worker().await?;
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
        if job.is_canceled() { Err(Error::Canceled) } else { keep(shared, &kernel, old.as_deref()).await };
    if let Err(error) = kept {
        shared.ports.kernel_files.remove(id).await?;
        return Err(error);
    }
    tell(job, &kernel)
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
    let part = |before| Arc::new(Part { whole: job.progress("pull"), before, total });
    let fetch = |file, before| shared.ports.catalogs.fetch(&from.catalog, file, part(before));
    let first = unless_canceled(job, fetch(&target.kernel, Bytes(0))).await??;
    let modules = match &target.modules {
        Some(modules) => Some(unless_canceled(job, fetch(modules, kernel)).await??),
        None => None,
    };
    Ok((first, modules))
}

/// One file of several, in the progress of all of them.
struct Part {
    whole: Arc<dyn Progress>,
    before: Bytes,
    total: Bytes,
}

impl Progress for Part {
    fn advanced(&self, done: Bytes, _total: Option<Bytes>) {
        self.whole.advanced(Bytes(self.before.0 + done.0), Some(self.total));
    }

    fn is_canceled(&self) -> bool {
        self.whole.is_canceled()
    }
}

/// Publishes a kernel, in the place of another one perhaps.
async fn keep(shared: &Shared, kernel: &Kernel, old: Option<&KernelView>) -> Result<()> {
    let ports = &shared.ports;
    let Some(old) = old else {
        ports.store.put_kernel(kernel).await?;
        shared.registry.add_kernel(kernel.clone());
        return Ok(());
    };
    let taken = shared.registry.take_kernel(old.id)?;
    if let Err(error) = ports.store.replace_kernel(kernel, old.id).await {
        shared.registry.add_kernel(KernelView::clone(&taken));
        return Err(error.into());
    }
    shared.registry.add_kernel(kernel.clone());
    // The new kernel is there. Files that stay are removed at the next start.
    if let Err(error) = ports.kernel_files.remove(old.id).await {
        tracing::error!(kernel = %old.id, %error, "cannot remove the files of a kernel that was replaced");
    }
    Ok(())
}

fn tell(job: &JobHandle, kernel: &KernelView) -> Result<()> {
    job.concerns(Object::Kernel(kernel.id));
    job.tell("digest", Fact::Text(kernel.facts.digest.clone()));
    job.tell("bytes", Fact::Number(kernel.facts.size.0));
    Ok(())
}
