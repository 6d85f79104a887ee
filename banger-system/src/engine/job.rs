//! Jobs: work that takes longer than a D-Bus call, with stages and a result. A job can be cancelled.
//!
//! Every job counts against a limit of its user before it does anything ([`Admission`]):
//!
//! - A job that loads the host (pull, import, export) is queued: some jobs of each user run, some more wait, and the
//!   rest is refused. Its heavy part waits a second time, for one of the host's workers ([`JobHandle::acquire_worker`]).
//! - A job of a VM begins at once, because the VM's task must not wait. The quota of running VMs bounds the load, and so
//!   only the number of jobs is limited.
//! - A job that frees resources has a limit that nobody reaches in practice.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use banger_domain::{
    fair_queue::{Bounds, Full},
    id::{JobId, Timestamp, Uid},
    limits::{Exceeded, Limits, check_requests},
};
use banger_proto::size::Bytes;
use tokio::{sync::watch, task::AbortHandle};
use tracing::field;

use super::{
    counts::Counts,
    error::{Error, Kind, Result, one_line},
    events::EventSender,
    now,
    queue::{Queue, Ticket},
    view::{Event, Fact, JobKind, JobView, Object, Outcome},
};
use crate::ports::{Progress, clock::Clock};

/// How long the result of an ended job can be read.
const KEEP_FINISHED: Duration = Duration::from_secs(300);
/// How many ended jobs of one user are kept. A client that waits for a job gets its result anyway.
const KEEP_PER_USER: usize = 64;
/// How many jobs that stop or delete sandboxes one user may have: more than there can be sandboxes.
const MAX_ENDING: usize = 128;
/// The noun in errors about limits.
const JOBS: &str = "jobs";
/// Minimum time between two reports of bytes.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// All jobs that run or have ended recently.
#[derive(Clone)]
pub(super) struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: Mutex<HashMap<JobId, Entry>>,
    /// Jobs that wait until fewer jobs of their user run.
    line: Queue,
    /// Work that waits for one of the host's workers.
    workers: Queue,
    /// How many jobs a user may have, including waiting ones.
    jobs_per_user: usize,
    events: EventSender,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
}

struct Entry {
    view: watch::Sender<Arc<JobView>>,
    cancel: watch::Sender<bool>,
    /// The number of its ticket, while it is queued.
    ticket: Option<u64>,
    /// The task that forgets the job some time after its end.
    expiry: Option<AbortHandle>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(expiry) = &self.expiry {
            expiry.abort();
        }
    }
}

/// How jobs of a kind are limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It loads the host, and waits in the queue.
    Queued,
    /// It begins at once, and counts against a limit.
    Vm,
    /// It frees resources, and is practically never refused.
    Ending,
}

impl JobKind {
    pub(super) const fn admission(self) -> Admission {
        match self {
            JobKind::ImageImport
            | JobKind::ImagePull
            | JobKind::ImageCommit
            | JobKind::ImageExport
            | JobKind::KernelImport
            | JobKind::KernelPull
            | JobKind::CatalogRefresh
            | JobKind::CachePrune => Admission::Queued,
            JobKind::VmCreate
            | JobKind::VmFork
            | JobKind::VmSnapshot
            | JobKind::VmRestore
            | JobKind::VmStart
            | JobKind::VmSuspend
            | JobKind::VmResume
            | JobKind::VmRestart => Admission::Vm,
            JobKind::VmStop | JobKind::VmDelete => Admission::Ending,
        }
    }
}

/// The stages of a job, in order.
pub(super) type Stages = &'static [&'static str];

impl Jobs {
    pub(super) fn new(
        events: EventSender,
        clock: Arc<dyn Clock>,
        counts: Arc<Counts>,
        limits: &Limits,
    ) -> Self {
        let line = Bounds {
            slots: usize::MAX,
            slots_per_user: limits.jobs_running as usize,
            waiting_per_user: limits.jobs_queued as usize,
        };
        Self {
            inner: Arc::new(Inner {
                jobs: Mutex::default(),
                line: Queue::new(line),
                workers: Queue::new(Bounds::for_workers(limits.workers as usize)),
                jobs_per_user: (limits.jobs_running + limits.jobs_queued) as usize,
                events,
                clock,
                counts,
            }),
        }
    }

    /// Begins a job, which may have to wait for its turn. Fails if its user has too many jobs. A job whose handle is
    /// dropped without a result counts as cancelled.
    pub(super) fn begin(
        &self,
        kind: JobKind,
        owner: Uid,
        objects: Vec<Object>,
        stages: Stages,
    ) -> Result<JobHandle> {
        let jobs = self.lock();
        let ticket = self.admit(&jobs, kind, owner)?;
        Ok(self.open(jobs, kind, owner, objects, stages, ticket))
    }

    /// Begins a job that no user requested, or that a running job needs. It is exempt from limits.
    pub(super) fn begin_internal(
        &self,
        kind: JobKind,
        owner: Uid,
        objects: Vec<Object>,
        stages: Stages,
    ) -> JobHandle {
        self.open(self.lock(), kind, owner, objects, stages, None)
    }

    fn admit(&self, jobs: &HashMap<JobId, Entry>, kind: JobKind, owner: Uid) -> Result<Option<Ticket>> {
        let limit = self.inner.jobs_per_user;
        let admission = kind.admission();
        let running = || {
            let counts = |entry: &&Entry| {
                let view = entry.view.borrow();
                view.owner == owner && view.outcome.is_none() && view.kind.admission() == admission
            };
            jobs.values().filter(counts).count()
        };
        match admission {
            Admission::Queued => {
                let full = |Full| Exceeded::Requests { what: JOBS, limit };
                return Ok(Some(self.inner.line.join(owner).map_err(full)?));
            }
            Admission::Vm => check_requests(JOBS, running() + 1, limit)?,
            Admission::Ending => check_requests(JOBS, running() + 1, MAX_ENDING)?,
        }
        Ok(None)
    }

    fn open(
        &self,
        mut jobs: MutexGuard<'_, HashMap<JobId, Entry>>,
        kind: JobKind,
        owner: Uid,
        objects: Vec<Object>,
        stages: Stages,
        ticket: Option<Ticket>,
    ) -> JobHandle {
        let vm = objects.iter().find_map(|object| match object {
            Object::Vm(vm) => Some(*vm),
            Object::Image(_) | Object::Kernel(_) => None,
        });
        let view = Arc::new(JobView {
            id: JobId::random(),
            kind,
            owner,
            objects,
            stage: "",
            stage_index: 0,
            stage_count: stages.len() as u32,
            message: String::new(),
            bytes_done: Bytes(0),
            bytes_total: Bytes(0),
            facts: Vec::new(),
            started_at: now(&*self.inner.clock),
            finished_at: Timestamp::default(),
            outcome: None,
        });
        let id = view.id;
        let (cancel, canceled) = watch::channel(false);
        let entry = Entry {
            view: watch::channel(Arc::clone(&view)).0,
            cancel,
            ticket: ticket.as_ref().map(Ticket::number),
            expiry: None,
        };
        jobs.insert(id, entry);
        self.send(Event::JobAdded(view));
        drop(jobs);
        // All journal entries of a job have these fields, whatever is logged. Its id is the last element of its D-Bus path.
        let span = tracing::error_span!("job", job = %id, kind = kind.as_str(), %owner, vm = field::Empty);
        if let Some(vm) = vm {
            span.record("vm", field::display(vm));
        }
        span.in_scope(|| tracing::info!("started a job"));
        JobHandle { jobs: self.clone(), id, owner, kind, stages, canceled, span, ticket, finished: false }
    }

    /// Lets a queued job begin at once, because a running one needs it.
    pub(super) fn promote(&self, id: JobId) {
        let ticket = self.lock().get(&id).and_then(|entry| Some((entry.view.borrow().owner, entry.ticket?)));
        if let Some((owner, number)) = ticket {
            self.inner.line.promote(owner, number);
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<JobView>> {
        self.lock().values().map(|entry| Arc::clone(&entry.view.borrow())).collect()
    }

    pub(super) fn get(&self, id: JobId) -> Option<Arc<JobView>> {
        self.lock().get(&id).map(|entry| Arc::clone(&entry.view.borrow()))
    }

    /// Cancels a job.
    pub(super) fn cancel(&self, id: JobId) -> Result<()> {
        let jobs = self.lock();
        let entry = jobs.get(&id).ok_or_else(|| no_such_job(id))?;
        if entry.view.borrow().outcome.is_some() {
            return Err(Error::NotCancelable);
        }
        entry.cancel.send_replace(true);
        Ok(())
    }

    /// Waits until a job has ended, or until the timeout; then its view has no outcome.
    pub(super) async fn wait(&self, id: JobId, timeout: Option<Duration>) -> Result<Arc<JobView>> {
        let mut views =
            self.lock().get(&id).map(|entry| entry.view.subscribe()).ok_or_else(|| no_such_job(id))?;
        let ended =
            async { views.wait_for(|view| view.outcome.is_some()).await.map(|view| Arc::clone(&view)) };
        let waited = match timeout {
            None => Ok(ended.await),
            Some(timeout) => tokio::time::timeout(timeout, ended).await,
        };
        match waited {
            Ok(ended) => ended.map_err(|_| no_such_job(id)),
            Err(_) => self.get(id).ok_or_else(|| no_such_job(id)),
        }
    }

    fn update(&self, id: JobId, change: impl FnOnce(&mut JobView)) {
        let jobs = self.lock();
        let Some(entry) = jobs.get(&id) else { return };
        let old = Arc::clone(&entry.view.borrow());
        let mut new = JobView::clone(&old);
        change(&mut new);
        let new = Arc::new(new);
        entry.view.send_replace(Arc::clone(&new));
        self.send(Event::JobChanged { old, new });
    }

    fn forget(&self, id: JobId) {
        if let Some(entry) = self.lock().remove(&id) {
            self.send(Event::JobRemoved(Arc::clone(&entry.view.borrow())));
        }
    }

    /// Schedules the removal of an ended job, and removes the oldest ones if its user has many.
    fn forget_later(&self, id: JobId, owner: Uid) {
        // Without a runtime the service is shutting down, and nobody will read the result.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let all = self.clone();
        let expiry = runtime.spawn(async move {
            tokio::time::sleep(KEEP_FINISHED).await;
            all.forget(id);
        });
        let mut jobs = self.lock();
        if let Some(entry) = jobs.get_mut(&id) {
            entry.expiry = Some(expiry.abort_handle());
        }
        let mut ended: Vec<(Timestamp, JobId)> = jobs
            .iter()
            .filter(|(other, _)| **other != id)
            .map(|(id, entry)| (*id, entry.view.borrow()))
            .filter(|(_, view)| view.owner == owner && view.outcome.is_some())
            .map(|(id, view)| (view.finished_at, id))
            .collect();
        drop(jobs);
        ended.sort_unstable();
        let too_many = (ended.len() + 1).saturating_sub(KEEP_PER_USER);
        for (_, id) in ended.into_iter().take(too_many) {
            self.forget(id);
        }
    }

    fn send(&self, event: Event) {
        self.inner.events.send(event);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Entry>> {
        self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_such_job(id: JobId) -> Error {
    Error::NoSuch { kind: Kind::Job, reference: id.to_string() }
}

/// A job, for the code that does its work.
pub(super) struct JobHandle {
    jobs: Jobs,
    id: JobId,
    owner: Uid,
    kind: JobKind,
    stages: Stages,
    canceled: watch::Receiver<bool>,
    span: tracing::Span,
    /// Its slot among the jobs of its user.
    ticket: Option<Ticket>,
    finished: bool,
}

impl JobHandle {
    pub(super) fn id(&self) -> JobId {
        self.id
    }

    /// Waits for the job's turn. Must be called before any work.
    pub(super) async fn wait_turn(&mut self) -> Result<()> {
        let canceled = self.canceled();
        let Some(ticket) = &mut self.ticket else { return Ok(()) };
        tokio::select! {
            biased;
            _ = canceled => Err(Error::Canceled),
            () = ticket.turn() => Ok(()),
        }
    }

    /// Waits for one of the host's workers, which the job has until the ticket is dropped.
    pub(super) async fn acquire_worker(&self) -> Result<Ticket> {
        // Running jobs are bounded, and so is this queue.
        let mut ticket = self.jobs.inner.workers.join(self.owner).map_err(|_| Error::Canceled)?;
        if ticket.is_waiting() {
            self.jobs.update(self.id, |view| {
                "waiting for other jobs on this host to finish".clone_into(&mut view.message);
            });
        }
        tokio::select! {
            biased;
            _ = self.canceled() => Err(Error::Canceled),
            () = ticket.turn() => Ok(ticket),
        }
    }

    /// Returns the span for all work of the job.
    pub(super) fn span(&self) -> tracing::Span {
        self.span.clone()
    }

    /// Begins a stage.
    pub(super) fn stage(&self, stage: &'static str, message: impl Into<String>) {
        let index = self.stages.iter().position(|known| *known == stage).map_or(0, |i| i as u32 + 1);
        let message = message.into();
        self.span.in_scope(|| tracing::debug!(stage, "{message}"));
        self.jobs.update(self.id, |view| {
            view.stage = stage;
            view.stage_index = index;
            view.message = message;
            (view.bytes_done, view.bytes_total) = (Bytes(0), Bytes(0));
        });
    }

    /// Returns a receiver for the progress of a stage. Reports are ignored while the job is at another stage.
    pub(super) fn progress(&self, stage: &'static str) -> Arc<dyn Progress> {
        let (jobs, canceled) = (self.jobs.clone(), self.canceled.clone());
        Arc::new(ProgressReporter { jobs, id: self.id, stage, canceled, last_report: Mutex::default() })
    }

    /// Adds a fact to the result.
    pub(super) fn add_result(&self, key: &'static str, fact: Fact) {
        self.jobs.update(self.id, |view| view.facts.push((key, fact)));
    }

    /// Adds an object that the job concerns.
    pub(super) fn add_object(&self, object: Object) {
        self.jobs.update(self.id, |view| view.objects.push(object));
    }

    pub(super) fn is_canceled(&self) -> bool {
        *self.canceled.borrow()
    }

    /// Resolves when the job is cancelled; never, if it ends first.
    pub(super) fn canceled(&self) -> impl Future<Output = JobId> + Send + 'static {
        let (id, mut canceled) = (self.id, self.canceled.clone());
        async move {
            if canceled.wait_for(|canceled| *canceled).await.is_err() {
                std::future::pending::<()>().await;
            }
            id
        }
    }

    pub(super) fn finish(mut self, result: Result<()>) {
        self.end(match result {
            Ok(()) => Outcome::Done,
            Err(Error::Canceled) => Outcome::Canceled,
            Err(error) => Outcome::Failed(Arc::new(error)),
        });
    }

    /// Fails the job with an error that other jobs share.
    pub(super) fn fail_shared(mut self, error: &Arc<Error>) {
        self.end(Outcome::Failed(Arc::clone(error)));
    }

    fn end(&mut self, outcome: Outcome) {
        self.finished = true;
        self.span.in_scope(|| match &outcome {
            Outcome::Done => tracing::info!("finished a job"),
            Outcome::Canceled => tracing::info!("canceled a job"),
            Outcome::Failed(error) => tracing::warn!(error = %one_line(&**error), "a job failed"),
        });
        self.jobs.inner.counts.job(self.owner, self.kind, &outcome);
        let finished_at = now(&*self.jobs.inner.clock);
        self.jobs.update(self.id, |view| {
            view.outcome = Some(outcome);
            view.finished_at = finished_at;
        });
        self.ticket = None;
        self.jobs.forget_later(self.id, self.owner);
    }
}

/// Reports the progress of a stage, at limited rate: each report costs a signal to every subscriber.
struct ProgressReporter {
    jobs: Jobs,
    id: JobId,
    stage: &'static str,
    canceled: watch::Receiver<bool>,
    last_report: Mutex<Option<Instant>>,
}

impl Progress for ProgressReporter {
    fn advanced(&self, done: Bytes, total: Option<Bytes>) {
        let mut last_report = self.last_report.lock().unwrap_or_else(PoisonError::into_inner);
        if last_report.is_some_and(|last_report| last_report.elapsed() < REPORT_INTERVAL) {
            return;
        }
        *last_report = Some(Instant::now());
        let total = total.unwrap_or_default();
        let changes =
            |view: &JobView| view.stage == self.stage && (view.bytes_done, view.bytes_total) != (done, total);
        if self.jobs.get(self.id).is_some_and(|view| changes(&view)) {
            self.jobs.update(self.id, |view| (view.bytes_done, view.bytes_total) = (done, total));
        }
    }

    fn is_canceled(&self) -> bool {
        *self.canceled.borrow()
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Outcome::Canceled);
        }
    }
}
