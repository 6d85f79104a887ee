//! Pulls images that are files in a catalog: fetched through the cache, then imported like a user's file.

use std::sync::Arc;

use banger_domain::id::ImageId;
use banger_image::{
    catalog::{Provenance, RemoteFile},
    oci::config::ImageConfig,
    record::{Image, ImageFacts},
};

use super::{
    Shared,
    error::Result,
    image_pull::{Pull, claim, commit, report, share, unless_canceled},
    job::JobHandle,
    now,
};
use crate::ports::images::Content;

/// Creates the image from a file, or shares the files of an identical image.
pub(super) async fn run(
    shared: &Arc<Shared>,
    job: &JobHandle,
    pull: &Pull,
    from: &Provenance,
    file: &RemoteFile,
) -> Result<()> {
    let source = from.to_string();
    let _worker = job.acquire_worker().await?;
    let lock = shared.pulls.lock_for(format!("@{}", from.catalog), from.digest);
    let _locked = unless_canceled(job, lock.lock()).await?;
    let old = pull.old.and_then(|id| shared.inventory.image(id));
    if let Some(old) = &old {
        let has_kernel = pull.kernel.is_none() || old.kernel == pull.kernel;
        if old.source == source && old.shared == pull.shared && has_kernel {
            return report(job, old);
        }
        shared.inventory.check_image_unused(old)?;
    }
    let id = ImageId::random();
    let (facts, config) = make(shared, job, pull, from, file, id).await?;
    let image = Image {
        id,
        name: pull.name.clone(),
        owner: pull.owner,
        shared: pull.shared,
        source,
        kernel: pull.kernel,
        created_at: now(&*shared.ports.clock),
        facts,
        origin: None,
        config,
    };
    commit(shared, job, &image, old.as_deref()).await
}

async fn make(
    shared: &Shared,
    job: &JobHandle,
    pull: &Pull,
    from: &Provenance,
    file: &RemoteFile,
    id: ImageId,
) -> Result<(ImageFacts, ImageConfig)> {
    let claim = |bytes| claim(shared, pull, bytes);
    let (ports, source) = (&shared.ports, from.to_string());
    if let Some(twin) = shared.inventory.images().into_iter().find(|image| image.source == source) {
        claim(twin.facts.disk_usage)?;
        if share(shared, id, twin.id).await? {
            return Ok((twin.facts.clone(), twin.config.clone()));
        }
    }
    claim(file.size())?;
    job.stage("pull", format!("fetching {} of {}", file.size(), from.entry));
    let fetch = ports.catalogs.fetch(&from.catalog, file, job.progress("pull"));
    let content = unless_canceled(job, fetch).await??;
    job.stage("import", format!("unpacking {}", from.entry));
    let content = Content::File(content);
    let facts = ports.image_files.import(id, pull.owner, content, job.progress("import")).await?;
    if let Err(error) = claim(facts.disk_usage) {
        ports.image_files.remove(id).await?;
        return Err(error);
    }
    Ok((facts, ImageConfig::default()))
}
