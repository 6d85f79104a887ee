//! Who calls, and what happens when they go.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use banger_proto::bus::ErrorName;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
use crate::{
    domain::{id::Uid, vm::Lifetime},
    ports::Interaction,
};

/// Calls of one user that are served at once. The bus of some distributions has no bound of its own.
const CALLS: usize = 32;

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

/// The callers that are connected.
pub struct Callers {
    bus: DBusProxy<'static>,
    uids: Mutex<HashMap<String, Uid>>,
    permits: Mutex<HashMap<Uid, Arc<Semaphore>>>,
}

impl Callers {
    pub async fn new(connection: &Connection) -> zbus::Result<Self> {
        let bus = DBusProxy::new(connection).await?;
        Ok(Self { bus, uids: Mutex::default(), permits: Mutex::default() })
    }

    /// Who sent this message. The bus vouches for the connection and for its user.
    pub async fn of(&self, header: &Header<'_>) -> Result<Caller> {
        let denied = |why: &str| Error::new(ErrorName::AccessDenied, why);
        let sender = header.sender().ok_or_else(|| denied("the call has no sender"))?;
        let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let interaction = if interactive { Interaction::Allowed } else { Interaction::Forbidden };
        let known = self.uids.lock().unwrap_or_else(PoisonError::into_inner).get(sender.as_str()).copied();
        let uid = match known {
            Some(uid) => uid,
            None => {
                let name = BusName::Unique(sender.clone());
                let uid = self.bus.get_connection_unix_user(name).await;
                let uid = Uid(uid.map_err(|_| denied("the bus does not tell who you are"))?);
                self.uids.lock().unwrap_or_else(PoisonError::into_inner).insert(sender.to_string(), uid);
                uid
            }
        };
        Ok(Caller { connection: sender.to_string(), uid, interaction })
    }

    /// A place among the calls of a user that are served at once.
    pub fn permit(&self, uid: Uid) -> Result<OwnedSemaphorePermit> {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = permits.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(CALLS)));
        Arc::clone(of_user).try_acquire_owned().map_err(|_| {
            Error::new(ErrorName::TooManyRequests, format!("you have {CALLS} requests under way; try again"))
        })
    }

    /// The id of this bus: unique names are unique on it alone.
    pub async fn bus_id(&self) -> zbus::Result<String> {
        Ok(self.bus.get_id().await?.to_string())
    }

    fn forget(&self, connection: &str) {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner).remove(connection);
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
                border.callers.forget(name);
                border.subscribers.forget(name);
                border.engine.caller_vanished(name).await;
            }
        }
    })
}

/// Ends the machines whose callers went while the service was away.
pub async fn end_orphans(border: &Border) -> zbus::Result<()> {
    let this_bus = border.callers.bus_id().await?;
    for view in border.engine.vms() {
        let Lifetime::Caller { connection, bus } = &view.vm.lifetime else { continue };
        let is_here = *bus == this_bus
            && match UniqueName::try_from(connection.as_str()) {
                Ok(name) => border.callers.bus.name_has_owner(BusName::Unique(name)).await?,
                Err(_) => false,
            };
        if !is_here {
            border.engine.caller_vanished(connection).await;
        }
    }
    Ok(())
}
