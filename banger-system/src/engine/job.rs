//! Jobs: what takes longer than a call, with stages, a result, and a way to give it up.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use banger_proto::size::Bytes;
use tokio::sync::{mpsc, watch};

use super::{
    error::{Error, Kind, Result, one_line},
    now,
    view::{Event, Fact, JobKind, JobView, Object, Outcome},
};
use crate::{
    domain::id::{JobId, Timestamp, Uid},
    ports::{Clock, images::Progress},
};

/// How long the result of a job that has ended can be read.
const KEEP_FINISHED: Duration = Duration::from_secs(300);
/// How often progress in bytes is told at most.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// All jobs that are under way or have ended lately.
#[derive(Clone)]
pub(super) struct Board {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: Mutex<HashMap<JobId, Entry>>,
    events: mpsc::UnboundedSender<Event>,
    clock: Arc<dyn Clock>,
}

struct Entry {
    view: watch::Sender<Arc<JobView>>,
    cancel: watch::Sender<bool>,
}

/// The stages that a job goes through, in their order.
pub(super) type Stages = &'static [&'static str];

impl Board {
    pub(super) fn new(events: mpsc::UnboundedSender<Event>, clock: Arc<dyn Clock>) -> Self {
        Self { inner: Arc::new(Inner { jobs: Mutex::default(), events, clock }) }
    }

    /// Begins a job. It fails when the handle is dropped before it was finished.
    pub(super) fn begin(&self, kind: JobKind, owner: Uid, objects: Vec<Object>, stages: Stages) -> JobHandle {
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
        let mut jobs = self.lock();
        jobs.insert(id, Entry { view: watch::channel(Arc::clone(&view)).0, cancel });
        self.send(Event::JobAdded(view));
        drop(jobs);
        // The journal's entries of one operation share its id, which is the last element of the job's path.
        let span = tracing::info_span!("job", operation = %id, kind = kind.as_str(), %owner);
        span.in_scope(|| tracing::info!("a job begins"));
        JobHandle { board: self.clone(), id, stages, canceled, span, finished: false }
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

    /// Waits until a job has ended, at most so long; the view has no outcome when it goes on.
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
    stages: Stages,
    canceled: watch::Receiver<bool>,
    span: tracing::Span,
    finished: bool,
}

impl JobHandle {
    pub(super) fn id(&self) -> JobId {
        self.id
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

    /// There is something else to tell of the result.
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
            Outcome::Done => tracing::info!("a job is done"),
            Outcome::Canceled => tracing::info!("a job was given up"),
            Outcome::Failed(error) => tracing::warn!(error = %one_line(&**error), "a job failed"),
        });
        let finished_at = now(&*self.board.inner.clock);
        self.board.update(self.id, |view| {
            view.outcome = Some(outcome);
            view.finished_at = finished_at;
        });
        let (board, id) = (self.board.clone(), self.id);
        // Without a runtime the service is ending, and nobody will ask for the result.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(KEEP_FINISHED).await;
                board.forget(id);
            });
        }
    }
}

/// Tells how far a stage is, and not too often: each time costs a signal to every subscriber.
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
