//! Who calls, and what happens when they go.

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
    border::Border,
    error::{Error, Result},
};
use crate::ports::Interaction;

/// How long it is remembered whether a connection may see other people's objects: a client reads many
/// properties in a row, and polkit should be asked once.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The unique name of the connection.
    pub connection: String,
    /// The user, as the bus attests it.
    pub uid: Uid,
    /// Whether the caller may be asked to authenticate.
    pub interaction: Interaction,
}

/// What a user can have several of at once, within bounds. The bus of some distributions has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// A call that is being served.
    Call,
    /// A call that only waits for a job.
    Wait,
    /// A call that opens something, and may wait until there is room for it.
    Stream,
    /// A call that looks at the host, or asks polkit much.
    Look,
    /// A log that is being read, which lasts longer than the call.
    Log,
    /// A question that somebody is to answer with a password.
    Prompt,
}

impl Place {
    const fn bound(self) -> usize {
        match self {
            Place::Call => 32,
            Place::Wait => 256,
            Place::Stream => 128,
            Place::Look => 4,
            Place::Log => 16,
            Place::Prompt => 4,
        }
    }

    /// What there can be no more of.
    const fn noun(self) -> &'static str {
        match self {
            Place::Log => "logs open; close one",
            _ => "requests under way; try again",
        }
    }
}

/// The callers that are connected.
pub struct Callers {
    bus: DBusProxy<'static>,
    bus_id: String,
    known: Mutex<HashMap<String, Known>>,
    places: Mutex<HashMap<(Uid, Place), Arc<Semaphore>>>,
}

/// What is known of a connection that is there. When it goes, so does this.
#[derive(Default)]
struct Known {
    uid: Option<Uid>,
    /// Whether it may see other people's objects, and when that was found out.
    sees_others: Option<(bool, Instant)>,
    /// Closes when the connection goes.
    presence: watch::Sender<()>,
}

impl Callers {
    pub async fn new(connection: &Connection) -> zbus::Result<Self> {
        let bus = DBusProxy::new(connection).await?;
        let bus_id = bus.get_id().await?.to_string();
        Ok(Self { bus, bus_id, known: Mutex::default(), places: Mutex::default() })
    }

    /// Who sent this message. The bus vouches for the connection and for its user.
    pub async fn of(&self, header: &Header<'_>) -> Result<Caller> {
        let denied = |why: &str| Error::new(ErrorName::AccessDenied, why);
        let sender = header.sender().ok_or_else(|| denied("the call has no sender"))?;
        let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let interaction = if interactive { Interaction::Allowed } else { Interaction::Forbidden };
        let connection = sender.to_string();
        // Noted before the bus is asked: what goes after that, is seen to go.
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
                    // It went while the bus was asked.
                    Ok(_) | Err(zbus::fdo::Error::NameHasNoOwner(_)) => {
                        return Err(denied("the caller has gone"));
                    }
                    Err(error) => error,
                };
                Err(Error::new(ErrorName::HostNotReady, format!("cannot ask the bus who you are: {why}")))
            }
        }
    }

    /// A place among those of a user, until it is dropped.
    pub fn place(&self, uid: Uid, place: Place) -> Result<OwnedSemaphorePermit> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = place.bound();
        let of_user = places.entry((uid, place)).or_insert_with(|| Arc::new(Semaphore::new(bound)));
        Arc::clone(of_user)
            .try_acquire_owned()
            .map_err(|_| Error::new(ErrorName::TooManyRequests, format!("you have {bound} {}", place.noun())))
    }

    /// Whether a connection that has called is still there.
    pub fn is_here(&self, connection: &str) -> bool {
        self.lock().contains_key(connection)
    }

    /// Resolves when the connection is gone.
    pub async fn gone(&self, connection: &str) {
        let presence = self.lock().get(connection).map(|known| known.presence.subscribe());
        if let Some(mut presence) = presence {
            while presence.changed().await.is_ok() {}
        }
    }

    /// Whether a connection may see other people's objects, where that is remembered.
    pub fn sees_others(&self, connection: &str) -> Option<bool> {
        let (verdict, since) = self.lock().get(connection)?.sees_others?;
        (since.elapsed() < REMEMBERED).then_some(verdict)
    }

    /// Remembers whether a connection may see other people's objects.
    pub fn remember(&self, connection: &str, sees_others: bool) {
        if let Some(known) = self.lock().get_mut(connection) {
            known.sees_others = Some((sees_others, Instant::now()));
        }
    }

    /// The id of this bus: unique names are unique on it alone.
    pub fn bus_id(&self) -> &str {
        &self.bus_id
    }

    fn forget(&self, connection: &str) {
        self.lock().remove(connection);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows connections as they go: what was kept of them is forgotten, and their machines are told.
pub async fn watch_names(border: Arc<Border>) -> zbus::Result<impl Future<Output = ()> + Send + 'static> {
    let mut changes = border.callers.bus.receive_name_owner_changed().await?;
    Ok(async move {
        while let Some(change) = changes.next().await {
            let Ok(change) = change.args() else { continue };
            let BusName::Unique(name) = &change.name else { continue };
            if change.new_owner.is_none() {
                // Forgotten first: a call that binds something to it after this finds it gone.
                border.callers.forget(name);
                border.subscribers.forget(name);
                border.engine.caller_vanished(name, border.callers.bus_id()).await;
            }
        }
    })
}

/// Ends the machines whose callers went while the service was away.
pub async fn end_orphans(border: &Border) -> zbus::Result<()> {
    for view in border.engine.vms() {
        let Lifetime::Caller { connection, bus } = &view.vm.lifetime else { continue };
        let is_here = bus == border.callers.bus_id()
            && match UniqueName::try_from(connection.as_str()) {
                Ok(name) => border.callers.bus.name_has_owner(BusName::Unique(name)).await?,
                Err(_) => false,
            };
        if !is_here {
            border.engine.caller_vanished(connection, bus).await;
        }
    }
    Ok(())
}
