//! Images of the system disks of sandboxes.
//!
//! The disk is copied as it is, by a worker: a guest wrote it, and only the kernel of a guest ever mounts it. What the
//! image says about its programs is what the sandbox's own image says, with the changes of the request. Its labels name
//! the image that the sandbox was made of, with the keys of the OCI image specification.

use std::sync::Arc;

use banger_domain::{
    id::{ImageId, JobId},
    launch_spec::Drive,
    vm::Vm,
};
use banger_image::{
    oci::config::{ConfigChange, ImageConfig},
    record::Image,
};
use tokio::sync::watch;

use super::{
    Shared,
    error::{Error, Kind, Result},
    image::deduplicate,
    inventory::no_such,
    job::{JobHandle, Stages},
    now,
    pipeline::{Order, Quota, RequestedBy, Reserved, commit, reserve},
    request::{CommitVm, OnConflict},
    view::{ImageView, JobKind, Object},
};
use crate::ports::image_files::Content;

const COMMIT: Stages = &["commit"];
/// What `Source` says.
const SOURCE: &str = "commit";
/// Annotations of the OCI image specification, as labels.
const BASE_NAME: &str = "org.opencontainers.image.base.name";
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";

/// A commit whose image has a name, and which has not started yet. Dropping it releases the name.
pub(in crate::engine) struct ReservedCommit {
    reserved: Reserved,
    plan: Plan,
}

struct Plan {
    vm: Vm,
    request: CommitVm,
    base: Arc<ImageView>,
    config: ImageConfig,
    /// The image that it replaces.
    old: Option<ImageId>,
}

/// Checks a commit, and reserves the name of its image.
pub(in crate::engine) fn reserve_commit(
    shared: &Arc<Shared>,
    vm: Vm,
    mut request: CommitVm,
) -> Result<ReservedCommit> {
    let base = shared.inventory.item::<Image>(vm.image);
    let base = base.ok_or_else(|| no_such(Kind::Image, &vm.image.to_string()))?;
    let change = of_base(&base, std::mem::take(&mut request.config));
    let config = base.config.clone().changed(change);
    let config = config
        .map_err(|unusable| Error::InvalidOption { why: format!("the image cannot be made: {unusable}") })?;
    let old = shared.inventory.own::<Image>(request.owner, &request.name);
    // Whether a shared image stays is for an administrator to decide.
    let old = old.filter(|old| request.on_conflict == OnConflict::Replace && !old.shared);
    if let Some(old) = &old {
        shared.inventory.check_unused(&**old)?;
    }
    let old = old.map(|old| old.id);
    let order = Order::<Image> {
        owner: request.owner,
        name: request.name.clone(),
        replaces: old,
        kind: JobKind::ImageCommit,
        stages: COMMIT,
        requested_by: RequestedBy::User,
    };
    let reserved = reserve(shared, order)?.about(Object::Vm(vm.id));
    Ok(ReservedCommit { reserved, plan: Plan { vm, request, base, config, old } })
}

impl ReservedCommit {
    /// Starts the job. `reading` is dropped when it no longer reads the disk, and before it ends.
    pub(in crate::engine) fn run(self, disk: Drive, reading: watch::Sender<()>) -> JobId {
        let Self { reserved, plan } = self;
        reserved.run_holding(reading, move |shared, job| Box::pin(run(shared, job, plan, disk)))
    }
}

async fn run(shared: &Shared, job: &JobHandle, plan: Plan, disk: Drive) -> Result<()> {
    let Plan { vm, request, base, config, old } = plan;
    let id = ImageId::random();
    let _worker = job.acquire_worker().await?;
    job.stage("commit", format!("copying the system disk of {}", vm.name));
    let progress = job.progress("commit");
    let quota = Quota { owner: request.owner, name: &request.name, shared: false };
    let content = Content::Disk { drive: disk, room: quota.room(shared) };
    let copied = shared.ports.image_files.import(id, request.owner, content, progress).await;
    let facts = match copied {
        Err(_) if job.is_canceled() => return Err(Error::Canceled),
        copied => copied?,
    };
    quota.claim_created(shared, id, facts.disk_usage).await?;
    let facts = deduplicate(shared, id, request.owner, facts).await?;
    let image = Image {
        id,
        name: request.name,
        owner: request.owner,
        shared: false,
        source: SOURCE.to_owned(),
        kernel: base.kernel,
        created_at: now(&*shared.ports.clock),
        facts,
        origin: None,
        config,
    };
    let old = old.and_then(|old| shared.inventory.item::<Image>(old));
    commit(shared, job, &image, old.as_deref()).await?;
    job.add_object(Object::Image(id));
    Ok(())
}

/// Adds the labels that name the base. They are the service's, whatever the request says.
fn of_base(base: &Image, mut change: ConfigChange) -> ConfigChange {
    let (name, digest) = match &base.origin {
        Some(origin) => (origin.reference.to_string(), origin.manifest.to_string()),
        None => (base.name.to_string(), base.facts.digest.clone()),
    };
    change.labels.extend([(BASE_NAME.to_owned(), name), (BASE_DIGEST.to_owned(), digest)]);
    change
}
