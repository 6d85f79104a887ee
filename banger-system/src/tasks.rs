//! The long-lived tasks of the service.
//!
//! The service works only while all of them do: without its publisher, clients miss every signal; without the
//! task of a sandbox, nobody notices its end. So a task that ends although it should not, or that panics, ends the
//! service with a reason. systemd starts it again, and recovery brings everything back; sandboxes keep running.
//!
//! A task may also be stuck: it holds its thread, and never returns to the runtime. So each is asked for a sign of life
//! before the service feeds its watchdog ([`Tasks::check`]). The answer comes from the task itself, between two steps of
//! its work.
//!
//! [`Task`] lists them all. Work that ends by itself (a job, a call, a client that reads a log) is not among them.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use banger_domain::id::VmId;
use futures_util::FutureExt;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

/// A long-lived task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Starts the sandboxes that start when the host boots. It ends then.
    Autostart,
    /// Notices callers that disconnect.
    Connections,
    /// Announces what restricted guests were denied.
    Egress,
    /// Keeps the clocks of guests right.
    GuestClocks,
    /// Watches the host's network for changes by others.
    HostNetwork,
    /// Looks at the sandboxes that have an idle policy.
    Idle,
    /// Notices writes to the logs that somebody follows.
    LogChanges,
    /// Computes the DNS names of sandboxes.
    Names,
    /// Serves DNS names, and configures the host's resolver.
    NameServer,
    /// Carries messages to and from the kernel's network configuration.
    Netlink,
    /// Sends signals.
    Publisher,
    /// Tries again what recovery or the end of a sandbox could not do.
    Recovery,
    /// Serves one sandbox. It ends with the sandbox.
    Vm(VmId),
    /// Wakes suspended sandboxes that are used.
    Wake,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Task::Autostart => "autostart",
            Task::Connections => "connections",
            Task::Egress => "egress",
            Task::GuestClocks => "guest clocks",
            Task::HostNetwork => "host network",
            Task::Idle => "idle sandboxes",
            Task::LogChanges => "log changes",
            Task::Names => "names",
            Task::NameServer => "name server",
            Task::Netlink => "netlink",
            Task::Publisher => "publisher",
            Task::Recovery => "recovery",
            Task::Wake => "wake",
            Task::Vm(vm) => return write!(f, "sandbox {vm}"),
        };
        f.write_str(name)
    }
}

/// The unexpected end of a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It returned.
    #[error("the task \"{0}\" has ended")]
    Returned(Task),
    /// It panicked.
    #[error("the task \"{0}\" has panicked: {1}")]
    Panicked(Task, String),
}

/// The running tasks. Clones share them.
#[derive(Clone, Default)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    running: Mutex<Running>,
    /// The number of the latest check.
    round: watch::Sender<u64>,
    /// Notified when a task has answered a check.
    answered: Notify,
    ended: watch::Sender<Option<Ended>>,
}

#[derive(Default)]
struct Running {
    last: u64,
    tasks: BTreeMap<u64, RunningTask>,
}

struct RunningTask {
    task: Task,
    /// The number of the latest check that it has answered.
    answer: Arc<AtomicU64>,
    abort: Option<AbortHandle>,
}

impl Tasks {
    /// Starts a task that runs as long as the service.
    pub fn spawn(&self, task: Task, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.start(task, work, true)
    }

    /// Starts a task that may end, but must not panic.
    pub fn spawn_finite(&self, task: Task, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.start(task, work, false)
    }

    /// Resolves when a task has ended that should not. An aborted task has not.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.inner.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|ended| ended.clone()) {
            Ok(Some(ended)) => ended,
            // The sender lives in `self`.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Asks every task for a sign of life. Returns those that do not answer in time.
    pub async fn check(&self, timeout: Duration) -> Result<(), Vec<Task>> {
        let mut round = 0;
        self.inner.round.send_modify(|number| {
            *number += 1;
            round = *number;
        });
        let answers = async {
            loop {
                let answered = self.inner.answered.notified();
                if self.inner.silent(round).is_empty() {
                    return;
                }
                answered.await;
            }
        };
        match tokio::time::timeout(timeout, answers).await {
            Ok(()) => Ok(()),
            Err(_) => match self.inner.silent(round) {
                silent if silent.is_empty() => Ok(()),
                silent => Err(silent),
            },
        }
    }

    /// Aborts all tasks between two of their steps, as a crash does, and waits until they are gone. For tests.
    pub async fn abort_all(&self) {
        loop {
            let answered = self.inner.answered.notified();
            {
                let running = self.inner.lock();
                if running.tasks.is_empty() {
                    return;
                }
                running
                    .tasks
                    .values()
                    .filter_map(|running| running.abort.as_ref())
                    .for_each(AbortHandle::abort);
            }
            answered.await;
        }
    }

    fn start(
        &self,
        task: Task,
        work: impl Future<Output = ()> + Send + 'static,
        is_lasting: bool,
    ) -> AbortHandle {
        let rounds = self.inner.round.subscribe();
        let (entry, answer) = Entry::add(&self.inner, task, *rounds.borrow());
        let (inner, number) = (Arc::clone(&self.inner), entry.number);
        // Each future that takes the work as a value would have room for a copy of it, and that of a sandbox is large.
        let work = Box::pin(work);
        let run = async move {
            let _entry = entry;
            let work = answering(work, rounds, &answer, &inner.answered);
            let ended = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(()) if is_lasting => Ended::Returned(task),
                Ok(()) => return,
                Err(panic) => Ended::Panicked(task, message_of(&*panic)),
            };
            tracing::error!(%task, error = %ended, "a task has ended");
            // The first one counts: others may follow from it.
            inner.ended.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert(ended);
                is_first
            });
        };
        let abort = tokio::spawn(run).abort_handle();
        if let Some(running) = self.inner.lock().tasks.get_mut(&number) {
            running.abort = Some(abort.clone());
        }
        abort
    }
}

/// Does the work, and answers checks between its steps.
async fn answering(
    mut work: Pin<Box<dyn Future<Output = ()> + Send>>,
    mut rounds: watch::Receiver<u64>,
    answer: &AtomicU64,
    answered: &Notify,
) {
    loop {
        tokio::select! {
            // The answer comes first: work that uses up its budget of tokio leaves none for the question.
            biased;
            Ok(()) = rounds.changed() => {
                answer.store(*rounds.borrow_and_update(), Ordering::Release);
                answered.notify_waiters();
            }
            () = &mut work => return,
        }
    }
}

/// A task's entry among the running ones, until it ends in whatever way.
struct Entry {
    inner: Arc<Inner>,
    number: u64,
}

impl Entry {
    fn add(inner: &Arc<Inner>, task: Task, round: u64) -> (Self, Arc<AtomicU64>) {
        let answer = Arc::new(AtomicU64::new(round));
        let mut running = inner.lock();
        running.last += 1;
        let number = running.last;
        running.tasks.insert(number, RunningTask { task, answer: Arc::clone(&answer), abort: None });
        (Self { inner: Arc::clone(inner), number }, answer)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.inner.lock().tasks.remove(&self.number);
        self.inner.answered.notify_waiters();
    }
}

impl Inner {
    /// Returns the tasks that have not answered a check.
    fn silent(&self, round: u64) -> Vec<Task> {
        let running = self.lock();
        let silent = running.tasks.values().filter(|running| running.answer.load(Ordering::Acquire) < round);
        silent.map(|running| running.task).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the message of a panic.
pub fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::future::pending;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(120);

    async fn ended(tasks: &Tasks) -> String {
        tokio::time::timeout(TIMEOUT, tasks.ended()).await.unwrap().to_string()
    }

    #[tokio::test]
    async fn a_task_that_panics_or_returns_is_reported_by_its_name() {
        let tasks = Tasks::default();
        tasks.spawn(Task::Names, async { panic!("no {}", "names") });
        assert_eq!(ended(&tasks).await, "the task \"names\" has panicked: no names");

        let tasks = Tasks::default();
        tasks.spawn(Task::Publisher, async {});
        assert_eq!(ended(&tasks).await, "the task \"publisher\" has ended");
        // A later end does not hide the first.
        tasks.spawn(Task::Names, async { panic!("late") });
        tokio::task::yield_now().await;
        assert_eq!(ended(&tasks).await, "the task \"publisher\" has ended");
    }

    #[tokio::test]
    async fn a_finite_task_may_end_and_not_panic_and_any_may_be_aborted() {
        let tasks = Tasks::default();
        let vm = VmId::from_bits(7);
        tasks.spawn_finite(Task::Vm(vm), async {});
        tasks.spawn(Task::Names, pending()).abort();
        while !tasks.inner.lock().tasks.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(tasks.ended().now_or_never().is_none());
        tasks.spawn_finite(Task::Vm(vm), async { panic!("lost") });
        assert_eq!(ended(&tasks).await, format!("the task \"sandbox {vm}\" has panicked: lost"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_that_holds_its_thread_does_not_answer() {
        let tasks = Tasks::default();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        tasks.spawn(Task::Names, pending());
        assert_eq!(tasks.check(TIMEOUT).await, Ok(()));
        let stuck = async move {
            let _ = begun.send(());
            // As a lock that is never released, or a call that blocks.
            let _ = held.recv_timeout(TIMEOUT);
            pending().await
        };
        tasks.spawn(Task::GuestClocks, stuck);
        has_begun.await.unwrap();
        // Long enough for the others to answer, on a machine that does many other things.
        assert_eq!(tasks.check(Duration::from_secs(3)).await, Err(vec![Task::GuestClocks]));
        drop(release);
        assert_eq!(tasks.check(TIMEOUT).await, Ok(()));
    }

    #[tokio::test]
    async fn a_task_that_always_has_work_answers() {
        let tasks = Tasks::default();
        let busy = async {
            let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
            loop {
                let _ = sender.send(());
                receiver.recv().await;
            }
        };
        tasks.spawn(Task::Publisher, busy);
        tokio::task::yield_now().await;
        assert_eq!(tasks.check(TIMEOUT).await, Ok(()));
    }
}
