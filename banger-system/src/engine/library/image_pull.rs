//! Pulls images: finds out which content a name or a reference means, and creates an image of it.

use std::sync::Arc;

use banger_domain::{
    id::{ImageId, JobId, KernelId, Uid},
    name::{Name, Reference},
};
use banger_image::{
    catalog::{
        Provenance,
        index::{Entry, ImageTarget},
    },
    oci::reference::ImageRef,
    record::{Image, Kernel},
};

use super::{
    Engine, Shared, catalog,
    error::{Error, Kind, Result},
    image_content::PulledContent,
    job::{JobHandle, Stages},
    kernel_pull, now,
    pipeline::{Order, Quota, RequestedBy, commit, report, report_notes, reserve, unless_canceled},
    request::{OnConflict, PullImage, PullKernel, PullSource},
    single_flight::PullRequest,
    view::{ImageView, JobKind, Outcome},
};
use crate::ports::registry::Source;

const PULL: Stages = &["resolve", "pull", "import"];

/// What a pull creates.
struct Pull {
    owner: Uid,
    name: Name,
    source: Source,
    from: PullSource,
    shared: bool,
    /// The requested kernel, or the one that the catalog's entry needs.
    kernel: Option<KernelId>,
    /// The image that it replaces.
    old: Option<ImageId>,
    on_conflict: OnConflict,
}

impl Engine {
    /// Starts to pull an image. An identical request of the same user returns the running job.
    pub fn pull_image(&self, request: PullImage) -> Result<JobId> {
        let shared = &self.shared;
        let PullImage { owner, source, from, name, shared: is_shared, kernel, on_conflict } = request;
        let from = match from {
            PullSource::CatalogElseRegistry(_) if shared.ports.catalogs.names().is_empty() => {
                PullSource::Registry
            }
            from => from,
        };
        let no_name = || Error::InvalidOption { why: format!("{} has no name; give one", source.reference) };
        let name = name.or_else(|| source.reference.local_name()).ok_or_else(no_name)?;
        let kernel = kernel.map(|reference| self.kernel_by(owner, &reference)).transpose()?.map(|k| k.id);

        let (reference, platform) = (source.reference.clone(), source.platform.clone());
        let identity = PullRequest::Image { reference, platform, from: from.clone() };
        let pulls = shared.library.running_pulls.lock();
        if let Some(job) = pulls.job_of(Kind::Image, owner, &name, &identity) {
            return Ok(job);
        }
        let may_replace = |image: &ImageView| {
            let is_newer = image.origin.as_ref().is_some_and(|origin| origin.reference == source.reference);
            // Which entry it is will be known after the look-up.
            is_newer || on_conflict == OnConflict::Replace || from != PullSource::Registry
        };
        let old = shared.inventory.own::<Image>(owner, &name);
        let old =
            old.filter(|image| may_replace(image) && (is_shared || !image.shared)).map(|image| image.id);
        let order = Order::<Image> {
            owner,
            name: name.clone(),
            replaces: old,
            kind: JobKind::ImagePull,
            stages: PULL,
            requested_by: RequestedBy::User,
        };
        let reserved = reserve(shared, order)?.shared_by(pulls, identity);
        let pull = Pull { owner, name, source, from, shared: is_shared, kernel, old, on_conflict };
        Ok(reserved.run(move |shared, job| Box::pin(run(shared, job, pull))))
    }
}

async fn run(shared: &Arc<Shared>, job: &JobHandle, mut pull: Pull) -> Result<()> {
    let content = resolve(shared, job, &mut pull).await?;
    if let Some(old) = pull.old(shared)
        && pull.is_up_to_date(&content, &old)
    {
        report(job, &*old);
        return Ok(());
    }
    // Before the lock: its holder must not wait for a worker that a task waiting for the lock has.
    let _worker = job.acquire_worker().await?;
    let lock = content.lock(&shared.library.content_locks);
    let _locked = unless_canceled(job, lock.lock()).await?;

    let old = pull.old(shared);
    if let Some(old) = &old {
        if pull.is_up_to_date(&content, old) {
            report(job, &**old);
            return Ok(());
        }
        shared.inventory.check_unused(&**old)?;
    }
    let id = ImageId::random();
    let quota = Quota { owner: pull.owner, name: &pull.name, shared: pull.shared };
    let (facts, config) = content.create(shared, job, &quota, id).await?;
    let image = Image {
        id,
        name: pull.name,
        owner: pull.owner,
        shared: pull.shared,
        source: content.source(),
        kernel: pull.kernel,
        created_at: now(&*shared.ports.clock),
        facts,
        origin: content.origin(),
        config,
    };
    commit(shared, job, &image, old.as_deref()).await?;
    report(job, &image);
    Ok(())
}

impl Pull {
    /// Returns the image that it replaces, if that still exists and has the name.
    fn old(&self, shared: &Shared) -> Option<Arc<ImageView>> {
        let old = self.old.and_then(|id| shared.inventory.item::<Image>(id));
        old.filter(|old| old.name == self.name)
    }

    /// Returns whether an image is already what the pull would create.
    fn is_up_to_date(&self, content: &PulledContent, old: &ImageView) -> bool {
        content.is_source_of(old)
            && old.shared == self.shared
            && (self.kernel.is_none() || old.kernel == self.kernel)
    }

    /// Checks that the name may be replaced: always by a newer version of the same source, by anything else only with
    /// [`OnConflict::Replace`].
    fn check_may_replace(&self, shared: &Shared, is_older: impl Fn(&ImageView) -> bool) -> Result<()> {
        match self.old(shared) {
            Some(old) if self.on_conflict == OnConflict::Fail && !is_older(&old) => {
                Err(Error::NameTaken { kind: Kind::Image, name: self.name.to_string() })
            }
            _ => Ok(()),
        }
    }
}

/// Finds the content: in the catalogs, else in the registry.
async fn resolve(shared: &Arc<Shared>, job: &JobHandle, pull: &mut Pull) -> Result<PulledContent> {
    let (name, is_only) = match &pull.from {
        PullSource::Registry => return ask_registry(shared, job, pull.source.clone()).await,
        PullSource::CatalogElseRegistry(name) => (name, false),
        PullSource::Catalog(name) => (name, true),
    };
    job.stage("resolve", format!("looking for {name} in the catalogs"));
    let found = match unless_canceled(job, catalog::find_image(shared, name)).await?? {
        Some(found) => found,
        None if is_only => return Err(catalog::not_found(shared, Kind::Image, name)),
        None => {
            pull.check_may_replace(shared, |old| is_of_repository(old, &pull.source.reference))?;
            return ask_registry(shared, job, pull.source.clone()).await;
        }
    };
    let target = found.entry.target.clone().ok_or_else(|| found.not_published())?;
    if let (None, Some(kernel)) = (pull.kernel, &found.entry.kernel) {
        pull.kernel = Some(find_or_pull_kernel(shared, job, pull.owner, kernel).await?);
    }
    match target {
        ImageTarget::Reference(reference) => {
            pull.check_may_replace(shared, |old| is_of_repository(old, &reference))?;
            ask_registry(shared, job, Source { reference, ..pull.source.clone() }).await
        }
        ImageTarget::Archive(file) => {
            let Entry { name: entry, .. } = found.entry;
            let from = Provenance { catalog: found.catalog, entry, digest: file.digest() };
            pull.check_may_replace(shared, |old| is_of_entry(old, &from))?;
            Ok(PulledContent::Archive { from, file })
        }
    }
}

async fn ask_registry(shared: &Shared, job: &JobHandle, source: Source) -> Result<PulledContent> {
    let reference = &source.reference;
    job.stage("resolve", format!("asking {} for {reference}", reference.registry()));
    let remote = unless_canceled(job, shared.ports.registry.resolve(&source)).await??;
    report_notes(job, &remote);
    Ok(PulledContent::Layers { source, remote: Box::new(remote) })
}

/// Returns whether an image was pulled from the repository of a reference.
fn is_of_repository(old: &ImageView, reference: &ImageRef) -> bool {
    let repository = |reference: &ImageRef| (reference.registry().clone(), reference.repository().to_owned());
    old.origin.as_ref().is_some_and(|origin| repository(&origin.reference) == repository(reference))
}

/// Returns whether an image was pulled from the same entry of a catalog.
fn is_of_entry(old: &ImageView, from: &Provenance) -> bool {
    let old = old.source.parse::<Provenance>().ok();
    old.is_some_and(|old| (&old.catalog, &old.entry) == (&from.catalog, &from.entry))
}

/// Returns the kernel that a catalog's image needs: the user's own or a shared one of this name, else one from a
/// catalog.
async fn find_or_pull_kernel(
    shared: &Arc<Shared>,
    job: &JobHandle,
    owner: Uid,
    name: &Name,
) -> Result<KernelId> {
    let reference = Reference::Name(name.clone());
    let find = || shared.inventory.find::<Kernel>(owner, &reference, None);
    if let Ok(kernel) = find() {
        return Ok(kernel.id);
    }
    job.stage("resolve", format!("fetching its kernel {name}"));
    let request =
        PullKernel { owner, entry: name.clone(), name: None, shared: false, on_conflict: OnConflict::Fail };
    // Not queued: it would wait for this job to end.
    let pulling = kernel_pull::start(shared, RequestedBy::Job, request)?;
    match unless_canceled(job, shared.jobs.wait(pulling, None)).await??.outcome.clone() {
        Some(Outcome::Failed(why)) => Err(Error::Dependency { why }),
        Some(Outcome::Done) => Ok(find()?.id),
        Some(Outcome::Canceled) | None => Err(Error::Canceled),
    }
}
