//! Images of registries: a new image is fetched and imported at the same time; one that the host has already is
//! shared; and the cache in between is pruned.

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
    pull_kernel::AskedBy,
    request::{Other, PullImage, PullKernel, Whence},
    view::{Fact, ImageView, JobKind, Object, Outcome},
};
use crate::ports::{
    self,
    images::{Content, Layer},
    registry::{Fetch, Prune, Source},
};

const PULL: Stages = &["resolve", "pull", "import"];
const PRUNE: Stages = &["prune"];

/// The pulls that are under way.
#[derive(Default)]
pub(super) struct Pulls {
    jobs: Mutex<HashMap<(Uid, Name), UnderWay>>,
    pub(super) kernels: Mutex<HashMap<(Uid, Name), (PullKernel, JobId)>>,
    turns: Mutex<HashMap<(String, Digest), Weak<Turn>>>,
}

/// A pull that is under way.
struct UnderWay {
    reference: ImageRef,
    platform: Platform,
    whence: Whence,
    job: JobId,
}

/// Who holds it makes the one image of a manifest; who comes next shares it.
pub(super) type Turn = tokio::sync::Mutex<()>;

impl Pulls {
    /// The turn to make what has this digest, of what a registry or a catalog has.
    pub(super) fn turn(&self, keeper: String, digest: Digest) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let key = (keeper, digest);
        if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Turn::default());
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }
}

/// What a pull makes.
#[derive(Clone)]
pub(super) struct Pull {
    pub(super) owner: Uid,
    pub(super) name: Name,
    source: Source,
    whence: Whence,
    pub(super) shared: bool,
    pub(super) kernel: Option<KernelId>,
    /// Whose place it takes.
    pub(super) old: Option<ImageId>,
    other: Other,
}

impl Engine {
    /// Begins to make an image of a registry's. The same request of the same user, while it is under way, is the
    /// same job.
    pub fn pull_image(&self, request: PullImage) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let PullImage { owner, source, whence, name, shared: is_shared, kernel, other } = request;
        let whence = match whence {
            Whence::CatalogElseRegistry(_) if shared.ports.catalogs.names().is_empty() => Whence::Registry,
            whence => whence,
        };
        let no_name = || Error::InvalidOption { why: format!("{} needs a name; give one", source.reference) };
        let name = name.or_else(|| source.reference.local_name()).ok_or_else(no_name)?;
        let kernel = kernel.map(|reference| self.find_kernel(owner, &reference)).transpose()?.map(|k| k.id);

        let key = (owner, name.clone());
        let mut jobs = shared.pulls.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = jobs.get(&key)
            && (&same.reference, &same.platform, &same.whence)
                == (&source.reference, &source.platform, &whence)
        {
            return Ok(same.job);
        }
        let is_own = |image: &ImageView| image.owner == owner && image.name == name;
        let old = self.images().into_iter().find(|image| is_own(image));
        let gives_way = |image: &ImageView| {
            let is_newer = image.origin.as_ref().is_some_and(|origin| origin.reference == source.reference);
            // What it is in a catalog will be known later.
            is_newer || other == Other::Goes || whence != Whence::Registry
        };
        let old = old.filter(|image| gives_way(image)).map(|image| image.id);
        shared.registry.reserve(
            Kind::Image,
            owner,
            &name,
            shared.settings.limits.images,
            old.map(Object::Image),
        )?;
        let job = shared.jobs.begin(JobKind::ImagePull, owner, Vec::new(), PULL);
        let mut job = job.inspect_err(|_| shared.registry.unreserve(Kind::Image, owner, &name))?;
        let id = job.id();
        let (reference, platform) = (source.reference.clone(), source.platform.clone());
        jobs.insert(key.clone(), UnderWay { reference, platform, whence: whence.clone(), job: id });
        drop(jobs);

        let pull = Pull { owner, name, source, whence, shared: is_shared, kernel, old, other };
        tokio::spawn(async move {
            let span = job.span();
            let result = match job.turn().await {
                Ok(()) => run(&shared, &job, &pull).instrument(span).await,
                Err(error) => Err(error),
            };
            shared.registry.unreserve(Kind::Image, pull.owner, &pull.name);
            shared.pulls.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            job.finish(result);
        });
        Ok(id)
    }

    /// The credentials in a file of a client's.
    pub fn read_credentials(&self, file: OwnedFd) -> Result<Credentials> {
        Ok(self.shared.ports.registry.credentials(file)?)
    }

    /// The image of the caller, or a shared one, that this reference was pulled as.
    pub fn find_pulled(&self, caller: Uid, reference: &ImageRef) -> Option<Arc<ImageView>> {
        let is_it =
            |image: &ImageView| image.origin.as_ref().is_some_and(|origin| origin.reference == *reference);
        let images = self.images().into_iter().filter(|image| image.owner == caller || image.shared);
        // Of one's own and a shared one, the own one counts; of two, the newer one.
        images
            .filter(|image| is_it(image))
            .max_by_key(|image| (image.owner == caller, image.created_at, image.id))
    }

    /// Begins to remove what is in the cache of registries.
    pub fn prune_cache(&self, owner: Uid, prune: Prune) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let mut job = shared.jobs.begin(JobKind::CachePrune, owner, Vec::new(), PRUNE)?;
        let id = job.id();
        tokio::spawn(async move {
            if let Err(error) = job.turn().await {
                return job.finish(Err(error));
            }
            job.stage("prune", "looking for unused layers".to_owned());
            let span = job.span();
            let pruned = shared.ports.registry.prune(prune).instrument(span).await;
            let result = pruned.map(|pruned| {
                job.tell("blobs", Fact::Number(pruned.blobs));
                job.tell("bytes", Fact::Number(pruned.bytes.0));
            });
            job.finish(result.map_err(Error::from));
        });
        Ok(id)
    }
}

async fn run(shared: &Arc<Shared>, job: &JobHandle, pull: &Pull) -> Result<()> {
    let (name, is_only) = match &pull.whence {
        Whence::Registry => return run_remote(shared, job, pull).await,
        Whence::CatalogElseRegistry(name) => (name, false),
        Whence::Catalog(name) => (name, true),
    };
    job.stage("resolve", format!("looking for {name} in the catalogs"));
    let found = match unless_canceled(job, catalog::find_image(shared, name)).await?? {
        Some(found) => found,
        None if is_only => return Err(catalog::nowhere(shared, Kind::Image, name)),
        None => {
            check_gives_way(shared, pull, |old| is_of_repository(old, &pull.source.reference))?;
            return run_remote(shared, job, pull).await;
        }
    };
    let target = found.entry.target.clone().ok_or_else(|| found.unpublished())?;
    let mut pull = pull.clone();
    if let (None, Some(kernel)) = (pull.kernel, &found.entry.kernel) {
        pull.kernel = Some(kernel_of(shared, job, pull.owner, kernel).await?);
    }
    match target {
        ImageTarget::Reference(reference) => {
            check_gives_way(shared, &pull, |old| is_of_repository(old, &reference))?;
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
            check_gives_way(shared, &pull, is_of_entry)?;
            pull_file::run(shared, job, &pull, &provenance, &file).await
        }
    }
}

/// Whether an image was pulled from the repository of a reference.
fn is_of_repository(old: &ImageView, reference: &ImageRef) -> bool {
    let place = |reference: &ImageRef| (reference.registry().clone(), reference.repository().to_owned());
    old.origin.as_ref().is_some_and(|origin| place(&origin.reference) == place(reference))
}

/// Checks that the name may be replaced: always by a newer edition of the same source, by anything else on request.
fn check_gives_way(shared: &Shared, pull: &Pull, is_older: impl Fn(&ImageView) -> bool) -> Result<()> {
    match pull.old.and_then(|id| shared.registry.image(id)) {
        Some(old) if pull.other == Other::Stays && !is_older(&old) => {
            Err(Error::NameTaken { kind: Kind::Image, name: pull.name.to_string() })
        }
        _ => Ok(()),
    }
}

/// The kernel that a catalog's image wants: the user's own of this name or a shared one, else that of a catalog.
async fn kernel_of(shared: &Arc<Shared>, job: &JobHandle, owner: Uid, name: &Name) -> Result<KernelId> {
    let engine = Engine { shared: Arc::clone(shared) };
    let find = || engine.find_kernel(owner, &Reference::Name(name.clone())).map(|kernel| kernel.id);
    if let Ok(kernel) = find() {
        return Ok(kernel);
    }
    job.stage("resolve", format!("fetching its kernel {name}"));
    let request = PullKernel { owner, entry: name.clone(), name: None, shared: false, other: Other::Stays };
    // As a part of this job: in line it would wait for this job's own end.
    let pulling = engine.pull_kernel_for(AskedBy::Job, request)?;
    match unless_canceled(job, engine.wait_job(pulling, None)).await??.outcome.clone() {
        Some(Outcome::Failed(why)) => Err(Error::Because { why }),
        Some(Outcome::Done) => find(),
        _ => Err(Error::Canceled),
    }
}

async fn run_remote(shared: &Shared, job: &JobHandle, pull: &Pull) -> Result<()> {
    let reference = &pull.source.reference;
    job.stage("resolve", format!("asking {} for {reference}", reference.registry()));
    let remote = unless_canceled(job, shared.ports.registry.resolve(&pull.source)).await??;
    let origin = Origin { reference: reference.clone(), manifest: remote.manifest };
    if let Some(old) = pull.old.and_then(|id| shared.registry.image(id))
        && is_made(&old, pull, &origin)
    {
        return tell(job, &old);
    }
    // Before the turn: a task that has the turn must not wait for anything held by tasks that wait for it.
    let _worker = job.worker().await?;
    let turn = shared.pulls.turn(reference.registry().to_string(), origin.manifest);
    let _turn = unless_canceled(job, turn.lock()).await?;

    let old = pull.old.and_then(|id| shared.registry.image(id));
    if let Some(old) = &old {
        if is_made(old, pull, &origin) {
            return tell(job, old);
        }
        shared.registry.check_unused(old)?;
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
    settle(shared, job, &image, old.as_deref()).await
}

/// Whether an image is what a pull is to make already.
fn is_made(old: &ImageView, pull: &Pull, origin: &Origin) -> bool {
    let is_it = |of: &Origin| of.is_same(origin) && of.reference == origin.reference;
    old.origin.as_ref().is_some_and(is_it)
        && old.shared == pull.shared
        && (pull.kernel.is_none() || old.kernel == pull.kernel)
}

/// Keeps an image whose files are there, and says which it is. What is not kept leaves no files.
pub(super) async fn settle(
    shared: &Shared,
    job: &JobHandle,
    image: &Image,
    old: Option<&Image>,
) -> Result<()> {
    let kept = if job.is_canceled() { Err(Error::Canceled) } else { keep(shared, image, old).await };
    if let Err(error) = kept {
        shared.ports.image_files.remove(image.id).await?;
        return Err(error);
    }
    tell(job, image)
}

/// Makes the files of an image: of the same image when somebody has it, else of its layers.
async fn make(
    shared: &Shared,
    job: &JobHandle,
    pull: &Pull,
    remote: &RemoteImage,
    origin: &Origin,
    id: ImageId,
) -> Result<ImageFacts> {
    let claim = |bytes| claim(shared, pull, bytes);
    let images = shared.registry.images();
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

/// Takes the room of an image off what its owner may have. What every user sees counts for nobody.
pub(super) fn claim(shared: &Shared, pull: &Pull, bytes: Bytes) -> Result<()> {
    match pull.shared {
        true => Ok(()),
        false => shared.registry.claim(pull.owner, &pull.name, bytes, shared.settings.limits.image_disk),
    }
}

/// Gives an image the files of its twin, unless that was deleted meanwhile.
pub(super) async fn share(shared: &Shared, id: ImageId, twin: ImageId) -> Result<bool> {
    match shared.ports.image_files.share(id, twin).await {
        Ok(()) => Ok(true),
        Err(_) if shared.registry.image(twin).is_none() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Fetches the layers, and imports them while they come.
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
    // Dropping the work closes its pipes, and then the import ends too. It is waited for: what it made must be
    // gone before anybody is told of the end.
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
        // A fetch that failed at the same time tells more than an import of which the rest did not come.
        (Err(error), Some(work)) => match work.now_or_never() {
            Some(Err(cause)) => Err(cause.into()),
            _ => Err(distrust(shared, source, remote, error).await),
        },
        (Err(error), None) => Err(distrust(shared, source, remote, error).await),
    }
}

/// What was in the cache and is not what it should be must not be there the next time. An importer finds that
/// out, whichever way it says so.
async fn distrust(shared: &Shared, source: &Source, remote: &RemoteImage, error: ports::Error) -> Error {
    if matches!(error, ports::Error::Mismatch { .. } | ports::Error::Unsupported { .. })
        && let Err(error) = shared.ports.registry.forget(source, &remote.layers).await
    {
        tracing::error!(%error, "cannot remove wrong layers from the cache");
    }
    error.into()
}

/// Publishes an image, in the place of another one perhaps.
async fn keep(shared: &Shared, image: &Image, old: Option<&ImageView>) -> Result<()> {
    let ports = &shared.ports;
    let Some(old) = old else {
        ports.store.put_image(image).await?;
        shared.registry.add_image(image.clone());
        return Ok(());
    };
    let _turn = shared.library.lock().await;
    let taken = shared.registry.take_image(old.id)?;
    if let Err(error) = ports.store.replace_image(image, old.id).await {
        shared.registry.add_image(ImageView::clone(&taken));
        return Err(error.into());
    }
    shared.registry.add_image(image.clone());
    // The new image is there. Files that stay are removed at the next start.
    if let Err(error) = ports.image_files.remove(old.id).await {
        tracing::error!(image = %old.id, %error, "cannot remove the files of an image that was replaced");
    }
    Ok(())
}

pub(super) fn tell(job: &JobHandle, image: &ImageView) -> Result<()> {
    job.concerns(Object::Image(image.id));
    if let Some(origin) = &image.origin {
        job.tell("digest", Fact::Text(origin.manifest.to_string()));
    }
    job.tell("bytes", Fact::Number(image.facts.disk_usage.0));
    Ok(())
}

/// What may be dropped at any time, for as long as nobody gives the job up.
pub(super) async fn unless_canceled<T>(job: &JobHandle, work: impl Future<Output = T>) -> Result<T> {
    tokio::select! {
        biased;
        _ = job.canceled() => Err(Error::Canceled),
        done = work => Ok(done),
    }
}
