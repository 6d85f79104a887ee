//! Ends the processes that a thread waits for. A thread cannot be cancelled, but what it waits for can be killed.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    process::Child,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::error::{Error, Result};

thread_local! {
    /// What ends the work of this thread.
    static CURRENT: RefCell<Stop> = RefCell::default();
}

/// Ends the processes of one piece of work.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_stopped: bool,
    running: HashMap<u32, OwnedFd>,
}

/// A process that is killed when its work is stopped.
#[derive(Debug)]
pub struct Killable {
    stop: Stop,
    id: u32,
}

impl Stop {
    /// Runs blocking work, whose processes this ends.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        CURRENT.set(self.clone());
        let done = work();
        CURRENT.take();
        done
    }

    /// Kills the processes that run, and those that are started from now on.
    pub fn stop(&self) {
        let mut state = self.state();
        state.is_stopped = true;
        state.running.iter().for_each(|(id, process)| kill(*id, process));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is complete.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops work whose result is of no use any more.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs blocking work in a thread, whose processes are killed after this time, and if the caller no longer waits. Returns
/// `None` if it took too long.
pub async fn in_time<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let stop = StopOnDrop(Stop::default());
    let theirs = stop.0.clone();
    let mut working = tokio::task::spawn_blocking(move || theirs.during(work));
    match tokio::time::timeout(limit, &mut working).await {
        Ok(done) => done.map(Some).map_err(|error| Error::io("run a thread", io::Error::other(error))),
        Err(_elapsed) => {
            stop.0.stop();
            let _ = working.await;
            Ok(None)
        }
    }
}

/// Runs the part of this thread's work that must not stop half-way: its processes are not killed.
pub fn to_the_end<T>(work: impl FnOnce() -> T) -> T {
    let outer = CURRENT.replace(Stop::default());
    let done = work();
    CURRENT.set(outer);
    done
}

/// Runs a part of this thread's work, whose processes are killed after this time. Returns `None` if that happened.
pub fn within<T>(limit: Duration, work: impl FnOnce() -> T) -> Option<T> {
    let stop = CURRENT.with_borrow(Clone::clone);
    let (done, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let late = scope.spawn(move || {
            let is_late = ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if is_late {
                stop.stop();
            }
            is_late
        });
        let result = work();
        drop(done);
        late.join().is_ok_and(|is_late| !is_late).then_some(result)
    })
}

/// Makes a process of this thread one that is killed when the thread's work is stopped.
pub fn killable(child: &Child) -> Killable {
    let (stop, id) = (CURRENT.with_borrow(Clone::clone), child.id());
    let process = i32::try_from(id).ok().and_then(Pid::from_raw);
    let process = process.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok());
    if let Some(process) = process {
        let mut state = stop.state();
        if state.is_stopped {
            kill(id, &process);
        }
        state.running.insert(id, process);
    }
    Killable { stop, id }
}

/// Kills a process, and those that it has started if it leads a group.
fn kill(id: u32, process: &OwnedFd) {
    // It may have ended by itself.
    if pidfd_send_signal(process, Signal::KILL).is_ok()
        && let Some(group) = i32::try_from(id).ok().and_then(Pid::from_raw)
    {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        self.stop.state().running.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::Read,
        os::unix::process::CommandExt,
        process::{Command, ExitStatus, Stdio},
    };

    use super::*;

    fn run(words: &[&str]) -> ExitStatus {
        let mut child = Command::new(words[0]).args(&words[1..]).spawn().unwrap();
        let _killable = killable(&child);
        child.wait().unwrap()
    }

    fn sleep() -> ExitStatus {
        run(&["sleep", "1000"])
    }

    fn short() -> ExitStatus {
        run(&["sleep", "0.01"])
    }

    #[test]
    fn what_a_leader_of_a_group_has_started_ends_with_it() {
        let stop = Stop::default();
        let theirs = stop.clone();
        let work = thread::spawn(move || {
            theirs.during(|| {
                let mut command = Command::new("sh");
                command.args(["-c", "sleep 1000 & sleep 1000"]).stdout(Stdio::piped()).process_group(0);
                let mut child = command.spawn().unwrap();
                let _killable = killable(&child);
                // The end of the pipe is seen when the last process has ended.
                child.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
                child.wait().unwrap()
            })
        });
        while stop.state().running.is_empty() {
            thread::yield_now();
        }
        stop.stop();
        assert!(!work.join().unwrap().success());
    }

    #[test]
    fn work_that_takes_too_long_is_ended() {
        assert!(within(Duration::from_secs(100), short).unwrap().success());
        let stop = Stop::default();
        assert!(stop.during(|| within(Duration::from_millis(10), sleep)).is_none());
    }

    #[test]
    fn a_process_ends_with_the_work_that_waits_for_it() {
        let stop = Stop::default();
        let theirs = stop.clone();
        let work = thread::spawn(move || theirs.during(|| (sleep(), sleep(), to_the_end(short))));
        while stop.state().running.is_empty() {
            thread::yield_now();
        }
        // Another one is not affected.
        Stop::default().stop();
        stop.stop();
        let (first, second, last) = work.join().unwrap();
        assert!(!first.success() && !second.success() && last.success());
        assert!(stop.state().running.is_empty());
    }
}
