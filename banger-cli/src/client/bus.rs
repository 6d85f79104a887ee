//! The connection to the service. All calls are made here.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    sync::Arc,
    time::Duration,
};

use banger_proto::bus::{
    ErrorName,
    names::{MANAGER_INTERFACE, MANAGER_PATH, SERVICE},
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
    remote::{
        self,
        client::{Filled, Remote, has_files},
        passing::Passing,
        server::Server,
        trust,
    },
};

/// How often a command that waits looks whether the connection to another host is there.
const LOST_INTERVAL: Duration = Duration::from_secs(2);
/// How often it looks after a stream broke. The stream may end before the connection is seen to.
const LOST_TRIES: u32 = 3;
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// A connection to the system bus of the host in use.
#[derive(Debug, Clone)]
pub struct Bus {
    connection: Connection,
    /// Held while the user is asked for a password: two prompts on one terminal would mix.
    prompt_lock: Arc<Mutex<()>>,
    /// Whether the user may be asked for a password.
    may_prompt: bool,
    /// The host, if it is not the local one.
    remote: Option<Arc<Remote>>,
}

impl Bus {
    /// Connects to the bus, without starting the service.
    pub async fn connect() -> Result<Self> {
        match remote::chosen()? {
            None => Self::local().await,
            Some(server) => Ok(Self::remote(Remote::connect(server, has_terminal()).await?)),
        }
    }

    /// Connects for a question of the shell: asks nothing, and leaves nothing behind.
    pub async fn connect_briefly() -> Result<Self> {
        let bus = match remote::chosen()? {
            None => Self::local().await?,
            Some(server) => Self::remote(Remote::connect_briefly(server).await?),
        };
        Ok(bus.without_prompts())
    }

    async fn local() -> Result<Self> {
        let connection = Connection::system().await.map_err(|error| Error::NoBus(Box::new(error)))?;
        Ok(Self { connection, prompt_lock: Arc::default(), may_prompt: true, remote: None })
    }

    fn remote((connection, remote): (Connection, Remote)) -> Self {
        // The agent that asks for passwords would have to run there.
        let (prompt_lock, remote) = (Arc::default(), Some(Arc::new(remote)));
        Self { connection, prompt_lock, may_prompt: false, remote }
    }

    /// Returns the host, if it is not the local one.
    pub fn server(&self) -> Option<&Server> {
        self.remote.as_ref().map(|remote| remote.server())
    }

    /// Returns the user as whom the service knows the caller.
    pub fn uid(&self) -> u32 {
        match &self.remote {
            Some(remote) => remote.uid(),
            None => rustix::process::getuid().as_raw(),
        }
    }

    /// Returns whether an object is the caller's.
    pub fn is_own(&self, object: &Object) -> bool {
        object.number("OwnerUid") == u64::from(self.uid())
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
        if !self.may_prompt || !has_terminal() {
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

    /// Has the service fill an empty file. Returns the answer of the call; the file has its content after
    /// [`Bus::fetch`].
    pub async fn fill<B, R>(
        &self,
        path: &ObjectPath<'_>,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<(R, Option<Filled>)>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        match &self.remote {
            None => Ok((self.call(path, interface, method, body).await?, None)),
            Some(remote) => {
                let called = remote.call(path.as_str(), interface, method, Passing::Fill, body).await;
                match called {
                    Ok(answer) => Ok(answer),
                    Err(error) => Err(self.explain(error, remote).await),
                }
            }
        }
    }

    /// Checks that the stream that was opened last has ended by itself.
    pub async fn check_stream(&self) -> Result<()> {
        match &self.remote {
            Some(remote) => remote.check_stream().await,
            None => Ok(()),
        }
    }

    /// Returns the architecture of the host's processor.
    pub fn architecture(&self) -> &str {
        let there = self.remote.as_ref().and_then(|remote| remote.architecture());
        there.unwrap_or(std::env::consts::ARCH)
    }

    /// Returns once the connection to another host is lost, with the error. Never returns for the local host.
    pub async fn lost(&self) -> Error {
        let Some(remote) = &self.remote else { return std::future::pending().await };
        while !remote.has_ended().await {
            tokio::time::sleep(LOST_INTERVAL).await;
        }
        remote.lost().await
    }

    /// Says why a stream to a sandbox broke: the connection to another host may be lost.
    pub async fn why<T>(&self, ended: Result<T>) -> Result<T> {
        match (&self.remote, ended) {
            (Some(remote), Err(error @ Error::Attach(_))) => {
                for _ in 0..LOST_TRIES {
                    if remote.has_ended().await {
                        return Err(remote.lost().await);
                    }
                }
                Err(error)
            }
            (_, ended) => ended,
        }
    }

    /// Returns the error that no more messages come.
    pub async fn ended(&self, error: Error) -> Error {
        match &self.remote {
            Some(remote) => self.explain(error, remote).await,
            None => error,
        }
    }

    /// Says what an error of a remote host means for the user here.
    async fn explain(&self, error: Error, remote: &Remote) -> Error {
        match error.bare() {
            Error::Bus(_) | Error::ServiceEnded if remote.has_ended().await => remote.lost().await,
            Error::OtherVersion { .. } => {
                let (path, of) = (manager_path(), (MANAGER_INTERFACE,));
                let manager = self.call_on_bus(&path, PROPERTIES, "GetAll", &of, MethodFlags::empty()).await;
                remote.has_other_version(&manager.map(Object::new).unwrap_or_default())
            }
            _ => remote.explain(error),
        }
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
        let Some(remote) = &self.remote else {
            return self.call_on_bus(path, interface, method, body, flags).await;
        };
        let called = match Passing::of(method) {
            // The bus carries these, and the progress of their job.
            Some(Passing::Read) if !has_files(body)? => {
                self.call_on_bus(path, interface, method, body, flags).await
            }
            // The only way to a descriptor.
            Some(passing) => {
                remote.call(path.as_str(), interface, method, passing, body).await.map(|(answer, _)| answer)
            }
            None => self.call_on_bus(path, interface, method, body, flags).await,
        };
        match called {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.explain(error, remote).await),
        }
    }

    async fn call_on_bus<B, R>(
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
        let properties: HashMap<String, OwnedVariant> =
            self.call(path, PROPERTIES, "GetAll", &(interface,)).await?;
        let object = Object::new(properties);
        match &self.remote {
            Some(remote) if !trust::is_plain(&object) => Err(remote.not_plain()),
            _ => Ok(object),
        }
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
        // Others on that host are of use still.
        Ok(ours.filter(|object| self.remote.is_none() || trust::is_plain(object)).collect())
    }
}

/// Returns whether there is a terminal on which the user can be asked.
fn has_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Returns the path of the manager.
pub fn manager_path() -> OwnedObjectPath {
    ObjectPath::from_static_str_unchecked(MANAGER_PATH).into()
}
