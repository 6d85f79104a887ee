//! The connection to the service. All calls are made here.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    sync::Arc,
};

use banger_proto::bus::{
    ErrorName,
    names::{MANAGER_PATH, SERVICE},
};
use serde::Serialize;
use tokio::sync::Mutex;
use zbus::{
    Connection, DynamicType, MessageStream, ObjectPath, OwnedObjectPath, OwnedVariant,
    fdo::ManagedObjects,
    proxy::{Builder, CacheProperties, MethodFlags},
    wire::DynamicDeserialize,
};

use crate::{
    client::{object::Object, text_agent::TextAgent},
    error::{Error, Result},
};

/// A connection to the system bus.
#[derive(Debug, Clone)]
pub struct Bus {
    connection: Connection,
    /// Held while the user is asked for a password: two prompts on one terminal would mix.
    prompt_lock: Arc<Mutex<()>>,
    /// Whether the user may be asked for a password.
    may_prompt: bool,
}

impl Bus {
    /// Connects to the bus, without starting the service.
    pub async fn connect() -> Result<Self> {
        let connection = Connection::system().await.map_err(|error| Error::NoBus(Box::new(error)))?;
        Ok(Self { connection, prompt_lock: Arc::default(), may_prompt: true })
    }

    /// Returns the same connection, which never asks for a password.
    pub fn without_prompts(self) -> Self {
        Self { may_prompt: false, ..self }
    }

    /// Returns whether the service is running, without starting it.
    pub async fn service_runs(&self) -> bool {
        let bus = zbus::fdo::DBusProxy::new(&self.connection).await;
        let name = zbus::names::BusName::from_static_str(SERVICE);
        match (bus, name) {
            (Ok(bus), Ok(name)) => bus.name_has_owner(name).await.unwrap_or_default(),
            _ => false,
        }
    }

    /// Returns a stream of all messages from now on. The service sends its signals to the users concerned, so no
    /// match rule is needed.
    pub fn messages(&self) -> MessageStream {
        MessageStream::from(&self.connection)
    }

    /// Calls a method. If the service requires authentication and there is a terminal, asks the user and repeats the
    /// call.
    pub async fn call<B, R>(
        &self,
        path: &ObjectPath<'_>,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<R>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let refused = match self.call_once(path, interface, method, body, MethodFlags::empty()).await {
            Err(error) if error.name() == Some(ErrorName::InteractiveAuthorizationRequired) => error,
            answer => return answer,
        };
        if !self.may_prompt || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(refused);
        }
        let _one = self.prompt_lock.lock().await;
        // Without a text agent, the user's desktop may still have one.
        let agent = TextAgent::start().await;
        let answer = self.call_once(path, interface, method, body, MethodFlags::ALLOW_INTERACTIVE_AUTH).await;
        if let Ok(agent) = agent {
            agent.end().await;
        }
        answer
    }

    async fn call_once<B, R>(
        &self,
        path: &ObjectPath<'_>,
        interface: &str,
        method: &str,
        body: &B,
        flags: MethodFlags,
    ) -> Result<R>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let proxy: zbus::Proxy<'_> = Builder::new(&self.connection)
            .destination(SERVICE)
            .path(path)
            .interface(interface)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        match proxy.call_with_flags(method, flags, body).await? {
            Some(answer) => Ok(answer),
            // A reply was requested.
            None => Err(Error::ServiceEnded),
        }
    }

    /// Returns all properties of an object, in one call.
    pub async fn properties(&self, path: &ObjectPath<'_>, interface: &str) -> Result<Object> {
        const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
        let properties: HashMap<String, OwnedVariant> =
            self.call(path, PROPERTIES, "GetAll", &(interface,)).await?;
        Ok(Object::new(properties))
    }

    /// Returns every object with this interface that the caller may see, in one call.
    pub async fn objects(&self, interface: &str) -> Result<Vec<Object>> {
        const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
        let objects: ManagedObjects =
            self.call(&manager_path(), OBJECT_MANAGER, "GetManagedObjects", &()).await?;
        let ours = objects.into_values().filter_map(|mut interfaces| {
            let name = interfaces.keys().find(|name| name.as_str() == interface)?.clone();
            interfaces.remove(&name).map(Object::new)
        });
        Ok(ours.collect())
    }
}

/// Returns the path of the manager.
pub fn manager_path() -> OwnedObjectPath {
    ObjectPath::from_static_str_unchecked(MANAGER_PATH).into()
}
