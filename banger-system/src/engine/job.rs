//! Jobs: work that takes longer than a call, with stages and a result, and that can be cancelled.
//!
//! Everything that a user can begin is counted before anything is made of it. What loads the host waits in line
//! ([`Admission::Queued`]): so many jobs of one user are under way, so many more wait, and what is beyond is refused.
//! Its heavy part waits a second time, for one of the host's workers ([`JobHandle::worker`]). A job of a machine begins at
//! once, since the machine's task waits for nobody, and what runs is bounded by the machines that a user may have; only
//! the number of jobs is limited. What frees things is limited so high that nobody is kept from it.

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
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use super::{
    error::{Error, Kind, Result, one_line},
    now,
    queue::{Queue, Ticket},
    view::{Event, Fact, JobKind, JobView, Object, Outcome},
};
use crate::ports::{Clock, images::Progress};

/// How long the result of a job that has ended can be read.
const KEEP_FINISHED: Duration = Duration::from_secs(300);
/// How many of these are kept of one user. Who waits for a job has its result in any case.
const KEEP_PER_USER: usize = 64;
/// How many jobs that end machines one user may have under way: more than there can be machines.
const MAX_ENDING: usize = 128;
/// What jobs are called in an error.
const OPERATIONS: &str = "operations";
/// How often progress in bytes is told at most.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// All jobs that are under way or have ended lately.
#[derive(Clone)]
pub(super) struct Board {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: Mutex<HashMap<JobId, Entry>>,
    /// Jobs that wait until their users have fewer under way.
    line: Queue,
    /// Work that waits until the host has fewer workers.
    workers: Queue,
    /// How many jobs a user may have under way, waiting ones included.
    jobs_per_user: usize,
    events: mpsc::UnboundedSender<Event>,
    clock: Arc<dyn Clock>,
}

struct Entry {
    view: watch::Sender<Arc<JobView>>,
    cancel: watch::Sender<bool>,
    /// The number of its ticket.
    ticket: Option<u64>,
    /// Forgets it some time after its end.
    forgets: Option<AbortHandle>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(forgets) = &self.forgets {
            forgets.abort();
        }
    }
}

/// How many jobs of a kind one user may have, and whether they wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It loads the host, and waits in line.
    Queued,
    /// It begins at once, and counts against a limit.
    Machine,
    /// It frees things, and is practically never refused.
    Ending,
}

impl JobKind {
    pub(super) const fn admission(self) -> Admission {
        match self {
            JobKind::ImageImport
            | JobKind::ImagePull
            | JobKind::ImageExport
            | JobKind::KernelImport
            | JobKind::KernelPull
            | JobKind::CatalogRefresh
            | JobKind::CachePrune => Admission::Queued,
            JobKind::VmCreate | JobKind::VmStart | JobKind::VmRestart => Admission::Machine,
            JobKind::VmStop | JobKind::VmDelete => Admission::Ending,
        }
    }
}

/// The stages that a job goes through, in their order.
pub(super) type Stages = &'static [&'static str];

impl Board {
    pub(super) fn new(events: mpsc::UnboundedSender<Event>, clock: Arc<dyn Clock>, limits: &Limits) -> Self {
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
            }),
        }
    }

    /// Begins a job, which may have to wait for its turn. It fails when the handle is dropped before it was finished.
    /// An error means that its user has too many jobs under way.
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

    /// Begins a job that no user has asked for, or that one which is under way needs. It waits for nothing.
    pub(super) fn begin_unasked(
        &self,
        kind: JobKind,
        owner: Uid,
        objects: Vec<Object>,
        stages: Stages,
    ) -> JobHandle {
        self.open(self.lock(), kind, owner, objects, stages, None)
    }

    fn admit(&self, jobs: &HashMap<JobId, Entry>, kind: JobKind, owner: Uid) -> Result<Option<Ticket>> {
        let most = self.inner.jobs_per_user;
        let admission = kind.admission();
        let under_way = || {
            let is_one = |entry: &&Entry| {
                let view = entry.view.borrow();
                view.owner == owner && view.outcome.is_none() && view.kind.admission() == admission
            };
            jobs.values().filter(is_one).count()
        };
        match admission {
            Admission::Queued => {
                let full = |Full| Exceeded::Requests { what: OPERATIONS, limit: most };
                return Ok(Some(self.inner.line.join(owner).map_err(full)?));
            }
            Admission::Machine => check_requests(OPERATIONS, under_way() + 1, most)?,
            Admission::Ending => check_requests(OPERATIONS, under_way() + 1, MAX_ENDING)?,
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
            forgets: None,
        };
        jobs.insert(id, entry);
        self.send(Event::JobAdded(view));
        drop(jobs);
        // The journal's entries of one operation share its id, which is the last element of the job's path.
        let span = tracing::info_span!("job", operation = %id, kind = kind.as_str(), %owner);
        span.in_scope(|| tracing::info!("started a job"));
        JobHandle { board: self.clone(), id, owner, stages, canceled, span, ticket, finished: false }
    }

    /// Lets a job that waits for its turn begin at once, because one that is under way needs it.
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

    /// Asks a job to give up.
    pub(super) fn cancel(&self, id: JobId) -> Result<()> {
        let jobs = self.lock();
        let entry = jobs.get(&id).ok_or_else(|| no_such_job(id))?;
        if entry.view.borrow().outcome.is_some() {
            return Err(Error::NotCancelable);
        }
        entry.cancel.send_replace(true);
        Ok(())
    }

    /// Waits until a job has ended, or the time is over; the view of a job that still runs has no outcome.
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

    /// Forgets the job some time from now, and the oldest ones that have ended where their user has many.
    fn forget_later(&self, id: JobId, owner: Uid) {
        // Without a runtime the service is ending, and nobody will ask for the result.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let board = self.clone();
        let forgets = runtime.spawn(async move {
            tokio::time::sleep(KEEP_FINISHED).await;
            board.forget(id);
        });
        let mut jobs = self.lock();
        if let Some(entry) = jobs.get_mut(&id) {
            entry.forgets = Some(forgets.abort_handle());
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

    /// Nobody listens any more once the service ends; then nobody misses the event either.
    fn send(&self, event: Event) {
        let _ = self.inner.events.send(event);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Entry>> {
        self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_such_job(id: JobId) -> Error {
    Error::NoSuch { kind: Kind::Job, reference: id.to_string() }
}

/// The side of a job that does the work.
pub(super) struct JobHandle {
    board: Board,
    id: JobId,
    owner: Uid,
    stages: Stages,
    canceled: watch::Receiver<bool>,
    span: tracing::Span,
    /// Its place among the jobs of its user.
    ticket: Option<Ticket>,
    finished: bool,
}

impl JobHandle {
    pub(super) fn id(&self) -> JobId {
        self.id
    }

    /// Waits until it is the job's turn. To be called before anything is done for it.
    pub(super) async fn turn(&mut self) -> Result<()> {
        let canceled = self.canceled();
        let Some(ticket) = &mut self.ticket else { return Ok(()) };
        tokio::select! {
            biased;
            _ = canceled => Err(Error::Canceled),
            () = ticket.turn() => Ok(()),
        }
    }

    /// Waits until the host has a worker for the job, which is the job's until this is dropped.
    pub(super) async fn worker(&self) -> Result<Ticket> {
        // The jobs that are under way are bounded, and so is this line.
        let mut ticket = self.board.inner.workers.join(self.owner).map_err(|_| Error::Canceled)?;
        if ticket.waits() {
            self.board.update(self.id, |view| {
                "waiting for other jobs on this host to finish".clone_into(&mut view.message);
            });
        }
        tokio::select! {
            biased;
            _ = self.canceled() => Err(Error::Canceled),
            () = ticket.turn() => Ok(ticket),
        }
    }

    /// What the journal is to know of everything that is done for the job.
    pub(super) fn span(&self) -> tracing::Span {
        self.span.clone()
    }

    /// A stage begins.
    pub(super) fn stage(&self, stage: &'static str, message: impl Into<String>) {
        let index = self.stages.iter().position(|known| *known == stage).map_or(0, |i| i as u32 + 1);
        let message = message.into();
        self.span.in_scope(|| tracing::debug!(stage, "{message}"));
        self.board.update(self.id, |view| {
            view.stage = stage;
            view.stage_index = index;
            view.message = message;
            (view.bytes_done, view.bytes_total) = (Bytes(0), Bytes(0));
        });
    }

    /// Who is told how far a stage is. What comes while the job is at another stage is not heard.
    pub(super) fn progress(&self, stage: &'static str) -> Arc<dyn Progress> {
        let (board, canceled) = (self.board.clone(), self.canceled.clone());
        Arc::new(Meter { board, id: self.id, stage, canceled, told: Mutex::default() })
    }

    /// Adds a fact to the result.
    pub(super) fn tell(&self, key: &'static str, fact: Fact) {
        self.board.update(self.id, |view| view.facts.push((key, fact)));
    }

    /// The job is about one more thing.
    pub(super) fn concerns(&self, object: Object) {
        self.board.update(self.id, |view| view.objects.push(object));
    }

    pub(super) fn is_canceled(&self) -> bool {
        *self.canceled.borrow()
    }

    /// Resolves when somebody gives the job up; never, when it ends before.
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

    /// Several jobs may fail for one reason.
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
        let finished_at = now(&*self.board.inner.clock);
        self.board.update(self.id, |view| {
            view.outcome = Some(outcome);
            view.finished_at = finished_at;
        });
        self.ticket = None;
        self.board.forget_later(self.id, self.owner);
    }
}

/// Reports the progress of a stage, but not too often: each report costs a signal to every subscriber.
struct Meter {
    board: Board,
    id: JobId,
    stage: &'static str,
    canceled: watch::Receiver<bool>,
    told: Mutex<Option<Instant>>,
}

impl Progress for Meter {
    fn advanced(&self, done: Bytes, total: Option<Bytes>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        let total = total.unwrap_or_default();
        let changes =
            |view: &JobView| view.stage == self.stage && (view.bytes_done, view.bytes_total) != (done, total);
        if self.board.get(self.id).is_some_and(|view| changes(&view)) {
            self.board.update(self.id, |view| (view.bytes_done, view.bytes_total) = (done, total));
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
