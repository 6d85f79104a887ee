//! Images and kernels: importing them and removing them.

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
    request::{ImportImage, ImportKernel, Original},
    view::{Fact, ImageView, JobKind, Object},
};
use crate::ports::images::{Content, Layout};

const IMPORT: Stages = &["import"];
const EXPORT: Stages = &["export"];

impl Engine {
    /// Begins to make an image of a user's file.
    pub fn import_image(&self, request: ImportImage) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let kernel = match &request.kernel {
            Some(reference) => Some(self.find_kernel(request.owner, reference)?.id),
            None => None,
        };
        shared.registry.reserve(
            Kind::Image,
            request.owner,
            &request.name,
            shared.settings.limits.images,
            None,
        )?;
        let (owner, name) = (request.owner, request.name.clone());
        let job = shared.jobs.begin(JobKind::ImageImport, owner, Vec::new(), IMPORT);
        let mut job = job.inspect_err(|_| shared.registry.unreserve(Kind::Image, owner, &name))?;
        let id = job.id();
        tokio::spawn(async move {
            let result = match job.turn().await {
                Ok(()) => make_image(&shared, &job, request, kernel).instrument(job.span()).await,
                Err(error) => Err(error),
            };
            shared.registry.unreserve(Kind::Image, owner, &name);
            job.finish(result);
        });
        Ok(id)
    }

    /// Lets every user see an image, or its owner alone.
    pub async fn share_image(&self, id: ImageId, shared: bool) -> Result<()> {
        let _turn = self.shared.library.lock().await;
        let registry = &self.shared.registry;
        let limit = self.shared.settings.limits.image_disk;
        let image = registry.share_image(id, shared, limit)?;
        if let Err(error) = self.shared.ports.store.put_image(&image).await {
            // If another user uses it already, it stays shared until the service starts the next time.
            if let Err(error) = registry.share_image(id, !shared, limit) {
                tracing::error!(image = %id, %error, "an image differs from what the database says");
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Begins to write an image into an empty file of a user's, in the form of an OCI image in files.
    pub fn export_image(&self, caller: Uid, id: ImageId, archive: OwnedFd) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let none = || Error::NoSuch { kind: Kind::Image, reference: id.to_string() };
        let image = self.image(id).ok_or_else(none)?;
        let mut job = shared.jobs.begin(JobKind::ImageExport, caller, vec![Object::Image(id)], EXPORT)?;
        let job_id = job.id();
        tokio::spawn(async move {
            let result = match job.turn().await {
                Ok(()) => write_image(&shared, &job, caller, &image, archive).instrument(job.span()).await,
                Err(error) => Err(error),
            };
            job.finish(result);
        });
        Ok(job_id)
    }

    /// Removes an image that no machine uses.
    pub async fn delete_image(&self, id: ImageId) -> Result<()> {
        let _turn = self.shared.library.lock().await;
        self.shared.registry.take_image(id)?;
        self.shared.ports.store.delete_image(id).await?;
        Ok(self.shared.ports.image_files.remove(id).await?)
    }

    /// Begins to make a kernel of a user's files.
    pub fn import_kernel(&self, request: ImportKernel) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        shared.registry.reserve(
            Kind::Kernel,
            request.owner,
            &request.name,
            shared.settings.limits.images,
            None,
        )?;
        let (owner, name) = (request.owner, request.name.clone());
        let job = shared.jobs.begin(JobKind::KernelImport, owner, Vec::new(), IMPORT);
        let mut job = job.inspect_err(|_| shared.registry.unreserve(Kind::Kernel, owner, &name))?;
        let id = job.id();
        tokio::spawn(async move {
            let result = match job.turn().await {
                Ok(()) => make_kernel(&shared, &job, request).instrument(job.span()).await,
                Err(error) => Err(error),
            };
            shared.registry.unreserve(Kind::Kernel, owner, &name);
            job.finish(result);
        });
        Ok(id)
    }

    /// Removes a kernel that no machine and no image uses.
    pub async fn delete_kernel(&self, id: KernelId) -> Result<()> {
        self.shared.registry.take_kernel(id)?;
        self.shared.ports.store.delete_kernel(id).await?;
        Ok(self.shared.ports.kernel_files.remove(id).await?)
    }
}

/// Has an image written into a file of a user's.
async fn write_image(
    shared: &Shared,
    job: &JobHandle,
    caller: Uid,
    image: &ImageView,
    archive: OwnedFd,
) -> Result<()> {
    let _worker = job.worker().await?;
    job.stage("export", format!("writing {}", image.name));
    let (files, progress) = (&shared.ports.image_files, job.progress("export"));
    let exported = files.export(image.id, caller, image.config.clone(), archive, progress).await;
    if job.is_canceled() {
        return Err(Error::Canceled);
    }
    let exported = exported?;
    job.tell("digest", Fact::Text(exported.manifest.to_string()));
    job.tell("bytes", Fact::Number(exported.bytes.0));
    Ok(())
}

async fn make_image(
    shared: &Shared,
    job: &JobHandle,
    request: ImportImage,
    kernel: Option<KernelId>,
) -> Result<()> {
    let id = ImageId::random();
    let _worker = job.worker().await?;
    job.stage("import", format!("copying {}", request.name));
    let progress = job.progress("import");
    let ports = &shared.ports;
    let (content, config) = match request.content {
        Original::Rootfs(file) => (Content::File(file), ImageConfig::default()),
        Original::Layout(file, parts) => {
            let Layout { image, layers } = ports.image_files.layout(request.owner, file, &parts).await?;
            (Content::Layers(layers), image.config)
        }
    };
    let facts = ports.image_files.import(id, request.owner, content, progress).await?;
    // What every user sees counts for nobody.
    let limit = shared.settings.limits.image_disk;
    if !request.shared
        && let Err(error) = shared.registry.claim(request.owner, &request.name, facts.disk_usage, limit)
    {
        ports.image_files.remove(id).await?;
        return Err(error);
    }
    store_once(shared, id, request.owner, &facts).await?;
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
    let kept = if job.is_canceled() {
        Err(Error::Canceled)
    } else {
        shared.ports.store.put_image(&image).await.map_err(Error::from)
    };
    if let Err(error) = kept {
        shared.ports.image_files.remove(id).await?;
        return Err(error);
    }
    shared.registry.add_image(image);
    job.concerns(Object::Image(id));
    Ok(())
}

/// Lets an image that was just made have the file of one with the same digest, if its owner may read that anyway: a
/// digest is what an importer says, and its word must not open what another user has.
async fn store_once(shared: &Shared, id: ImageId, owner: Uid, facts: &ImageFacts) -> Result<()> {
    let is_same = |image: &ImageView| {
        (image.owner == owner || image.shared)
            && (&image.facts.digest, image.facts.virtual_size) == (&facts.digest, facts.virtual_size)
    };
    // Until it is done, nobody removes the other one.
    let _turn = shared.library.lock().await;
    let Some(twin) = shared.registry.images().into_iter().find(|image| is_same(image)) else { return Ok(()) };
    shared.ports.image_files.remove(id).await?;
    Ok(shared.ports.image_files.share(id, twin.id).await?)
}

async fn make_kernel(shared: &Shared, job: &JobHandle, request: ImportKernel) -> Result<()> {
    let id = KernelId::random();
    let _worker = job.worker().await?;
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
    let kept = if job.is_canceled() {
        Err(Error::Canceled)
    } else {
        shared.ports.store.put_kernel(&kernel).await.map_err(Error::from)
    };
    if let Err(error) = kept {
        shared.ports.kernel_files.remove(id).await?;
        return Err(error);
    }
    shared.registry.add_kernel(kernel);
    job.concerns(Object::Kernel(id));
    Ok(())
}
