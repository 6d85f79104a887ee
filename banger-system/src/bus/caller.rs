//! The callers: who they are, how many requests they have, and what happens when they disconnect.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use banger_domain::{id::Uid, vm::Lifetime};
use banger_proto::bus::ErrorName;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use zbus::{
    Connection,
    fdo::DBusProxy,
    message::{Flags, Header},
    names::{BusName, UniqueName},
};

use super::{
    api::Api,
    error::{Error, Result},
};
use crate::ports::authority::Interaction;

/// How long a polkit answer about seeing other users' objects is cached. A client reads many properties in a row, and
/// polkit should be asked once.
const REMEMBERED: Duration = Duration::from_secs(5);

/// The caller of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The unique name of the connection.
    pub connection: String,
    /// The user, as attested by the bus.
    pub uid: Uid,
    /// Whether the caller may be asked to authenticate.
    pub interaction: Interaction,
}

/// Kinds of requests that are limited for each user. The bus of some distributions has no such limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// A call that is being served.
    Call,
    /// A call that only waits for a job.
    Wait,
    /// A call that opens a stream, and may wait until one is free.
    Stream,
    /// A call that inspects the host, or asks polkit several times.
    Inspect,
    /// A log that is being read, which outlasts the call.
    Log,
    /// Metrics that are being read, which outlasts the call.
    Metrics,
    /// A password dialog.
    Prompt,
}

impl RequestKind {
    const fn bound(self) -> usize {
        match self {
            RequestKind::Call => 32,
            RequestKind::Wait => 256,
            RequestKind::Stream => 128,
            RequestKind::Inspect => 4,
            RequestKind::Log => 16,
            RequestKind::Metrics => 4,
            RequestKind::Prompt => 4,
        }
    }

    /// Returns the word in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            RequestKind::Call => "call",
            RequestKind::Wait => "wait",
            RequestKind::Stream => "stream",
            RequestKind::Inspect => "inspect",
            RequestKind::Log => "log",
            RequestKind::Metrics => "metrics",
            RequestKind::Prompt => "prompt",
        }
    }

    /// Returns the noun for the error about the limit.
    const fn noun(self) -> &'static str {
        match self {
            RequestKind::Log => "logs open; close one",
            RequestKind::Metrics => "sets of metrics open; close one",
            _ => "requests under way; try again",
        }
    }
}

/// The connected callers.
pub struct Callers {
    bus: DBusProxy<'static>,
    bus_id: String,
    known: Mutex<HashMap<String, KnownCaller>>,
    permits: Mutex<HashMap<(Uid, RequestKind), Arc<Semaphore>>>,
}

/// What is known about a connection. Dropped when it disconnects.
#[derive(Default)]
struct KnownCaller {
    uid: Option<Uid>,
    /// Whether it may see other users' objects, and when polkit said so.
    sees_others: Option<(bool, Instant)>,
    /// Closes when the connection goes away.
    presence: watch::Sender<()>,
}

impl Callers {
    pub async fn new(connection: &Connection) -> zbus::Result<Self> {
        let bus = DBusProxy::new(connection).await?;
        let bus_id = bus.get_id().await?.to_string();
        Ok(Self { bus, bus_id, known: Mutex::default(), permits: Mutex::default() })
    }

    /// Returns the sender of a message. The bus vouches for the connection and its user.
    pub async fn of(&self, header: &Header<'_>) -> Result<Caller> {
        let denied = |why: &str| Error::new(ErrorName::AccessDenied, why);
        let sender = header.sender().ok_or_else(|| denied("the call has no sender"))?;
        let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let interaction = if interactive { Interaction::Allowed } else { Interaction::Forbidden };
        let connection = sender.to_string();
        // Recorded before the bus is asked, so that a later disconnect is noticed.
        let known = self.lock().entry(connection.clone()).or_default().uid;
        if let Some(uid) = known {
            return Ok(Caller { connection, uid, interaction });
        }
        let uid = self.bus.get_connection_unix_user(BusName::Unique(sender.clone())).await;
        let mut all = self.lock();
        match (uid, all.get_mut(&connection)) {
            (Ok(uid), Some(known)) => {
                known.uid = Some(Uid(uid));
                Ok(Caller { connection, uid: Uid(uid), interaction })
            }
            (uid, _) => {
                all.remove(&connection);
                let why = match uid {
                    // It disconnected while the bus was asked.
                    Ok(_) | Err(zbus::fdo::Error::NameHasNoOwner(_)) => {
                        return Err(denied("the caller has disconnected"));
                    }
                    Err(error) => error,
                };
                Err(Error::new(ErrorName::HostNotReady, format!("cannot ask the bus who you are: {why}")))
            }
        }
    }

    /// Returns a permit for a request of this kind, which counts until it is dropped.
    pub fn acquire(&self, uid: Uid, kind: RequestKind) -> Result<OwnedSemaphorePermit> {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = kind.bound();
        let of_user = permits.entry((uid, kind)).or_insert_with(|| Arc::new(Semaphore::new(bound)));
        Arc::clone(of_user)
            .try_acquire_owned()
            .map_err(|_| Error::new(ErrorName::TooManyRequests, format!("you have {bound} {}", kind.noun())))
    }

    /// Returns how many requests of each kind a user has open. Kinds without any are left out.
    pub fn under_way(&self) -> Vec<(Uid, RequestKind, usize)> {
        let permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let used = permits.iter().map(|((uid, kind), semaphore)| {
            (*uid, *kind, kind.bound().saturating_sub(semaphore.available_permits()))
        });
        used.filter(|(.., count)| *count > 0).collect()
    }

    /// Returns whether a connection that has called is still connected.
    pub fn is_connected(&self, connection: &str) -> bool {
        self.lock().contains_key(connection)
    }

    /// Resolves when the connection is gone.
    pub async fn disconnected(&self, connection: &str) {
        let presence = self.lock().get(connection).map(|known| known.presence.subscribe());
        if let Some(mut presence) = presence {
            while presence.changed().await.is_ok() {}
        }
    }

    /// Returns whether a connection may see other users' objects, if the answer is cached.
    pub fn sees_others(&self, connection: &str) -> Option<bool> {
        let (verdict, since) = self.lock().get(connection)?.sees_others?;
        (since.elapsed() < REMEMBERED).then_some(verdict)
    }

    /// Caches whether a connection may see other users' objects.
    pub fn remember(&self, connection: &str, sees_others: bool) {
        if let Some(known) = self.lock().get_mut(connection) {
            known.sees_others = Some((sees_others, Instant::now()));
        }
    }

    /// Returns the id of this bus. Unique names are unique only on one bus.
    pub fn bus_id(&self) -> &str {
        &self.bus_id
    }

    fn forget(&self, connection: &str) {
        self.lock().remove(connection);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, KnownCaller>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches for disconnects: forgets what was kept of the connection, and tells the engine, which deletes the
/// sandboxes bound to it.
pub async fn watch_connections(api: Arc<Api>) -> zbus::Result<impl Future<Output = ()> + Send + 'static> {
    let mut changes = api.callers.bus.receive_name_owner_changed().await?;
    Ok(async move {
        while let Some(change) = changes.next().await {
            let Ok(change) = change.args() else { continue };
            let BusName::Unique(name) = &change.name else { continue };
            if change.new_owner.is_none() {
                // Forgotten first, so that a call which binds a sandbox to it after this finds it gone.
                api.callers.forget(name);
                api.subscribers.forget(name);
                api.engine.client_disconnected(name, api.callers.bus_id()).await;
            }
        }
    })
}

/// Deletes the sandboxes whose callers disconnected while the service was down.
pub async fn end_vms_of_gone_callers(api: &Api) -> zbus::Result<()> {
    for view in api.engine.vms() {
        let Lifetime::Caller { connection, bus } = &view.vm.lifetime else { continue };
        let is_connected = bus == api.callers.bus_id()
            && match UniqueName::try_from(connection.as_str()) {
                Ok(name) => api.callers.bus.name_has_owner(BusName::Unique(name)).await?,
                Err(_) => false,
            };
        if !is_connected {
            api.engine.client_disconnected(connection, bus).await;
        }
    }
    Ok(())
}
