//! Follows a job of the service until it has ended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use banger_proto::bus::{ErrorName, names::JOB_INTERFACE, proxy::Facts};
use futures_util::StreamExt;
use tokio::task::JoinHandle;
use zbus::{MessageStream, OwnedObjectPath, message::Type};

use crate::{
    client::bus::Bus,
    error::{Error, Result},
    ui::{
        progress::Track,
        signals::{Listener, next_event},
    },
};

/// More stages than any job has before a follower registers.
const MAX_EARLY_STAGES: usize = 16;

/// The stages of all jobs of a connection. Create it before a job starts, or stages are missed.
#[derive(Debug)]
pub struct Jobs {
    followers: Arc<Mutex<HashMap<OwnedObjectPath, Follower>>>,
    reader: JoinHandle<()>,
}

#[derive(Debug)]
enum Follower {
    /// No progress is shown yet: the stages seen so far, with their messages.
    Missing(Vec<(String, String)>),
    /// Its progress is shown.
    Track(Arc<Track>),
}

impl Jobs {
    /// Starts to listen for stages.
    pub fn of(bus: &Bus) -> Self {
        let followers = Arc::default();
        let reader = tokio::spawn(read(bus.messages(), Arc::clone(&followers)));
        Self { followers, reader }
    }

    /// Waits until a job has ended, and shows its stages. The first signal cancels the job, the second one detaches
    /// from it.
    pub async fn finish(
        &self,
        bus: &Bus,
        job: &OwnedObjectPath,
        track: Track,
        listener: &mut Listener,
    ) -> Result<Facts> {
        let track = Arc::new(track);
        let before = self.lock().insert(job.clone(), Follower::Track(Arc::clone(&track)));
        if let Some(Follower::Missing(stages)) = before {
            for (stage, message) in stages {
                track.stage(&stage, &message);
            }
        }
        let ended = wait(bus, job, &track, listener).await;
        self.lock().remove(job);
        let ended = ended?;
        match ended.result.as_str() {
            "done" => Ok(ended.data),
            _ => Err(Error::named(&ended.error_name, ended.error_message)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<OwnedObjectPath, Follower>> {
        // No panic under the lock can leave the table inconsistent.
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn wait(
    bus: &Bus,
    job: &OwnedObjectPath,
    track: &Track,
    listener: &mut Listener,
) -> Result<crate::client::service::JobResult> {
    let ended = bus.wait_job(job);
    tokio::pin!(ended);
    let mut canceled_by = None;
    loop {
        let event = tokio::select! {
            ended = &mut ended => {
                return match (ended, canceled_by) {
                    // The user knows, having cancelled it.
                    (Ok(ended), Some(signal)) if ended.error_name == ErrorName::Canceled.as_str() => {
                        Err(Error::Interrupted { signal })
                    }
                    (ended, _) => ended,
                };
            }
            event = next_event(listener) => event,
        };
        let Some(signal) = event.ends() else { continue };
        if canceled_by.replace(signal).is_some() {
            return Err(Error::Detached { signal });
        }
        track.stage("cancel", "cancelling; press Ctrl-C again to detach");
        match bus.cancel_job(job).await {
            Err(error) if error.name() == Some(ErrorName::NotCancelable) => {
                track.stage("cancel", "it can no longer be cancelled; press Ctrl-C again to detach");
            }
            // It has ended meanwhile, and `Wait` returns the result.
            Ok(()) | Err(_) => {}
        }
    }
}

async fn read(mut messages: MessageStream, followers: Arc<Mutex<HashMap<OwnedObjectPath, Follower>>>) {
    while let Some(message) = messages.next().await {
        let Ok(message) = message else { continue };
        if let Some((job, done, total)) = bytes_of(&message) {
            if let Some(Follower::Track(track)) =
                followers.lock().unwrap_or_else(PoisonError::into_inner).get(&job)
            {
                track.bytes(done, total);
            }
            continue;
        }
        let Some((job, stage, text)) = stage_of(&message) else { continue };
        let mut followers = followers.lock().unwrap_or_else(PoisonError::into_inner);
        match followers.entry(job).or_insert_with(|| Follower::Missing(Vec::new())) {
            Follower::Track(track) => track.stage(&stage, &text),
            Follower::Missing(stages) if stages.len() < MAX_EARLY_STAGES => stages.push((stage, text)),
            Follower::Missing(_) => {}
        }
    }
}

/// Returns the job of a signal about its progress, with the bytes done and the total, as far as they have changed.
fn bytes_of(message: &zbus::Message) -> Option<(OwnedObjectPath, Option<u64>, Option<u64>)> {
    let header = message.header();
    let is_change = message.message_type() == Type::Signal
        && header.interface().is_some_and(|name| name.as_str() == "org.freedesktop.DBus.Properties")
        && header.member().is_some_and(|name| name.as_str() == "PropertiesChanged");
    if !is_change {
        return None;
    }
    let body = message.body();
    let (interface, changed, _): (String, Facts, Vec<String>) = body.deserialize().ok()?;
    let number = |name: &str| changed.get(name).and_then(|value| u64::try_from(value.clone()).ok());
    let (done, total) = (number("BytesDone"), number("BytesTotal"));
    let job = header.path()?.to_owned().into();
    (interface == JOB_INTERFACE && (done.is_some() || total.is_some())).then_some((job, done, total))
}

/// Returns the job, stage and message of a `Stage` signal.
fn stage_of(message: &zbus::Message) -> Option<(OwnedObjectPath, String, String)> {
    let header = message.header();
    let is_stage = message.message_type() == Type::Signal
        && header.interface().is_some_and(|name| name.as_str() == JOB_INTERFACE)
        && header.member().is_some_and(|name| name.as_str() == "Stage");
    if !is_stage {
        return None;
    }
    let job = header.path()?.to_owned().into();
    let (stage, _, _, text): (String, u32, u32, String) = message.body().deserialize().ok()?;
    Some((job, stage, text))
}
