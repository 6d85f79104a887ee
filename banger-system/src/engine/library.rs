//! Imports, exports, shares and removes images and kernels.

use std::{os::fd::OwnedFd, sync::Arc};

use banger_domain::id::{ImageId, JobId, KernelId, Uid};
use banger_image::{
    oci::config::ImageConfig,
    record::{Image, ImageFacts, Kernel},
};
use tracing::Instrument;

use super::{
    Engine, Shared,
    error::{Error, Kind, Result},
    job::{JobHandle, Stages},
    now,
    request::{ImportImage, ImportKernel, ImportSource},
    view::{Fact, ImageView, JobKind, Object},
};
use crate::ports::images::{Content, Layout};

const IMPORT: Stages = &["import"];
const EXPORT: Stages = &["export"];

impl Engine {
    /// Starts to import an image from a user's file.
    pub fn import_image(&self, request: ImportImage) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let kernel = match &request.kernel {
            Some(reference) => Some(self.kernel_by(request.owner, reference)?.id),
            None => None,
        };
        shared.inventory.reserve(
            Kind::Image,
            request.owner,
            &request.name,
            shared.settings.limits.images,
            None,
        )?;
        let (owner, name) = (request.owner, request.name.clone());
        let job = shared.jobs.begin(JobKind::ImageImport, owner, Vec::new(), IMPORT);
        let mut job = job.inspect_err(|_| shared.inventory.cancel_reservation(Kind::Image, owner, &name))?;
        let id = job.id();
        tokio::spawn(async move {
            let result = match job.wait_turn().await {
                Ok(()) => make_image(&shared, &job, request, kernel).instrument(job.span()).await,
                Err(error) => Err(error),
            };
            shared.inventory.cancel_reservation(Kind::Image, owner, &name);
            job.finish(result);
        });
        Ok(id)
    }

    /// Shares an image with all users, or makes it private.
    pub async fn share_image(&self, id: ImageId, shared: bool) -> Result<()> {
        let _locked = self.shared.image_lock.lock().await;
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

    /// Starts to export an image into a user's empty file, as an OCI image layout in a tar archive.
    pub fn export_image(&self, caller: Uid, id: ImageId, archive: OwnedFd) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let none = || Error::NoSuch { kind: Kind::Image, reference: id.to_string() };
        let image = self.image(id).ok_or_else(none)?;
        let mut job = shared.jobs.begin(JobKind::ImageExport, caller, vec![Object::Image(id)], EXPORT)?;
        let job_id = job.id();
        tokio::spawn(async move {
            let result = match job.wait_turn().await {
                Ok(()) => write_image(&shared, &job, caller, &image, archive).instrument(job.span()).await,
                Err(error) => Err(error),
            };
            job.finish(result);
        });
        Ok(job_id)
    }

    /// Deletes an image that no VM uses.
    pub async fn delete_image(&self, id: ImageId) -> Result<()> {
        let _locked = self.shared.image_lock.lock().await;
        self.shared.inventory.remove_unused_image(id)?;
        self.shared.ports.store.delete_image(id).await?;
        Ok(self.shared.ports.image_files.remove(id).await?)
    }

    /// Starts to import a kernel from a user's files.
    pub fn import_kernel(&self, request: ImportKernel) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        shared.inventory.reserve(
            Kind::Kernel,
            request.owner,
            &request.name,
            shared.settings.limits.images,
            None,
        )?;
        let (owner, name) = (request.owner, request.name.clone());
        let job = shared.jobs.begin(JobKind::KernelImport, owner, Vec::new(), IMPORT);
        let mut job = job.inspect_err(|_| shared.inventory.cancel_reservation(Kind::Kernel, owner, &name))?;
        let id = job.id();
        tokio::spawn(async move {
            let result = match job.wait_turn().await {
                Ok(()) => make_kernel(&shared, &job, request).instrument(job.span()).await,
                Err(error) => Err(error),
            };
            shared.inventory.cancel_reservation(Kind::Kernel, owner, &name);
            job.finish(result);
        });
        Ok(id)
    }

    /// Deletes a kernel that no VM and no image uses.
    pub async fn delete_kernel(&self, id: KernelId) -> Result<()> {
        self.shared.inventory.remove_unused_kernel(id)?;
        self.shared.ports.store.delete_kernel(id).await?;
        Ok(self.shared.ports.kernel_files.remove(id).await?)
    }
}

/// Writes an image into a user's file.
async fn write_image(
    shared: &Shared,
    job: &JobHandle,
    caller: Uid,
    image: &ImageView,
    archive: OwnedFd,
) -> Result<()> {
    let _worker = job.acquire_worker().await?;
    job.stage("export", format!("writing {}", image.name));
    let (files, progress) = (&shared.ports.image_files, job.progress("export"));
    let exported = files.export(image.id, caller, image.config.clone(), archive, progress).await;
    if job.is_canceled() {
        return Err(Error::Canceled);
    }
    let exported = exported?;
    job.add_result("digest", Fact::Text(exported.manifest.to_string()));
    job.add_result("bytes", Fact::Number(exported.bytes.0));
    Ok(())
}

async fn make_image(
    shared: &Shared,
    job: &JobHandle,
    request: ImportImage,
    kernel: Option<KernelId>,
) -> Result<()> {
    let id = ImageId::random();
    let _worker = job.acquire_worker().await?;
    job.stage("import", format!("copying {}", request.name));
    let progress = job.progress("import");
    let ports = &shared.ports;
    let (content, config) = match request.content {
        ImportSource::Rootfs(file) => (Content::File(file), ImageConfig::default()),
        ImportSource::Layout(file, parts) => {
            let Layout { image, layers } = ports.image_files.layout(request.owner, file, &parts).await?;
            (Content::Layers(layers), image.config)
        }
    };
    let facts = ports.image_files.import(id, request.owner, content, progress).await?;
    // Shared images count against nobody's quota.
    let limit = shared.settings.limits.image_disk;
    if !request.shared
        && let Err(error) = shared.inventory.claim(request.owner, &request.name, facts.disk_usage, limit)
    {
        ports.image_files.remove(id).await?;
        return Err(error);
    }
    deduplicate(shared, id, request.owner, &facts).await?;
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
    let committed = if job.is_canceled() {
        Err(Error::Canceled)
    } else {
        shared.ports.store.put_image(&image).await.map_err(Error::from)
    };
    if let Err(error) = committed {
        shared.ports.image_files.remove(id).await?;
        return Err(error);
    }
    shared.inventory.add_image(image);
    job.add_object(Object::Image(id));
    Ok(())
}

/// Makes a new image share the file of one with the same digest, if its owner may read that one anyway. An importer
/// chooses the digest, and so it must not give access to another user's image.
async fn deduplicate(shared: &Shared, id: ImageId, owner: Uid, facts: &ImageFacts) -> Result<()> {
    let is_same = |image: &ImageView| {
        (image.owner == owner || image.shared)
            && (&image.facts.digest, image.facts.virtual_size) == (&facts.digest, facts.virtual_size)
    };
    // Held so that the other image is not removed meanwhile.
    let _locked = shared.image_lock.lock().await;
    let Some(twin) = shared.inventory.images().into_iter().find(|image| is_same(image)) else {
        return Ok(());
    };
    shared.ports.image_files.remove(id).await?;
    Ok(shared.ports.image_files.share(id, twin.id).await?)
}

async fn make_kernel(shared: &Shared, job: &JobHandle, request: ImportKernel) -> Result<()> {
    let id = KernelId::random();
    let _worker = job.acquire_worker().await?;
    job.stage("import", format!("extracting {}", request.name));
    let files = &shared.ports.kernel_files;
    let facts = files.import(id, request.owner, request.vmlinuz, request.modules).await?;
    let kernel = Kernel {
        id,
        name: request.name,
        owner: request.owner,
        shared: request.shared,
        source: "file".to_owned(),
        created_at: now(&*shared.ports.clock),
        facts,
    };
    let committed = if job.is_canceled() {
        Err(Error::Canceled)
    } else {
        shared.ports.store.put_kernel(&kernel).await.map_err(Error::from)
    };
    if let Err(error) = committed {
        shared.ports.kernel_files.remove(id).await?;
        return Err(error);
    }
    shared.inventory.add_kernel(kernel);
    job.add_object(Object::Kernel(id));
    Ok(())
}
