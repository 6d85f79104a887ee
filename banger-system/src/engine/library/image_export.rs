//! Exports of images into a user's file.

use std::{os::fd::OwnedFd, sync::Arc};

use banger_domain::id::{ImageId, JobId, Uid};

use super::{
    Engine, Shared,
    error::{Error, Kind, Result},
    inventory::no_such,
    job::{JobHandle, Stages},
    pipeline::run_job,
    view::{Fact, ImageView, JobKind, Object},
};

const EXPORT: Stages = &["export"];

impl Engine {
    /// Starts to export an image into a user's empty file, as an OCI image layout in a tar archive.
    pub fn export_image(&self, caller: Uid, id: ImageId, archive: OwnedFd) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let image = self.image(id).ok_or_else(|| no_such(Kind::Image, &id.to_string()))?;
        let job = shared.jobs.begin(JobKind::ImageExport, caller, vec![Object::Image(id)], EXPORT)?;
        Ok(run_job(shared, job, move |shared, job| Box::pin(export(shared, job, caller, image, archive))))
    }
}

async fn export(
    shared: &Shared,
    job: &JobHandle,
    caller: Uid,
    image: Arc<ImageView>,
    archive: OwnedFd,
) -> Result<()> {
    let _worker = job.acquire_worker().await?;
    job.stage("export", format!("writing {}", image.name));
    let (files, progress) = (&shared.ports.image_files, job.progress("export"));
    let described = (image.name.clone(), image.config.clone());
    let exported = files.export(image.id, caller, described, archive, progress).await;
    if job.is_canceled() {
        return Err(Error::Canceled);
    }
    let exported = exported?;
    job.add_result("digest", Fact::Text(exported.manifest.to_string()));
    job.add_result("bytes", Fact::Number(exported.bytes.0));
    Ok(())
}
