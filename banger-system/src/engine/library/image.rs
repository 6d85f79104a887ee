//! Images: imports from a user's file, sharing, deletion.

use std::sync::Arc;

use banger_domain::{
    id::{ImageId, JobId, KernelId, Uid},
    name::Name,
};
use banger_image::{
    oci::{config::ImageConfig, reference::ImageRef},
    record::{Image, ImageFacts},
};

use super::{
    Engine, Shared,
    error::{Kind, Result},
    inventory::no_such,
    item::Stored,
    job::{JobHandle, Stages},
    now,
    pipeline::{self, Order, Quota, RequestedBy, commit, discard, report_notes, reserve, reserve_name},
    request::{ImportImage, ImportSource},
    view::{ImageView, JobKind, Object},
};
use crate::ports::image_files::{Content, Layout};

const IMPORT: Stages = &["import"];

impl Engine {
    /// Starts to import an image from a user's file.
    pub fn import_image(&self, request: ImportImage) -> Result<JobId> {
        let kernel = match &request.kernel {
            Some(reference) => Some(self.kernel_by(request.owner, reference)?.id),
            None => None,
        };
        let order = Order::<Image> {
            owner: request.owner,
            name: request.name.clone(),
            replaces: None,
            kind: JobKind::ImageImport,
            stages: IMPORT,
            requested_by: RequestedBy::User,
        };
        let reserved = reserve(&self.shared, order)?;
        Ok(reserved.run(move |shared, job| Box::pin(import(shared, job, request, kernel))))
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

    /// Shares an image with all users, or makes it private.
    pub async fn share_image(&self, id: ImageId, shared: bool) -> Result<()> {
        let _locked = self.shared.library.lock.lock().await;
        let inventory = &self.shared.inventory;
        let limit = self.shared.settings.limits.image_disk;
        let image = inventory.share_image(id, shared, limit)?;
        if let Err(error) = self.shared.ports.store.put_image(&image).await {
            // If another user uses it by now, it stays shared until the service restarts.
            if let Err(error) = inventory.share_image(id, !shared, limit) {
                tracing::error!(image = %id, %error, "an image differs from its row in the database");
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Renames an image.
    pub async fn rename_image(&self, id: ImageId, name: &Name) -> Result<()> {
        pipeline::rename::<Image>(&self.shared, id, name).await
    }

    /// Gives an image another name: a private image of `owner` that shares its file.
    pub async fn tag_image(&self, owner: Uid, id: ImageId, name: &Name) -> Result<ImageId> {
        let shared = &self.shared;
        let _reserved = reserve_name::<Image>(shared, owner, name.clone(), None)?;
        // Held so that the image is not removed meanwhile.
        let _locked = shared.library.lock.lock().await;
        let image = self.image(id).ok_or_else(|| no_such(Kind::Image, &id.to_string()))?;
        Quota { owner, name, shared: false }.claim_shared(shared, &image.facts)?;
        let tag =
            Image { id: ImageId::random(), name: name.clone(), owner, shared: false, ..Image::clone(&image) };
        shared.ports.image_files.share(tag.id, id).await?;
        if let Err(error) = tag.put_row(&*shared.ports.store, None).await {
            let _ = discard::<Image>(shared, tag.id).await;
            return Err(error.into());
        }
        shared.inventory.add(tag.clone());
        Ok(tag.id)
    }

    /// Deletes an image that no VM uses.
    pub async fn delete_image(&self, id: ImageId) -> Result<()> {
        pipeline::delete::<Image>(&self.shared, id).await
    }
}

async fn import(
    shared: &Shared,
    job: &JobHandle,
    request: ImportImage,
    kernel: Option<KernelId>,
) -> Result<()> {
    let id = ImageId::random();
    let _worker = job.acquire_worker().await?;
    job.stage("import", format!("copying {}", request.name));
    let progress = job.progress("import");
    let files = &shared.ports.image_files;
    let (content, config) = match request.content {
        ImportSource::Rootfs(file) => (Content::File(file), ImageConfig::default()),
        ImportSource::Layout(file, parts, platform) => {
            let Layout { image, layers } = files.layout(request.owner, file, &parts, &platform).await?;
            report_notes(job, &image);
            (Content::Layers(layers), image.config)
        }
    };
    let facts = files.import(id, request.owner, content, progress).await?;
    let quota = Quota { owner: request.owner, name: &request.name, shared: request.shared };
    quota.claim_created(shared, id, facts.disk_usage).await?;
    let facts = deduplicate(shared, id, request.owner, facts).await?;
    let image = Image {
        id,
        name: request.name,
        owner: request.owner,
        shared: request.shared,
        source: "file".to_owned(),
        kernel,
        created_at: now(&*shared.ports.clock),
        facts,
        origin: None,
        config,
    };
    commit(shared, job, &image, None).await?;
    job.add_object(Object::Image(id));
    Ok(())
}

/// Makes a new image share the file of one with the same digest, if its owner may read that one anyway. An importer
/// chooses the digest, and so it must not give access to another user's image. A failure removes the new image's files.
/// Returns the facts about the file that it has now.
pub(super) async fn deduplicate(
    shared: &Shared,
    id: ImageId,
    owner: Uid,
    facts: ImageFacts,
) -> Result<ImageFacts> {
    let shared_file = share_file(shared, id, owner, facts).await;
    if shared_file.is_err() {
        let _ = discard::<Image>(shared, id).await;
    }
    shared_file
}

async fn share_file(shared: &Shared, id: ImageId, owner: Uid, facts: ImageFacts) -> Result<ImageFacts> {
    let is_same = |image: &ImageView| {
        (image.owner == owner || image.shared)
            && (&image.facts.digest, image.facts.virtual_size) == (&facts.digest, facts.virtual_size)
    };
    // Held so that the other image is not removed meanwhile.
    let _locked = shared.library.lock.lock().await;
    let Some(twin) = shared.inventory.all::<Image>().into_iter().find(|image| is_same(image)) else {
        return Ok(facts);
    };
    shared.ports.image_files.remove(id).await?;
    shared.ports.image_files.share(id, twin.id).await?;
    Ok(twin.facts.clone())
}
