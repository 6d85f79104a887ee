//! Pulls images from registries. A new image is fetched and imported at the same time; an image that the host already
//! has is shared.

use std::{
    collections::HashMap,
    future::Future,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use banger_domain::{
    digest::Digest,
    id::{ImageId, JobId, KernelId, Uid},
    name::{Name, Reference},
};
use banger_image::{
    catalog::{Provenance, index::ImageTarget},
    oci::{RemoteImage, credentials::Credentials, platform::Platform, reference::ImageRef},
    record::{Image, ImageFacts, Origin},
};
use banger_proto::size::Bytes;
use futures_util::FutureExt;
use tracing::Instrument;

use super::{
    Engine, Shared, catalog,
    error::{Error, Kind, Result},
    job::{JobHandle, Stages},
    now, pull_file,
    pull_kernel::RequestedBy,
    request::{OnConflict, PullImage, PullKernel, PullSource},
    view::{Fact, ImageView, JobKind, Object, Outcome},
};
use crate::ports::{
    self,
    images::{Content, Layer},
    registry::{Fetch, Prune, Source},
};

const PULL: Stages = &["resolve", "pull", "import"];
const PRUNE: Stages = &["prune"];

/// The running pulls.
#[derive(Default)]
pub(super) struct Pulls {
    jobs: Mutex<HashMap<(Uid, Name), RunningPull>>,
    pub(super) kernels: Mutex<HashMap<(Uid, Name), (PullKernel, JobId)>>,
    locks: Mutex<HashMap<(String, Digest), Weak<ContentLock>>>,
}

/// A running pull.
struct RunningPull {
    reference: ImageRef,
    platform: Platform,
    from: PullSource,
    job: JobId,
}

/// Held while the image of one manifest is created. The next pull of the same manifest shares it.
pub(super) type ContentLock = tokio::sync::Mutex<()>;

impl Pulls {
    /// Returns the lock for this content of a registry or catalog.
    pub(super) fn lock_for(&self, origin: String, digest: Digest) -> Arc<ContentLock> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        let key = (origin, digest);
        if let Some(lock) = locks.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(ContentLock::default());
        locks.insert(key, Arc::downgrade(&lock));
        lock
    }
}

/// What a pull creates.
#[derive(Clone)]
pub(super) struct Pull {
    pub(super) owner: Uid,
    pub(super) name: Name,
    source: Source,
    from: PullSource,
    pub(super) shared: bool,
    pub(super) kernel: Option<KernelId>,
    /// The image that it replaces.
    pub(super) old: Option<ImageId>,
    on_conflict: OnConflict,
}

impl Engine {
    /// Starts to pull an image. An identical request of the same user returns the running job.
    pub fn pull_image(&self, request: PullImage) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
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

        let key = (owner, name.clone());
        let mut jobs = shared.pulls.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = jobs.get(&key)
            && (&same.reference, &same.platform, &same.from) == (&source.reference, &source.platform, &from)
        {
            return Ok(same.job);
        }
        let is_namesake = |image: &ImageView| image.owner == owner && image.name == name;
        let old = self.images().into_iter().find(|image| is_namesake(image));
        let may_replace = |image: &ImageView| {
            let is_newer = image.origin.as_ref().is_some_and(|origin| origin.reference == source.reference);
            // Which entry it is will be known after the look-up.
            is_newer || on_conflict == OnConflict::Replace || from != PullSource::Registry
        };
        let old = old.filter(|image| may_replace(image)).map(|image| image.id);
        shared.inventory.reserve(
            Kind::Image,
            owner,
            &name,
            shared.settings.limits.images,
            old.map(Object::Image),
        )?;
        let job = shared.jobs.begin(JobKind::ImagePull, owner, Vec::new(), PULL);
        let mut job = job.inspect_err(|_| shared.inventory.cancel_reservation(Kind::Image, owner, &name))?;
        let id = job.id();
        let (reference, platform) = (source.reference.clone(), source.platform.clone());
        jobs.insert(key.clone(), RunningPull { reference, platform, from: from.clone(), job: id });
        drop(jobs);

        let pull = Pull { owner, name, source, from, shared: is_shared, kernel, old, on_conflict };
        tokio::spawn(async move {
            let span = job.span();
            let result = match job.wait_turn().await {
                Ok(()) => run(&shared, &job, &pull).instrument(span).await,
                Err(error) => Err(error),
            };
            shared.inventory.cancel_reservation(Kind::Image, pull.owner, &pull.name);
            shared.pulls.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            job.finish(result);
        });
        Ok(id)
    }

    /// Reads credentials from a client's file.
    pub fn read_credentials(&self, file: OwnedFd) -> Result<Credentials> {
        Ok(self.shared.ports.registry.credentials(file)?)
    }

    /// Finds the image that was pulled by this reference, among the caller's and shared ones.
    pub fn find_pulled(&self, caller: Uid, reference: &ImageRef) -> Option<Arc<ImageView>> {
        let is_it =
            |image: &ImageView| image.origin.as_ref().is_some_and(|origin| origin.reference == *reference);
        let images = self.images().into_iter().filter(|image| image.owner == caller || image.shared);
        // The caller's own image is preferred, then the newer one.
        images
            .filter(|image| is_it(image))
            .max_by_key(|image| (image.owner == caller, image.created_at, image.id))
    }

    /// Starts to prune the cache of registries.
    pub fn prune_cache(&self, owner: Uid, prune: Prune) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let mut job = shared.jobs.begin(JobKind::CachePrune, owner, Vec::new(), PRUNE)?;
        let id = job.id();
        tokio::spawn(async move {
            if let Err(error) = job.wait_turn().await {
                return job.finish(Err(error));
            }
            job.stage("prune", "looking for unused layers".to_owned());
            let span = job.span();
            let pruned = shared.ports.registry.prune(prune).instrument(span).await;
            let result = pruned.map(|pruned| {
                job.add_result("blobs", Fact::Number(pruned.blobs));
                job.add_result("bytes", Fact::Number(pruned.bytes.0));
            });
            job.finish(result.map_err(Error::from));
        });
        Ok(id)
    }
}

async fn run(shared: &Arc<Shared>, job: &JobHandle, pull: &Pull) -> Result<()> {
    let (name, is_only) = match &pull.from {
        PullSource::Registry => return run_remote(shared, job, pull).await,
        PullSource::CatalogElseRegistry(name) => (name, false),
        PullSource::Catalog(name) => (name, true),
    };
    job.stage("resolve", format!("looking for {name} in the catalogs"));
    let found = match unless_canceled(job, catalog::find_image(shared, name)).await?? {
        Some(found) => found,
        None if is_only => return Err(catalog::not_found(shared, Kind::Image, name)),
        None => {
            check_may_replace(shared, pull, |old| is_of_repository(old, &pull.source.reference))?;
            return run_remote(shared, job, pull).await;
        }
    };
    let target = found.entry.target.clone().ok_or_else(|| found.not_published())?;
    let mut pull = pull.clone();
    if let (None, Some(kernel)) = (pull.kernel, &found.entry.kernel) {
        pull.kernel = Some(resolve_kernel(shared, job, pull.owner, kernel).await?);
    }
    match target {
        ImageTarget::Reference(reference) => {
            check_may_replace(shared, &pull, |old| is_of_repository(old, &reference))?;
            pull.source = Source { reference, ..pull.source };
            run_remote(shared, job, &pull).await
        }
        ImageTarget::Archive(file) => {
            let entry = found.entry.name.clone();
            let provenance = Provenance { catalog: found.catalog, entry, digest: file.digest() };
            let is_of_entry = |old: &ImageView| {
                let old = old.source.parse::<Provenance>().ok();
                old.is_some_and(|old| (&old.catalog, &old.entry) == (&provenance.catalog, &provenance.entry))
            };
            check_may_replace(shared, &pull, is_of_entry)?;
            pull_file::run(shared, job, &pull, &provenance, &file).await
        }
    }
}

/// Returns whether an image was pulled from the repository of a reference.
fn is_of_repository(old: &ImageView, reference: &ImageRef) -> bool {
    let repository = |reference: &ImageRef| (reference.registry().clone(), reference.repository().to_owned());
    old.origin.as_ref().is_some_and(|origin| repository(&origin.reference) == repository(reference))
}

/// Checks that the name may be replaced: always by a newer version of the same source, by anything else only with
/// [`OnConflict::Replace`].
fn check_may_replace(shared: &Shared, pull: &Pull, is_older: impl Fn(&ImageView) -> bool) -> Result<()> {
    match pull.old.and_then(|id| shared.inventory.image(id)) {
        Some(old) if pull.on_conflict == OnConflict::Fail && !is_older(&old) => {
            Err(Error::NameTaken { kind: Kind::Image, name: pull.name.to_string() })
        }
        _ => Ok(()),
    }
}

/// Returns the kernel that a catalog's image needs: the user's own or a shared one of this name, else one from a
/// catalog.
async fn resolve_kernel(shared: &Arc<Shared>, job: &JobHandle, owner: Uid, name: &Name) -> Result<KernelId> {
    let engine = Engine { shared: Arc::clone(shared) };
    let find = || engine.kernel_by(owner, &Reference::Name(name.clone())).map(|kernel| kernel.id);
    if let Ok(kernel) = find() {
        return Ok(kernel);
    }
    job.stage("resolve", format!("fetching its kernel {name}"));
    let request =
        PullKernel { owner, entry: name.clone(), name: None, shared: false, on_conflict: OnConflict::Fail };
    // Not queued: it would wait for this job to end.
    let pulling = engine.pull_kernel_for(RequestedBy::Job, request)?;
    match unless_canceled(job, engine.wait_job(pulling, None)).await??.outcome.clone() {
        Some(Outcome::Failed(why)) => Err(Error::Dependency { why }),
        Some(Outcome::Done) => find(),
        _ => Err(Error::Canceled),
    }
}

async fn run_remote(shared: &Shared, job: &JobHandle, pull: &Pull) -> Result<()> {
    let reference = &pull.source.reference;
    job.stage("resolve", format!("asking {} for {reference}", reference.registry()));
    let remote = unless_canceled(job, shared.ports.registry.resolve(&pull.source)).await??;
    let origin = Origin { reference: reference.clone(), manifest: remote.manifest };
    if let Some(old) = pull.old.and_then(|id| shared.inventory.image(id))
        && is_up_to_date(&old, pull, &origin)
    {
        return report(job, &old);
    }
    // Before the lock: its holder must not wait for a worker that a task waiting for the lock has.
    let _worker = job.acquire_worker().await?;
    let lock = shared.pulls.lock_for(reference.registry().to_string(), origin.manifest);
    let _locked = unless_canceled(job, lock.lock()).await?;

    let old = pull.old.and_then(|id| shared.inventory.image(id));
    if let Some(old) = &old {
        if is_up_to_date(old, pull, &origin) {
            return report(job, old);
        }
        shared.inventory.check_image_unused(old)?;
    }
    let id = ImageId::random();
    let made = make(shared, job, pull, &remote, &origin, id).await;
    let image = match made {
        Ok(facts) => Image {
            id,
            name: pull.name.clone(),
            owner: pull.owner,
            shared: pull.shared,
            source: reference.to_string(),
            kernel: pull.kernel,
            created_at: now(&*shared.ports.clock),
            facts,
            origin: Some(origin),
            config: remote.config,
        },
        Err(error) => return Err(error),
    };
    commit(shared, job, &image, old.as_deref()).await
}

/// Returns whether an image is already what the pull would create.
fn is_up_to_date(old: &ImageView, pull: &Pull, origin: &Origin) -> bool {
    let is_it = |of: &Origin| of.is_same(origin) && of.reference == origin.reference;
    old.origin.as_ref().is_some_and(is_it)
        && old.shared == pull.shared
        && (pull.kernel.is_none() || old.kernel == pull.kernel)
}

/// Stores an image whose files exist, and reports it. On failure the files are removed.
pub(super) async fn commit(
    shared: &Shared,
    job: &JobHandle,
    image: &Image,
    old: Option<&Image>,
) -> Result<()> {
    let committed = if job.is_canceled() { Err(Error::Canceled) } else { publish(shared, image, old).await };
    if let Err(error) = committed {
        shared.ports.image_files.remove(image.id).await?;
        return Err(error);
    }
    report(job, image)
}

/// Creates the files of an image: shared with an identical image, else from its layers.
async fn make(
    shared: &Shared,
    job: &JobHandle,
    pull: &Pull,
    remote: &RemoteImage,
    origin: &Origin,
    id: ImageId,
) -> Result<ImageFacts> {
    let claim = |bytes| claim(shared, pull, bytes);
    let images = shared.inventory.images();
    let twin = images.iter().find(|image| image.origin.as_ref().is_some_and(|of| of.is_same(origin)));
    if let Some(twin) = twin {
        claim(twin.facts.disk_usage)?;
        if share(shared, id, twin.id).await? {
            return Ok(twin.facts.clone());
        }
    }
    claim(remote.size())?;
    let facts = import(shared, job, pull, remote, id).await?;
    if let Err(error) = claim(facts.disk_usage) {
        shared.ports.image_files.remove(id).await?;
        return Err(error);
    }
    Ok(facts)
}

/// Counts an image against its owner's quota. Shared images count for nobody.
pub(super) fn claim(shared: &Shared, pull: &Pull, bytes: Bytes) -> Result<()> {
    match pull.shared {
        true => Ok(()),
        false => shared.inventory.claim(pull.owner, &pull.name, bytes, shared.settings.limits.image_disk),
    }
}

/// Shares the files of an identical image. Returns false if that was deleted meanwhile.
pub(super) async fn share(shared: &Shared, id: ImageId, twin: ImageId) -> Result<bool> {
    match shared.ports.image_files.share(id, twin).await {
        Ok(()) => Ok(true),
        Err(_) if shared.inventory.image(twin).is_none() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Fetches the layers and imports them as they arrive.
async fn import(
    shared: &Shared,
    job: &JobHandle,
    pull: &Pull,
    remote: &RemoteImage,
    id: ImageId,
) -> Result<ImageFacts> {
    let (source, ports) = (&pull.source, &shared.ports);
    job.stage("pull", format!("fetching {} of {}", remote.size(), source.reference));
    let fetch = ports.registry.fetch(source, &remote.layers, job.progress("pull"));
    let Fetch { blobs, work } = unless_canceled(job, fetch).await??;
    let layers = blobs.into_iter().zip(&remote.layers).map(|(blob, layer)| Layer {
        blob,
        offset: None,
        packing: layer.packing,
        size: layer.blob.size,
        digest: layer.blob.digest,
        diff_id: layer.diff_id,
    });
    let mut import =
        ports.image_files.import(id, pull.owner, Content::Layers(layers.collect()), job.progress("import"));
    let (mut work, mut failed) = (Some(work), None);
    let canceled = job.canceled();
    tokio::pin!(canceled);
    // Dropping the work closes its pipes, which ends the import. It is awaited, because its files must be gone before
    // the job ends.
    let imported = loop {
        let fetched = async {
            match &mut work {
                Some(work) => work.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = &mut canceled, if failed.is_none() => {
                (work, failed) = (None, Some(Error::Canceled));
            }
            fetched = fetched => {
                work = None;
                match fetched {
                    Ok(()) => job.stage("import", format!("unpacking {}", source.reference)),
                    Err(error) => failed = Some(error.into()),
                }
            }
            imported = &mut import => break imported,
        }
    };
    if let Some(error) = failed {
        if imported.is_ok() {
            ports.image_files.remove(id).await?;
        }
        return Err(error);
    }
    match (imported, work) {
        (Ok(facts), None) => Ok(facts),
        (Ok(facts), Some(work)) => match unless_canceled(job, work).await {
            Ok(Ok(())) => Ok(facts),
            ended => {
                ports.image_files.remove(id).await?;
                ended?.map(|()| facts).map_err(Error::from)
            }
        },
        // A fetch that failed at the same time explains more than an import that lacks the rest.
        (Err(error), Some(work)) => match work.now_or_never() {
            Some(Err(cause)) => Err(cause.into()),
            _ => Err(forget_bad_layers(shared, source, remote, error).await),
        },
        (Err(error), None) => Err(forget_bad_layers(shared, source, remote, error).await),
    }
}

/// Removes layers from the cache that turned out to be wrong, so that the next pull fetches them again.
async fn forget_bad_layers(
    shared: &Shared,
    source: &Source,
    remote: &RemoteImage,
    error: ports::Error,
) -> Error {
    if matches!(error, ports::Error::Mismatch { .. } | ports::Error::Unsupported { .. })
        && let Err(error) = shared.ports.registry.forget(source, &remote.layers).await
    {
        tracing::error!(%error, "cannot remove bad layers from the cache");
    }
    error.into()
}

/// Stores and publishes an image, and replaces an older one if there is one.
async fn publish(shared: &Shared, image: &Image, old: Option<&ImageView>) -> Result<()> {
    let ports = &shared.ports;
    let Some(old) = old else {
        ports.store.put_image(image).await?;
        shared.inventory.add_image(image.clone());
        return Ok(());
    };
    let _locked = shared.image_lock.lock().await;
    let taken = shared.inventory.remove_unused_image(old.id)?;
    if let Err(error) = ports.store.replace_image(image, old.id).await {
        shared.inventory.add_image(ImageView::clone(&taken));
        return Err(error.into());
    }
    shared.inventory.add_image(image.clone());
    // The new image is in place. Files that are left are removed at the next start of the service.
    if let Err(error) = ports.image_files.remove(old.id).await {
        tracing::error!(image = %old.id, %error, "cannot remove the files of an image that was replaced");
    }
    Ok(())
}

pub(super) fn report(job: &JobHandle, image: &ImageView) -> Result<()> {
    job.add_object(Object::Image(image.id));
    if let Some(origin) = &image.origin {
        job.add_result("digest", Fact::Text(origin.manifest.to_string()));
    }
    job.add_result("bytes", Fact::Number(image.facts.disk_usage.0));
    Ok(())
}

/// Awaits work that is safe to drop, unless the job is cancelled first.
pub(super) async fn unless_canceled<T>(job: &JobHandle, work: impl Future<Output = T>) -> Result<T> {
    tokio::select! {
        biased;
        _ = job.canceled() => Err(Error::Canceled),
        done = work => Ok(done),
    }
}
