//! Import workers as plain processes, which build their own jail.

use std::{
    collections::HashMap,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{Child, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use banger_domain::{id::ImageId, resource::Paths};
use banger_jail::jail::Jail;

use super::worker::{self, End, Job, Workers};
use crate::{
    host::{blocking::blocking, programs},
    ports::{FromHost as _, HostError, host_error::Result, supervisor::Ended},
};

/// The uids of workers: the end of the range from which [`super::supervisor_process`] takes those of sandboxes. No
/// worker outlives the service, so the service knows which are free.
const USERS: std::ops::RangeInclusive<u32> = 65_264..=65_519;

/// Killed before any sandbox.
const OOM_SCORE: u16 = 800;
/// How long the kernel may take to end a killed worker.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to check whether a worker that is about to end has ended.
const POLL: Duration = Duration::from_millis(5);

/// Workers of this service.
pub struct ProcessWorkers {
    paths: Paths,
    state: Mutex<State>,
}

/// The running workers, and their uids.
#[derive(Default)]
struct State {
    running: HashMap<ImageId, (Child, u32)>,
    /// Workers that were killed and have not ended yet.
    stuck: Vec<(Child, u32)>,
}

impl ProcessWorkers {
    /// Returns workers that run the programs below these paths.
    pub fn new(paths: Paths) -> Self {
        Self { paths, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Workers for ProcessWorkers {
    async fn start(&self, job: Job, socket: OwnedFd) -> Result<Option<Jail>> {
        let root = worker::make_jail(&self.paths)?;
        let mut state = self.lock();
        state.stuck.retain_mut(|(child, _)| matches!(child.try_wait(), Ok(None)));
        let is_free = |user: &u32| {
            let mut taken = state.running.values().chain(&state.stuck);
            !taken.any(|(_, taken)| taken == user) && uzers::get_user_by_uid(*user).is_none()
        };
        let user = USERS.clone().find(is_free);
        let user = user.ok_or_else(|| HostError::not_ready("all user ids for imports are in use"))?;
        let child = programs::start(&programs::worker(&self.paths), socket)?;
        state.running.insert(job.id, (child, user));
        Ok(Some(Jail {
            root,
            // Its program and libraries are loaded before the jail is built.
            visible: Vec::new(),
            devices: Vec::new(),
            user,
            groups: Vec::new(),
            directory: None,
            keeps_network: false,
            oom_score: OOM_SCORE,
        }))
    }

    async fn end(&self, image: ImageId, end: End) -> Result<Ended> {
        let ended = self.lock().running.remove(&image);
        let Some((mut child, user)) = ended else { return Ok(Ended::Unknown) };
        let waited = blocking("end an import worker", move || {
            let os = |error| HostError::os("wait for an import worker", error);
            let ended = match end {
                End::ByItself => wait(&mut child, worker::GRACE).map_err(os)?,
                End::Killed => None,
            };
            if let Some(status) = ended {
                return Ok((child, Some(status)));
            }
            // It may have ended by itself.
            let _ = child.kill();
            let ended = wait(&mut child, KILL_TIMEOUT).map_err(os)?;
            Ok((child, ended))
        });
        let status = match waited.await? {
            (_, Some(status)) => status,
            (child, None) => {
                // The kernel waits for a file system that does not answer. The uid stays taken until then.
                self.lock().stuck.push((child, user));
                return Err(HostError::timeout("ending an import worker", KILL_TIMEOUT));
            }
        };
        Ok(match (status.code(), status.signal()) {
            (Some(0), _) => Ended::Clean,
            (Some(status), _) => Ended::Failed(format!("exited:{status}")),
            (_, Some(signal)) => Ended::Failed(format!("killed:{signal}")),
            (None, None) => Ended::Unknown,
        })
    }
}

/// Waits for the end of a worker, for at most `timeout`.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        match child.try_wait()? {
            None if Instant::now() < deadline => std::thread::sleep(POLL),
            ended => return Ok(ended),
        }
    }
}
