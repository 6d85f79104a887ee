//! Kernels: imports from a user's files, deletion.

use banger_domain::{
    id::{JobId, KernelId},
    name::Name,
};
use banger_image::record::Kernel;

use super::{
    Engine, Shared,
    error::Result,
    job::{JobHandle, Stages},
    now,
    pipeline::{self, Order, RequestedBy, commit, reserve},
    request::ImportKernel,
    view::{JobKind, Object},
};

const IMPORT: Stages = &["import"];

impl Engine {
    /// Starts to import a kernel from a user's files.
    pub fn import_kernel(&self, request: ImportKernel) -> Result<JobId> {
        let order = Order::<Kernel> {
            owner: request.owner,
            name: request.name.clone(),
            replaces: None,
            kind: JobKind::KernelImport,
            stages: IMPORT,
            requested_by: RequestedBy::User,
        };
        let reserved = reserve(&self.shared, order)?;
        Ok(reserved.run(move |shared, job| Box::pin(import(shared, job, request))))
    }

    /// Renames a kernel.
    pub async fn rename_kernel(&self, id: KernelId, name: &Name) -> Result<()> {
        pipeline::rename::<Kernel>(&self.shared, id, name).await
    }

    /// Deletes a kernel that no VM and no image uses.
    pub async fn delete_kernel(&self, id: KernelId) -> Result<()> {
        pipeline::delete::<Kernel>(&self.shared, id).await
    }
}

async fn import(shared: &Shared, job: &JobHandle, request: ImportKernel) -> Result<()> {
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
    commit(shared, job, &kernel, None).await?;
    job.add_object(Object::Kernel(id));
    Ok(())
}
