//! The steps that every import and every pull has: reserve a name, run as a job, count against the quota, commit.

use std::{panic::AssertUnwindSafe, sync::Arc};

use banger_domain::{
    id::{ImageId, JobId, Uid},
    name::Name,
};
use banger_image::{
    oci::RemoteImage,
    record::{Image, ImageFacts},
};
use banger_proto::size::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tracing::Instrument;

use super::{
    Shared,
    error::{Error, Kind, Result, one_line},
    item::Stored,
    job::{JobHandle, Stages},
    problems::Subject,
    single_flight::{LockedPulls, PullRequest, RunningPull},
    view::{Fact, JobKind, Object},
};
use crate::tasks::message_of;

/// Who requested a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestedBy {
    /// A user. The job is queued.
    User,
    /// A running job. In the queue, the new job would wait for that one to end.
    Job,
}

/// What will be created, and the job that creates it.
pub(super) struct Order<I: Stored> {
    pub(super) owner: Uid,
    pub(super) name: Name,
    /// The object of this name that it replaces.
    pub(super) replaces: Option<I::Id>,
    pub(super) kind: JobKind,
    pub(super) stages: Stages,
    pub(super) requested_by: RequestedBy,
}

/// A job whose name is reserved, and which has not started yet. Dropping it releases the name and cancels the job.
pub(super) struct Reserved {
    shared: Arc<Shared>,
    job: JobHandle,
    name: ReservedName,
    /// What a job that panics may leave.
    orphans: Subject,
    pull: Option<RunningPull>,
}

/// A name that nothing else gets. Dropping it releases the name.
pub(super) struct ReservedName {
    shared: Arc<Shared>,
    kind: Kind,
    owner: Uid,
    name: Name,
}

impl Drop for ReservedName {
    fn drop(&mut self) {
        self.shared.inventory.cancel_reservation(self.kind, self.owner, &self.name);
    }
}

/// Reserves the name and begins the job. Fails if the name is taken, if the owner has too many objects of this kind,
/// or too many jobs.
pub(super) fn reserve<I: Stored>(shared: &Arc<Shared>, order: Order<I>) -> Result<Reserved> {
    let Order { owner, name, replaces, kind, stages, requested_by } = order;
    let name = reserve_name::<I>(shared, owner, name, replaces)?;
    let job = match requested_by {
        RequestedBy::User => shared.jobs.begin(kind, owner, Vec::new(), stages)?,
        RequestedBy::Job => shared.jobs.begin_internal(kind, owner, Vec::new(), stages),
    };
    Ok(Reserved { shared: Arc::clone(shared), job, name, orphans: I::ORPHANS, pull: None })
}

/// Reserves a name. Fails if the name is taken, or if the owner has too many objects of this kind.
pub(super) fn reserve_name<I: Stored>(
    shared: &Arc<Shared>,
    owner: Uid,
    name: Name,
    replaces: Option<I::Id>,
) -> Result<ReservedName> {
    shared.inventory.reserve::<I>(owner, &name, shared.settings.limits.images, replaces)?;
    Ok(ReservedName { shared: Arc::clone(shared), kind: I::KIND, owner, name })
}

impl Reserved {
    /// Makes identical requests return this job until it ends, and unlocks the table of running pulls.
    pub(super) fn shared_by(mut self, pulls: LockedPulls<'_>, request: PullRequest) -> Self {
        let ReservedName { kind, owner, name, .. } = &self.name;
        self.pull = Some(pulls.add(&self.shared, (*kind, *owner, name.clone()), request, self.job.id()));
        self
    }

    /// Makes the job one of an existing object, too.
    pub(super) fn about(self, object: Object) -> Self {
        self.job.add_object(object);
        self
    }

    /// Starts the job. The name is free again before the job ends.
    pub(super) fn run<W>(self, work: W) -> JobId
    where
        W: for<'a> FnOnce(&'a Arc<Shared>, &'a JobHandle) -> BoxFuture<'a, Result<()>> + Send + 'static,
    {
        self.run_holding((), work)
    }

    /// Does the same, and drops something else with the name.
    pub(super) fn run_holding<W>(self, more: impl Send + 'static, work: W) -> JobId
    where
        W: for<'a> FnOnce(&'a Arc<Shared>, &'a JobHandle) -> BoxFuture<'a, Result<()>> + Send + 'static,
    {
        let Self { shared, job, name, orphans, pull } = self;
        spawn(shared, job, (name, pull, more), Some(orphans), work)
    }
}

/// Runs a job that creates nothing in the library, once it is its turn.
pub(super) fn run_job<W>(shared: Arc<Shared>, job: JobHandle, work: W) -> JobId
where
    W: for<'a> FnOnce(&'a Arc<Shared>, &'a JobHandle) -> BoxFuture<'a, Result<()>> + Send + 'static,
{
    spawn(shared, job, (), None, work)
}

/// Runs a job in a task of its own. What it holds is dropped before the job ends. A job that panics fails, and recovery
/// looks for what it has left.
fn spawn<W>(
    shared: Arc<Shared>,
    mut job: JobHandle,
    held: impl Send + 'static,
    orphans: Option<Subject>,
    work: W,
) -> JobId
where
    W: for<'a> FnOnce(&'a Arc<Shared>, &'a JobHandle) -> BoxFuture<'a, Result<()>> + Send + 'static,
{
    let id = job.id();
    tokio::spawn(async move {
        let span = job.span();
        let work = async {
            job.wait_turn().await?;
            work(&shared, &job).await
        };
        let result = match AssertUnwindSafe(work.instrument(span.clone())).catch_unwind().await {
            Ok(result) => result,
            Err(panic) => {
                let message = message_of(&*panic);
                span.in_scope(|| tracing::error!(panic = message, "the work of a job has panicked"));
                if let Some(orphans) = orphans {
                    shared.problems.set(orphans, &Error::Bug);
                }
                Err(Error::Bug)
            }
        };
        drop(held);
        job.finish(result);
    });
    id
}

/// Awaits work that is safe to drop, unless the job is cancelled first.
pub(super) async fn unless_canceled<T>(job: &JobHandle, work: impl Future<Output = T>) -> Result<T> {
    tokio::select! {
        biased;
        _ = job.canceled() => Err(Error::Canceled),
        done = work => Ok(done),
    }
}

/// The quota that an image counts against while it is being created. Shared images count for nobody.
pub(super) struct Quota<'a> {
    pub(super) owner: Uid,
    /// The reserved name.
    pub(super) name: &'a Name,
    pub(super) shared: bool,
}

impl Quota<'_> {
    /// Counts the image with this size, instead of an earlier one.
    pub(super) fn claim(&self, shared: &Shared, bytes: Bytes) -> Result<()> {
        match self.shared {
            true => Ok(()),
            false => shared.inventory.claim(self.owner, self.name, bytes, shared.settings.limits.image_disk),
        }
    }

    /// Counts the image as one that shares an existing file, unless a private image of the owner has this file.
    pub(super) fn claim_shared(&self, shared: &Shared, facts: &ImageFacts) -> Result<()> {
        let counts =
            |image: &Arc<Image>| image.owner == self.owner && !image.shared && image.facts.file == facts.file;
        match shared.inventory.all::<Image>().iter().any(counts) {
            true => Ok(()),
            false => self.claim(shared, facts.disk_usage),
        }
    }

    /// Returns how large the image may become.
    pub(super) fn room(&self, shared: &Shared) -> Bytes {
        shared.inventory.room_for(self.owner, self.name, shared.settings.limits.image_disk)
    }

    /// Counts an image whose files exist, and removes them if it does not fit.
    pub(super) async fn claim_created(&self, shared: &Shared, id: ImageId, bytes: Bytes) -> Result<()> {
        if let Err(error) = self.claim(shared, bytes) {
            let _ = discard::<Image>(shared, id).await;
            return Err(error);
        }
        Ok(())
    }
}

/// Stores and publishes an object whose files exist, in place of an older one if there is one. On failure, or if the
/// job is cancelled, its files are removed.
pub(super) async fn commit<I: Stored>(
    shared: &Shared,
    job: &JobHandle,
    item: &I,
    old: Option<&I>,
) -> Result<()> {
    let committed = if job.is_canceled() { Err(Error::Canceled) } else { publish(shared, item, old).await };
    if let Err(error) = committed {
        let _ = discard::<I>(shared, item.id()).await;
        return Err(error);
    }
    Ok(())
}

/// Removes the files of an object that has no row, or none any more. A failure is logged and becomes a problem, so
/// that recovery tries again: the caller may ignore it.
pub(super) async fn discard<I: Stored>(shared: &Shared, id: I::Id) -> Result<()> {
    let removed = I::remove_files(&shared.ports, id).await;
    if let Err(error) = &removed {
        tracing::error!(%id, kind = ?I::KIND, error = %one_line(error), "cannot remove files of the library");
        shared.problems.set(I::files(id), error);
    }
    removed
}

async fn publish<I: Stored>(shared: &Shared, item: &I, old: Option<&I>) -> Result<()> {
    let store = &*shared.ports.store;
    let _locked = match old {
        Some(_) => Some(shared.library.lock.lock().await),
        None => None,
    };
    // An object that was renamed or deleted meanwhile is no longer replaced.
    let now = old.and_then(|old| shared.inventory.item::<I>(old.id()));
    let Some(old) = now.filter(|now| now.name() == item.name()) else {
        item.put_row(store, None).await?;
        shared.inventory.add(item.clone());
        return Ok(());
    };
    // Whether a shared object stays is for an administrator to decide, who has not been asked about this one.
    if old.is_shared() && !item.is_shared() {
        return Err(Error::NameTaken { kind: I::KIND, name: item.name().to_string() });
    }
    let taken = shared.inventory.remove_unused::<I>(old.id())?;
    if let Err(error) = item.put_row(store, Some(old.id())).await {
        shared.inventory.add(I::clone(&taken));
        return Err(error.into());
    }
    shared.inventory.add(item.clone());
    // The new object is in place.
    let _ = discard::<I>(shared, old.id()).await;
    Ok(())
}

/// Reports what was assumed about an image, or left out.
pub(super) fn report_notes(job: &JobHandle, image: &RemoteImage) {
    if !image.notes.is_empty() {
        job.add_result("notes", Fact::Text(image.notes.join("\n")));
    }
}

/// Reports what a pull has created or found.
pub(super) fn report<I: Stored>(job: &JobHandle, item: &I) {
    job.add_object(I::object(item.id()));
    for (key, fact) in item.pull_facts() {
        job.add_result(key, fact);
    }
}

/// Renames an object.
pub(super) async fn rename<I: Stored>(shared: &Shared, id: I::Id, name: &Name) -> Result<()> {
    let _locked = shared.library.lock.lock().await;
    let (old, new) = shared.inventory.rename::<I>(id, name)?;
    if let Err(error) = new.put_row(&*shared.ports.store, None).await {
        // If the owner has given the old name away by now, it keeps the new one until the service restarts.
        if let Err(error) = shared.inventory.rename::<I>(id, old.name()) {
            tracing::error!(%id, %error, "an object of the library differs from its row in the database");
        }
        return Err(error.into());
    }
    Ok(())
}

/// Deletes an object that nothing uses. It is gone once it has no row, even if this fails to remove its files.
pub(super) async fn delete<I: Stored>(shared: &Shared, id: I::Id) -> Result<()> {
    let _locked = shared.library.lock.lock().await;
    let taken = shared.inventory.remove_unused::<I>(id)?;
    if let Err(error) = I::delete_row(&*shared.ports.store, id).await {
        // It has a row, so it needs its files: recovery removes those of objects that the inventory lacks.
        shared.inventory.add(I::clone(&taken));
        return Err(error.into());
    }
    discard::<I>(shared, id).await
}
