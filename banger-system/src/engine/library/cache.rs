//! The cache of registries, and credentials for them.

use std::{os::fd::OwnedFd, sync::Arc};

use banger_domain::id::{JobId, Uid};
use banger_image::oci::credentials::Credentials;

use super::{
    Engine, Shared,
    error::Result,
    job::{JobHandle, Stages},
    pipeline::run_job,
    view::{Fact, JobKind},
};
use crate::ports::registry::Prune;

const PRUNE: Stages = &["prune"];

impl Engine {
    /// Reads credentials from a client's file.
    pub fn read_credentials(&self, file: OwnedFd) -> Result<Credentials> {
        Ok(self.shared.ports.registry.credentials(file)?)
    }

    /// Starts to prune the cache of registries.
    pub fn prune_cache(&self, owner: Uid, prune: Prune) -> Result<JobId> {
        let shared = Arc::clone(&self.shared);
        let job = shared.jobs.begin(JobKind::CachePrune, owner, Vec::new(), PRUNE)?;
        Ok(run_job(shared, job, move |shared, job| Box::pin(run(shared, job, prune))))
    }
}

async fn run(shared: &Shared, job: &JobHandle, prune: Prune) -> Result<()> {
    job.stage("prune", "looking for unused layers".to_owned());
    let pruned = shared.ports.registry.prune(prune).await?;
    job.add_result("blobs", Fact::Number(pruned.blobs));
    job.add_result("bytes", Fact::Number(pruned.bytes.0));
    Ok(())
}
