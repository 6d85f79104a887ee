//! Images and kernels: importing them and removing them.

use std::sync::Arc;

use tracing::Instrument;

use super::{
    Engine, Shared,
    error::{Error, Kind, Result},
    job::{JobHandle, Stages},
    now,
    request::{ImportImage, ImportKernel},
    view::{JobKind, Object},
};
use crate::{
    domain::{
        id::{ImageId, JobId, KernelId},
        image::{Image, Kernel},
        oci::config::ImageConfig,
    },
    ports::images::Content,
};

const IMPORT: Stages = &["import"];

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
        let job = shared.jobs.begin(JobKind::ImageImport, request.owner, Vec::new(), IMPORT);
        let id = job.id();
        tokio::spawn(async move {
            let (owner, name) = (request.owner, request.name.clone());
            let result = make_image(&shared, &job, request, kernel).instrument(job.span()).await;
            shared.registry.unreserve(Kind::Image, owner, &name);
            job.finish(result);
        });
        Ok(id)
    }

    /// Removes an image that no machine uses.
    pub async fn delete_image(&self, id: ImageId) -> Result<()> {
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
        let job = shared.jobs.begin(JobKind::KernelImport, request.owner, Vec::new(), IMPORT);
        let id = job.id();
        tokio::spawn(async move {
            let (owner, name) = (request.owner, request.name.clone());
            let result = make_kernel(&shared, &job, request).instrument(job.span()).await;
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

async fn make_image(
    shared: &Shared,
    job: &JobHandle,
    request: ImportImage,
    kernel: Option<KernelId>,
) -> Result<()> {
    let id = ImageId::random();
    job.stage("import", format!("copying {}", request.name));
    let progress = job.progress("import");
    let facts = shared.ports.image_files.import(id, Content::File(request.rootfs), progress).await?;
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
        config: ImageConfig::default(),
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

async fn make_kernel(shared: &Shared, job: &JobHandle, request: ImportKernel) -> Result<()> {
    let id = KernelId::random();
    job.stage("import", format!("extracting {}", request.name));
    let facts = shared.ports.kernel_files.import(id, request.vmlinuz, request.modules).await?;
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
