//! An object on the bus: the methods of one type, the properties of one table, and the check before both.
//!
//! The properties are a table and not methods, so that a read, `GetAll`, `PropertiesChanged`, the
//! ObjectManager and the introspection have one source.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use zbus::{
    BoxDBusError, Connection, ObjectServer, OwnedObjectPath, OwnedVariant, Variant,
    message::{Header, Message},
    names::{InterfaceName, MemberName},
    object_server::{DispatchResult, Interface, SignalEmitter},
};

use super::{
    border::{Border, Target},
    error::{Error, Result},
};
use crate::engine::Engine;
use banger_proto::bus::ErrorName;

/// A property.
pub struct Property<V: 'static> {
    pub name: &'static str,
    pub signature: &'static str,
    pub change: Change,
    pub get: fn(&V, &Engine) -> Variant<'static>,
}

/// How a property changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Never.
    Never,
    /// With a signal.
    Told,
    /// In silence: it is about other objects, which have their own signals.
    Untold,
}

/// A kind of object: its path, its interface, and its view.
pub trait Kind: Clone + Send + Sync + 'static {
    /// What the engine publishes of it.
    type View: Send + Sync + 'static;
    /// Its methods, as zbus makes them.
    type Methods: Interface;
    const INTERFACE: &'static str;
    /// Its signals, as introspection shows them.
    const SIGNALS: &'static str;

    fn path(&self) -> OwnedObjectPath;
    fn properties() -> &'static [Property<Self::View>];
    fn methods(&self, border: Weak<Border>) -> Self::Methods;
    /// What is known of it now; `None` when it is gone.
    fn view(&self, engine: &Engine) -> Option<Arc<Self::View>>;
    /// Whose it is; `None` for what is everybody's.
    fn target(view: &Self::View, border: &Border) -> Option<Target>;
    fn gone() -> Error;
}

/// What the methods of an object work with. The service is going when it is not there.
pub fn border(weak: &Weak<Border>) -> Result<Arc<Border>> {
    weak.upgrade().ok_or_else(|| Error::new(ErrorName::Internal, "the service is shutting down"))
}

/// The values of all properties.
pub fn values<K: Kind>(view: &K::View, engine: &Engine) -> HashMap<&'static str, Variant<'static>> {
    K::properties().iter().map(|property| (property.name, (property.get)(view, engine))).collect()
}

/// The values of the properties that differ.
pub fn changes<K: Kind>(
    old: &K::View,
    new: &K::View,
    engine: &Engine,
) -> HashMap<&'static str, Variant<'static>> {
    let values =
        K::properties().iter().filter(|property| property.change == Change::Told).filter_map(|property| {
            let value = (property.get)(new, engine);
            (value != (property.get)(old, engine)).then_some((property.name, value))
        });
    values.collect()
}

/// An object of a kind.
pub struct Exported<K: Kind> {
    border: Arc<Border>,
    kind: K,
    methods: K::Methods,
}

impl<K: Kind> Exported<K> {
    pub fn new(border: Arc<Border>, kind: K) -> Self {
        let methods = kind.methods(Arc::downgrade(&border));
        Self { border, kind, methods }
    }

    fn view(&self) -> Result<Arc<K::View>> {
        self.kind.view(&self.border.engine).ok_or_else(K::gone)
    }

    fn target(&self) -> Result<Option<Target>> {
        Ok(K::target(&*self.view()?, &self.border))
    }

    /// The check that the caller may use this member.
    async fn admit(&self, header: &Header<'_>, member: &str) -> Result<impl Send + use<K>> {
        let before = self.target()?;
        let whose = |target: &Option<Target>| target.as_ref().map(|target| (target.owner, target.is_shared));
        let asked_for = whose(&before);
        let (_, permit) = self.border.admit(header, K::INTERFACE, member, before).await?;
        // It may have gone, or become another's, while somebody was asked to authenticate.
        match whose(&self.target()?) == asked_for {
            true => Ok(permit),
            false => Err(Error::new(ErrorName::Busy, "it has just changed; try again")),
        }
    }

    /// The view, for a caller that may read it.
    async fn read(&self, header: Option<&Header<'_>>) -> Result<Arc<K::View>> {
        let header = header.ok_or_else(|| Error::new(ErrorName::AccessDenied, "the call has no sender"))?;
        self.border.admit_reader(header, K::INTERFACE, self.target()?).await?;
        self.view()
    }
}

#[async_trait]
impl<K: Kind> Interface for Exported<K> {
    fn name() -> InterfaceName<'static> {
        InterfaceName::from_static_str_unchecked(K::INTERFACE)
    }

    async fn get(
        &self,
        name: &str,
        _: &ObjectServer,
        _: &Connection,
        header: Option<&Header<'_>>,
        _: &SignalEmitter<'_>,
    ) -> Option<std::result::Result<OwnedVariant, BoxDBusError>> {
        let property = K::properties().iter().find(|property| property.name == name)?;
        let read = async {
            let view = self.read(header).await?;
            Ok::<_, Error>(OwnedVariant::try_from((property.get)(&view, &self.border.engine))?)
        };
        Some(read.await.map_err(|error| Box::new(error) as BoxDBusError))
    }

    async fn get_all(
        &self,
        _: &ObjectServer,
        _: &Connection,
        header: Option<&Header<'_>>,
        _: &SignalEmitter<'_>,
    ) -> zbus::fdo::Result<HashMap<String, OwnedVariant>> {
        let denied = |error: Error| zbus::fdo::Error::AccessDenied(error.message);
        let view = self.read(header).await.map_err(denied)?;
        let mut all = HashMap::new();
        for (name, value) in values::<K>(&view, &self.border.engine) {
            all.insert(name.to_owned(), OwnedVariant::try_from(value)?);
        }
        Ok(all)
    }

    fn set<'call>(
        &'call self,
        name: &'call str,
        _: &'call Variant<'_>,
        _: &'call ObjectServer,
        _: &'call Connection,
        _: Option<&'call Header<'_>>,
        _: &'call SignalEmitter<'_>,
    ) -> DispatchResult<'call> {
        // Answered here: for `set_mut` zbus would wait until every call to this object has ended, and
        // meanwhile hold the tree of all objects.
        match K::properties().iter().any(|property| property.name == name) {
            true => DispatchResult::Async(Box::pin(async move {
                Err(zbus::fdo::Error::PropertyReadOnly(format!("{name} cannot be set")).into())
            })),
            false => DispatchResult::NotFound,
        }
    }

    async fn set_mut(
        &mut self,
        _: &str,
        _: &Variant<'_>,
        _: &ObjectServer,
        _: &Connection,
        _: Option<&Header<'_>>,
        _: &SignalEmitter<'_>,
    ) -> Option<std::result::Result<(), BoxDBusError>> {
        None
    }

    fn call<'call>(
        &'call self,
        server: &'call ObjectServer,
        connection: &'call Connection,
        message: &'call Message,
        name: MemberName<'call>,
    ) -> DispatchResult<'call> {
        let member = name.to_string();
        match self.methods.call(server, connection, message, name) {
            // The method has not begun: a future does nothing until it is awaited.
            DispatchResult::Async(method) => DispatchResult::Async(Box::pin(async move {
                let header = message.header();
                match self.admit(&header, &member).await {
                    Ok(_permit) => method.await,
                    Err(error) => Ok(connection.reply_dbus_error(&header, error).await?),
                }
            })),
            other => other,
        }
    }

    fn call_mut<'call>(
        &'call mut self,
        _: &'call ObjectServer,
        _: &'call Connection,
        _: &'call Message,
        _: MemberName<'call>,
    ) -> DispatchResult<'call> {
        DispatchResult::NotFound
    }

    fn introspect_to_writer(&self, writer: &mut dyn Write, level: usize) {
        let mut methods = String::new();
        self.methods.introspect_to_writer(&mut methods, level);
        // Writing into a string does not fail, and zbus has no way to hear of it.
        let _ = writer.write_str(&super::introspect::with_properties::<K>(&methods, level));
    }
}

/// Creates the object of something that exists; does nothing if the object is there already.
pub async fn export<K: Kind>(border: &Arc<Border>, kind: K) -> zbus::Result<()> {
    let (server, path) = (border.connection.object_server(), kind.path());
    server.at(&path, Exported::new(Arc::clone(border), kind.clone())).await?;
    // A task that removes it from the engine after this finds the object, and removes it too.
    if kind.view(&border.engine).is_none() {
        withdraw(border, &kind).await?;
    }
    Ok(())
}

/// Removes an object; one that is gone is removed.
pub async fn withdraw<K: Kind>(border: &Border, kind: &K) -> zbus::Result<()> {
    match border.connection.object_server().remove::<Exported<K>, _>(kind.path()).await {
        Ok(_) | Err(zbus::Error::InterfaceNotFound) => Ok(()),
        Err(error) => Err(error),
    }
}
