//! Images of registries: what was never here is fetched and imported, while it comes; what is here already is
//! shared; and the cache in between is pruned.

use std::{
    collections::HashMap,
    future::Future,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use banger_proto::size::Bytes;
use futures_util::FutureExt;
use tracing::Instrument;

use super::{
    Engine, Shared,
    error::{Error, Kind, Result},
    job::{JobHandle, Stages},
    now,
    request::{Other, PullImage},
    view::{Fact, ImageView, JobKind, Object},
};
use crate::{
    domain::{
        digest::Digest,
        id::{ImageId, JobId, KernelId, Uid},
        image::{Image, ImageFacts, Origin},
        name::Name,
        oci::{RemoteImage, credentials::Credentials, platform::Platform, reference::ImageRef},
    },
    ports::{
        self,
        images::{Content, Layer},
        registry::{Fetch, Prune, Source},
    },
};

const PULL: Stages = &["resolve", "pull", "import"];
const PRUNE: Stages = &["prune"];

/// The pulls that are under way.
#[derive(Default)]
pub(super) struct Pulls {
    jobs: Mutex<HashMap<(Uid, Name), UnderWay>>,
    turns: Mutex<HashMap<(String, Digest), Weak<Turn>>>,
}

/// A pull that is under way.
struct UnderWay {
    reference: ImageRef,
    platform: Platform,
    job: JobId,
}

/// Who holds it makes the one image of a manifest; who comes next shares it.
type Turn = tokio::sync::Mutex<()>;

impl Pulls {
    fn turn(&self, origin: &Origin) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let key = (origin.reference.registry().to_string(), origin.manifest);
        if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Turn::default());
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }
}

/// What a pull makes.
struct Pull {
    owner: Uid,
    name: Name,
    source: Source,
    shared: bool,
    kernel: Option<KernelId>,
    /// Whose place it takes.
    old: Option<ImageId>,
}

impl Engine {
    /// Begins to make an image of a registry's. The same request of the same user, while it is under way, is the
    /// same job.
    pub fn pull_image(&self, request: PullImage) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let PullImage { owner, source, name, shared: is_shared, kernel, other } = request;
        let no_name = || Error::InvalidOption { why: format!("{} needs a name here", source.reference) };
        let name = name.or_else(|| source.reference.local_name()).ok_or_else(no_name)?;
        let kernel = kernel.map(|reference| self.find_kernel(owner, &reference)).transpose()?.map(|k| k.id);

        let key = (owner, name.clone());
        let mut jobs = shared.pulls.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = jobs.get(&key)
            && (&same.reference, &same.platform) == (&source.reference, &source.platform)
        {
            return Ok(same.job);
        }
        let is_own = |image: &ImageView| image.owner == owner && image.name == name;
        let old = self.images().into_iter().find(|image| is_own(image));
        let gives_way = |image: &ImageView| {
            let is_newer = image.origin.as_ref().is_some_and(|origin| origin.reference == source.reference);
            is_newer || other == Other::Goes
        };
        let old = old.filter(|image| gives_way(image)).map(|image| image.id);
        shared.registry.reserve(Kind::Image, owner, &name, shared.settings.limits.images, old)?;
        let job = shared.jobs.begin(JobKind::ImagePull, owner, Vec::new(), PULL);
        let id = job.id();
        let (reference, platform) = (source.reference.clone(), source.platform.clone());
        jobs.insert(key.clone(), UnderWay { reference, platform, job: id });
        drop(jobs);

        let pull = Pull { owner, name, source, shared: is_shared, kernel, old };
        tokio::spawn(async move {
            let span = job.span();
            let result = run(&shared, &job, &pull).instrument(span).await;
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
    pub fn prune_cache(&self, owner: Uid, prune: Prune) -> JobId {
        let shared = Arc::clone(&self.shared);
        let job = shared.jobs.begin(JobKind::CachePrune, owner, Vec::new(), PRUNE);
        let id = job.id();
        tokio::spawn(async move {
            job.stage("prune", "looking at what nobody needs".to_owned());
            let span = job.span();
            let pruned = shared.ports.registry.prune(prune).instrument(span).await;
            let result = pruned.map(|pruned| {
                job.tell("blobs", Fact::Number(pruned.blobs));
                job.tell("bytes", Fact::Number(pruned.bytes.0));
            });
            job.finish(result.map_err(Error::from));
        });
        id
    }
}

async fn run(shared: &Shared, job: &JobHandle, pull: &Pull) -> Result<()> {
    let reference = &pull.source.reference;
    job.stage("resolve", format!("asking {} for {reference}", reference.registry()));
    let remote = unless_canceled(job, shared.ports.registry.resolve(&pull.source)).await??;
    let origin = Origin { reference: reference.clone(), manifest: remote.manifest };
    let turn = shared.pulls.turn(&origin);
    let _turn = unless_canceled(job, turn.lock()).await?;

    let old = pull.old.and_then(|id| shared.registry.image(id));
    if let Some(old) = &old {
        let is_it = old.origin.as_ref().is_some_and(|of| of.is_same(&origin) && of.reference == *reference);
        if is_it && old.shared == pull.shared && (pull.kernel.is_none() || old.kernel == pull.kernel) {
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
    let kept =
        if job.is_canceled() { Err(Error::Canceled) } else { keep(shared, &image, old.as_deref()).await };
    if let Err(error) = kept {
        shared.ports.image_files.remove(id).await?;
        return Err(error);
    }
    tell(job, &image)
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
    // What every user sees counts for nobody.
    let claim = |bytes: Bytes| match pull.shared {
        true => Ok(()),
        false => shared.registry.claim(pull.owner, &pull.name, bytes, shared.settings.limits.image_disk),
    };
    let images = shared.registry.images();
    let twin = images.iter().find(|image| image.origin.as_ref().is_some_and(|of| of.is_same(origin)));
    if let Some(twin) = twin {
        claim(twin.facts.disk_usage)?;
        match shared.ports.image_files.share(id, twin.id).await {
            Ok(()) => return Ok(twin.facts.clone()),
            // It may have been deleted meanwhile, and then there is nothing to share.
            Err(_) if shared.registry.image(twin.id).is_none() => {}
            Err(error) => return Err(error.into()),
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
        packing: layer.packing,
        size: layer.blob.size,
        digest: layer.blob.digest,
        diff_id: layer.diff_id,
    });
    let mut import = ports.image_files.import(id, Content::Layers(layers.collect()), job.progress("import"));
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
        tracing::error!(%error, "cannot forget layers that are wrong");
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

fn tell(job: &JobHandle, image: &ImageView) -> Result<()> {
    job.concerns(Object::Image(image.id));
    if let Some(origin) = &image.origin {
        job.tell("digest", Fact::Text(origin.manifest.to_string()));
    }
    job.tell("bytes", Fact::Number(image.facts.disk_usage.0));
    Ok(())
}

/// What may be dropped at any time, for as long as nobody gives the job up.
async fn unless_canceled<T>(job: &JobHandle, work: impl Future<Output = T>) -> Result<T> {
    tokio::select! {
        biased;
        _ = job.canceled() => Err(Error::Canceled),
        done = work => Ok(done),
    }
}
