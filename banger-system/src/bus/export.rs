//! An object on the bus: the methods of one type, the properties of one table, and the access check before both.
//!
//! Properties are a table instead of methods, so that `Get`, `GetAll`, `PropertiesChanged`, the ObjectManager and the
//! introspection have one source.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use banger_domain::id::Uid;
use tracing::{Instrument, Span, field};
use zbus::{
    BoxDBusError, Connection, ObjectServer, OwnedObjectPath, OwnedVariant, Variant,
    message::{Header, Message},
    names::{InterfaceName, MemberName},
    object_server::{DispatchResult, Interface, SignalEmitter},
};

use super::{
    api::{Api, Target},
    error::{Error, Result},
};
use crate::engine::Engine;
use banger_proto::bus::ErrorName;

/// What properties are read from, and for whom.
pub struct Reader<'a> {
    pub engine: &'a Engine,
    /// The user who reads; none for a signal to several users.
    pub uid: Option<Uid>,
}

/// A property.
pub struct Property<V: 'static> {
    pub name: &'static str,
    pub signature: &'static str,
    pub change: Change,
    pub get: fn(&V, &Reader<'_>) -> Variant<'static>,
}

/// Returns a row of a table of properties.
pub const fn property<V>(
    name: &'static str,
    signature: &'static str,
    change: Change,
    get: fn(&V, &Reader<'_>) -> Variant<'static>,
) -> Property<V> {
    Property { name, signature, change, get }
}

/// How a property changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Never.
    Never,
    /// With a signal.
    Signaled,
    /// Without a signal: it depends on other objects, which have their own signals.
    Silent,
}

/// A kind of object: its path, its interface, and its view.
pub trait Kind: Clone + Send + Sync + 'static {
    /// The engine's view of it.
    type View: Send + Sync + 'static;
    /// Its methods, as zbus generates them.
    type Methods: Interface;
    const INTERFACE: &'static str;
    /// Its signals, as introspection XML.
    const SIGNALS: &'static str;

    fn path(&self) -> OwnedObjectPath;
    fn properties() -> &'static [Property<Self::View>];
    fn methods(&self, api: Weak<Api>) -> Self::Methods;
    /// Returns its current view; `None` if it is gone.
    fn view(&self, engine: &Engine) -> Option<Arc<Self::View>>;
    /// Returns its owner and names for dialogs; `None` if it has no owner.
    fn target(view: &Self::View, api: &Api) -> Option<Target>;
    fn gone() -> Error;

    /// Notes in the span of a call which object it is about. Journal entries of the call have that as fields.
    fn describe(&self, _span: &Span) {}
}

/// Upgrades the reference of an object's methods. Fails while the service shuts down.
pub fn api(weak: &Weak<Api>) -> Result<Arc<Api>> {
    weak.upgrade().ok_or_else(|| Error::new(ErrorName::Internal, "the service is shutting down"))
}

/// Returns the values of all properties.
pub fn values<K: Kind>(view: &K::View, reader: &Reader<'_>) -> HashMap<&'static str, Variant<'static>> {
    K::properties().iter().map(|property| (property.name, (property.get)(view, reader))).collect()
}

/// Returns the values of the properties that differ and have a signal.
pub fn changes<K: Kind>(
    old: &K::View,
    new: &K::View,
    engine: &Engine,
) -> HashMap<&'static str, Variant<'static>> {
    let reader = &Reader { engine, uid: None };
    let values = K::properties().iter().filter(|property| property.change == Change::Signaled).filter_map(
        |property| {
            let value = (property.get)(new, reader);
            (value != (property.get)(old, reader)).then_some((property.name, value))
        },
    );
    values.collect()
}

/// An object of a kind.
pub struct Exported<K: Kind> {
    api: Arc<Api>,
    kind: K,
    methods: K::Methods,
}

impl<K: Kind> Exported<K> {
    pub fn new(api: Arc<Api>, kind: K) -> Self {
        let methods = kind.methods(Arc::downgrade(&api));
        Self { api, kind, methods }
    }

    fn view(&self) -> Result<Arc<K::View>> {
        self.kind.view(&self.api.engine).ok_or_else(K::gone)
    }

    fn target(&self) -> Result<Option<Target>> {
        Ok(K::target(&*self.view()?, &self.api))
    }

    /// Returns the span of a call, whose fields all journal entries of the call have.
    fn span(&self, member: &str) -> Span {
        // At this level it is there whatever is logged.
        let span = tracing::error_span!(
            "call",
            operation = member,
            uid = field::Empty,
            vm = field::Empty,
            job = field::Empty
        );
        self.kind.describe(&span);
        span
    }

    /// Checks that the caller may use this member.
    async fn admit(&self, header: &Header<'_>, member: &str) -> Result<impl Send + use<K>> {
        let before = self.target()?;
        let whose = |target: &Option<Target>| target.as_ref().map(|target| (target.owner, target.is_shared));
        let asked_for = whose(&before);
        let (_, permit) = self.api.admit(header, K::INTERFACE, member, before).await?;
        // It may have been deleted, or have changed its owner, during a password dialog.
        match whose(&self.target()?) == asked_for {
            true => Ok(permit),
            false => Err(Error::new(ErrorName::Busy, "the object has just changed; try again")),
        }
    }

    /// Returns the view and its reader, if the caller may read it.
    async fn read(&self, header: Option<&Header<'_>>) -> Result<(Arc<K::View>, Reader<'_>)> {
        let header = header.ok_or_else(|| Error::new(ErrorName::AccessDenied, "the call has no sender"))?;
        let uid = self.api.admit_reader(header, K::INTERFACE, self.target()?).await?;
        Ok((self.view()?, Reader { engine: &self.api.engine, uid: Some(uid) }))
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
            let (view, reader) = self.read(header).await?;
            Ok::<_, Error>(OwnedVariant::try_from((property.get)(&view, &reader))?)
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
        let (view, reader) = self.read(header).await.map_err(denied)?;
        let mut all = HashMap::new();
        for (name, value) in values::<K>(&view, &reader) {
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
        // Answered here: before `set_mut`, zbus would wait until every call to this object has ended, and meanwhile
        // hold the tree of all objects.
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
            // The method has not started: a future does nothing until it is awaited.
            DispatchResult::Async(method) => {
                let span = self.span(&member);
                let call = async move {
                    let header = message.header();
                    match self.admit(&header, &member).await {
                        Ok(_permit) => method.await,
                        Err(error) => Ok(connection.reply_dbus_error(&header, error).await?),
                    }
                };
                DispatchResult::Async(Box::pin(call.instrument(span)))
            }
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

/// Exports an object; does nothing if it is exported already.
pub async fn export<K: Kind>(api: &Arc<Api>, kind: K) -> zbus::Result<()> {
    let (server, path) = (api.connection.object_server(), kind.path());
    if !api.on_bus.begin(&path, &kind) {
        return Ok(());
    }
    server.at(&path, Exported::new(Arc::clone(api), kind.clone())).await?;
    api.on_bus.finish(&path);
    // If it is removed from the engine after this check, the publisher removes the object.
    if kind.view(&api.engine).is_none() {
        unexport(api, &kind).await?;
    }
    Ok(())
}

/// Removes an object from the bus. A repeat is safe.
pub async fn unexport<K: Kind>(api: &Api, kind: &K) -> zbus::Result<()> {
    let path = kind.path();
    match api.connection.object_server().remove::<Exported<K>, _>(&path).await {
        Ok(_) | Err(zbus::Error::InterfaceNotFound) => {
            api.on_bus.lock().remove(&path);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Removes all objects from the bus that are gone from the engine.
pub async fn unexport_gone(api: &Api) -> zbus::Result<()> {
    let all: Vec<_> = api.on_bus.lock().values().map(|entry| Arc::clone(&entry.kind)).collect();
    for kind in all.into_iter().filter(|kind| kind.is_gone(&api.engine)) {
        kind.unexport(api).await?;
    }
    Ok(())
}

/// The objects on the bus, by path.
#[derive(Default)]
pub struct OnBus(Mutex<HashMap<OwnedObjectPath, Entry>>);

struct Entry {
    kind: Arc<dyn AnyKind>,
    /// Whether zbus has it, so that calls reach it.
    is_exported: bool,
}

impl OnBus {
    /// Notes that an object is going to be exported. Returns whether it has to be: another call may be about to do it, and
    /// nobody may rely on that yet.
    fn begin<K: Kind>(&self, path: &OwnedObjectPath, kind: &K) -> bool {
        let mut all = self.lock();
        match all.get(path) {
            Some(entry) => !entry.is_exported,
            None => {
                let kind = Arc::new(kind.clone());
                all.insert(path.clone(), Entry { kind, is_exported: false });
                true
            }
        }
    }

    /// Notes that an object is exported, unless it has been removed meanwhile.
    fn finish(&self, path: &OwnedObjectPath) {
        if let Some(entry) = self.lock().get_mut(path) {
            entry.is_exported = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OwnedObjectPath, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An object of any kind.
#[async_trait]
trait AnyKind: Send + Sync {
    fn is_gone(&self, engine: &Engine) -> bool;
    async fn unexport(&self, api: &Api) -> zbus::Result<()>;
}

#[async_trait]
impl<K: Kind> AnyKind for K {
    fn is_gone(&self, engine: &Engine) -> bool {
        self.view(engine).is_none()
    }

    async fn unexport(&self, api: &Api) -> zbus::Result<()> {
        unexport(api, self).await
    }
}
