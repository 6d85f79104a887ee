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
    BoxDBusError, Connection, ObjectServer, OwnedVariant, Variant,
    message::{Header, Message},
    names::{InterfaceName, MemberName},
    object_server::{DispatchResult, Interface, SignalEmitter},
};

use super::{
    acl,
    border::{Border, Target},
    error::{Error, Result},
};
use crate::engine::Engine;
use banger_proto::bus::ErrorName;

/// A property.
pub struct Property<V: 'static> {
    pub name: &'static str,
    pub signature: &'static str,
    /// Whether it never changes.
    pub constant: bool,
    pub get: fn(&V, &Engine) -> Variant<'static>,
}

/// The kind of an object: where it is, what it is called, and what is known of it.
pub trait Kind: Clone + Send + Sync + 'static {
    /// What the engine publishes of it.
    type View: Send + Sync + 'static;
    /// Its methods, as zbus makes them.
    type Methods: Interface;
    const INTERFACE: &'static str;
    /// Its signals, as introspection shows them.
    const SIGNALS: &'static str;

    fn properties() -> &'static [Property<Self::View>];
    fn methods(&self, border: Weak<Border>) -> Self::Methods;
    /// What is known of it now; `None` when it is gone.
    fn view(&self, engine: &Engine) -> Option<Arc<Self::View>>;
    /// Whose it is; `None` for what is everybody's.
    fn target(view: &Self::View, engine: &Engine) -> Option<Target>;
    fn gone() -> Error;
}

/// What the methods of an object work with. The service is going when it is not there.
pub fn border(weak: &Weak<Border>) -> Result<Arc<Border>> {
    weak.upgrade().ok_or_else(|| Error::new(ErrorName::Internal, "the service is ending"))
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
    let values = K::properties().iter().filter(|property| !property.constant).filter_map(|property| {
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

    /// The view, and the check that the caller may use this member of it.
    async fn admit(&self, header: &Header<'_>, member: &str) -> Result<(Arc<K::View>, impl Send + use<K>)> {
        let view = self.kind.view(&self.border.engine).ok_or_else(K::gone)?;
        let target = K::target(&view, &self.border.engine);
        let (_, permit) = self.border.admit(header, K::INTERFACE, member, target).await?;
        // It may have gone while somebody was asked to authenticate.
        let view = self.kind.view(&self.border.engine).ok_or_else(K::gone)?;
        Ok((view, permit))
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
            let header =
                header.ok_or_else(|| Error::new(ErrorName::AccessDenied, "the call has no sender"))?;
            let (view, _permit) = self.admit(header, acl::PROPERTIES).await?;
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
        let header =
            header.ok_or_else(|| zbus::fdo::Error::AccessDenied("the call has no sender".to_owned()))?;
        let (view, _permit) = self.admit(header, acl::PROPERTIES).await.map_err(denied)?;
        let mut all = HashMap::new();
        for (name, value) in values::<K>(&view, &self.border.engine) {
            all.insert(name.to_owned(), OwnedVariant::try_from(value)?);
        }
        Ok(all)
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
        // Every property is read-only.
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
                    Ok((_, _permit)) => method.await,
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
