//! The content of a pulled image, and how its files come to be: shared with an identical image, else fetched and
//! imported.

use std::sync::Arc;

use banger_domain::id::ImageId;
use banger_image::{
    catalog::{Provenance, RemoteFile},
    oci::{RemoteImage, config::ImageConfig},
    record::{Image, ImageFacts, Origin},
};
use banger_proto::size::Bytes;
use futures_util::FutureExt;

use super::{
    Shared,
    error::{Error, Result},
    job::JobHandle,
    pipeline::{Quota, discard, unless_canceled},
    single_flight::{ContentLock, ContentLocks},
    view::ImageView,
};
use crate::ports::{
    image_files::{self, Content, Layer},
    registry::{Fetch, Source},
};

/// What a pull has resolved to.
pub(super) enum PulledContent {
    /// An image of a registry, which is imported as its layers arrive.
    Layers { source: Source, remote: Box<RemoteImage> },
    /// A file of a catalog, which is fetched through the cache, then imported like a user's file.
    Archive { from: Provenance, file: RemoteFile },
}

impl PulledContent {
    /// Returns what an image says about its source.
    pub(super) fn source(&self) -> String {
        match self {
            Self::Layers { source, .. } => source.reference.to_string(),
            Self::Archive { from, .. } => from.to_string(),
        }
    }

    /// Returns the registry's image, if it is one.
    pub(super) fn origin(&self) -> Option<Origin> {
        match self {
            Self::Layers { source, remote } => {
                Some(Origin { reference: source.reference.clone(), manifest: remote.manifest })
            }
            Self::Archive { .. } => None,
        }
    }

    /// Returns whether an image was pulled from this very source with this content.
    pub(super) fn is_source_of(&self, image: &ImageView) -> bool {
        match self {
            Self::Layers { .. } => image.origin == self.origin(),
            Self::Archive { .. } => image.source == self.source(),
        }
    }

    /// Returns whether an image has this content, by whichever tag it was pulled.
    fn is_content_of(&self, image: &ImageView) -> bool {
        match (self.origin(), &image.origin) {
            (Some(origin), Some(of)) => of.is_same(&origin),
            (Some(_), None) => false,
            (None, _) => image.source == self.source(),
        }
    }

    /// Returns the lock under which this content is created.
    pub(super) fn lock(&self, locks: &ContentLocks) -> Arc<ContentLock> {
        match self {
            Self::Layers { source, remote } => {
                locks.lock_for(source.reference.registry().to_string(), remote.manifest)
            }
            Self::Archive { from, .. } => locks.lock_for(format!("@{}", from.catalog), from.digest),
        }
    }

    /// Returns how many bytes there are to fetch.
    fn size(&self) -> Bytes {
        match self {
            Self::Layers { remote, .. } => remote.size(),
            Self::Archive { file, .. } => file.size(),
        }
    }

    /// Creates the files of an image with this content, within its owner's quota. A failure leaves no files.
    pub(super) async fn create(
        &self,
        shared: &Shared,
        job: &JobHandle,
        quota: &Quota<'_>,
        id: ImageId,
    ) -> Result<(ImageFacts, ImageConfig)> {
        let images = shared.inventory.all::<Image>();
        if let Some(twin) = images.iter().find(|image| self.is_content_of(image)) {
            quota.claim_shared(shared, &twin.facts)?;
            if share(shared, id, twin.id).await? {
                return Ok((twin.facts.clone(), self.config()));
            }
        }
        quota.claim(shared, self.size())?;
        let facts = match self {
            Self::Layers { source, remote } => import_layers(shared, job, quota, source, remote, id).await?,
            Self::Archive { from, file } => import_archive(shared, job, quota, from, file, id).await?,
        };
        quota.claim_created(shared, id, facts.disk_usage).await?;
        Ok((facts, self.config()))
    }

    /// Returns how the image's programs run. A catalog's file says nothing about it.
    fn config(&self) -> ImageConfig {
        match self {
            Self::Layers { remote, .. } => remote.config.clone(),
            Self::Archive { .. } => ImageConfig::default(),
        }
    }
}

/// Shares the files of an identical image. Returns false if that was deleted meanwhile.
async fn share(shared: &Shared, id: ImageId, twin: ImageId) -> Result<bool> {
    match shared.ports.image_files.share(id, twin).await {
        Ok(()) => Ok(true),
        Err(_) if shared.inventory.item::<Image>(twin).is_none() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Fetches a catalog's file, then imports it.
async fn import_archive(
    shared: &Shared,
    job: &JobHandle,
    quota: &Quota<'_>,
    from: &Provenance,
    file: &RemoteFile,
    id: ImageId,
) -> Result<ImageFacts> {
    let ports = &shared.ports;
    job.stage("pull", format!("fetching {} of {}", file.size(), from.entry));
    let fetch = ports.catalogs.fetch(&from.catalog, file, job.progress("pull"));
    let content = Content::File(unless_canceled(job, fetch).await??);
    job.stage("import", format!("unpacking {}", from.entry));
    Ok(ports.image_files.import(id, quota.owner, content, job.progress("import")).await?)
}

/// Fetches the layers and imports them as they arrive.
async fn import_layers(
    shared: &Shared,
    job: &JobHandle,
    quota: &Quota<'_>,
    source: &Source,
    remote: &RemoteImage,
    id: ImageId,
) -> Result<ImageFacts> {
    let ports = &shared.ports;
    job.stage("pull", format!("fetching {} of {}", remote.size(), source.reference));
    let fetch = ports.registry.fetch(source, &remote.layers, job.progress("pull"));
    let Fetch { blobs, work } = unless_canceled(job, fetch).await??;
    let layers = blobs.into_iter().zip(&remote.layers).map(|(blob, layer)| Layer {
        blob,
        offset: None,
        size: layer.blob.size,
        digest: layer.blob.digest,
        diff_id: layer.diff_id,
    });
    let mut import =
        ports.image_files.import(id, quota.owner, Content::Layers(layers.collect()), job.progress("import"));
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
            let _ = discard::<Image>(shared, id).await;
        }
        return Err(error);
    }
    match (imported, work) {
        (Ok(facts), None) => Ok(facts),
        (Ok(facts), Some(work)) => match unless_canceled(job, work).await {
            Ok(Ok(())) => Ok(facts),
            ended => {
                let _ = discard::<Image>(shared, id).await;
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
    error: image_files::Error,
) -> Error {
    if matches!(error, image_files::Error::Mismatch { .. } | image_files::Error::Unsupported { .. })
        && let Err(error) = shared.ports.registry.forget(source, &remote.layers).await
    {
        tracing::error!(%error, "cannot remove bad layers from the cache");
    }
    error.into()
}
