//! The service as this program sees it: its objects, and the changes that its signals report.

use std::collections::HashMap;

use banger_proto::bus::names::{JOB_INTERFACE, MANAGER_PATH, SERVICE, VM_INTERFACE};
use zbus::{
    Connection, Message, OwnedObjectPath, OwnedVariant, Proxy, Variant,
    fdo::{DBusProxy, ManagedObjects, NameOwnerChangedStream},
    names::BusName,
    proxy::MethodFlags,
};

const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Properties of an object.
pub type Properties = HashMap<String, OwnedVariant>;

/// A change that a signal reports, of the object at `path`.
#[derive(Debug)]
pub struct Change {
    pub path: String,
    pub what: What,
}

/// What changed.
#[derive(Debug)]
pub enum What {
    /// These properties of a job have these values, and the others are as they were.
    Job(Properties),
    /// The same of a sandbox.
    Vm(Properties),
    /// A sandbox has another state, for this reason.
    State { now: String, reason: String },
    /// The object is gone.
    Gone,
}

/// Returns a stream with an item whenever the service starts or ends.
pub async fn owners(system: &Connection) -> zbus::Result<NameOwnerChangedStream> {
    DBusProxy::new(system).await?.receive_name_owner_changed_with_args(&[(0, SERVICE)]).await
}

/// Returns the unique name of the service, if it runs. Does not start it.
pub async fn owner(system: &Connection) -> Option<String> {
    let bus = DBusProxy::new(system).await.ok()?;
    let name = BusName::from_static_str(SERVICE).ok()?;
    Some(bus.get_name_owner(name).await.ok()?.to_string())
}

/// Subscribes to the user's objects, and returns them as changes.
pub async fn subscribe(system: &Connection) -> zbus::Result<Vec<Change>> {
    let manager = Proxy::new(system, SERVICE, MANAGER_PATH, OBJECT_MANAGER).await?;
    let objects: Option<ManagedObjects> =
        manager.call_with_flags("GetManagedObjects", MethodFlags::NO_AUTO_START, &()).await?;
    let objects = objects.unwrap_or_default().into_iter();
    Ok(objects
        .filter_map(|(path, interfaces)| {
            let named = interfaces.into_iter().map(|(name, properties)| (name.to_string(), properties));
            added(path.to_string(), named)
        })
        .collect())
}

/// Returns the change that a message reports, if it does. Every local user can send such messages: only those of the
/// service with this unique name count.
pub fn change(message: &Message, owner: Option<&str>) -> Option<Change> {
    let header = message.header();
    if header.sender()?.as_str() != owner? {
        return None;
    }
    let (interface, member) = (header.interface()?.as_str(), header.member()?.as_str());
    let (path, body) = (header.path()?.to_string(), message.body());
    match (interface, member) {
        (OBJECT_MANAGER, "InterfacesAdded") => {
            let (path, interfaces): (OwnedObjectPath, HashMap<String, Properties>) =
                body.deserialize().ok()?;
            added(path.to_string(), interfaces.into_iter())
        }
        (OBJECT_MANAGER, "InterfacesRemoved") => {
            let (path, _): (OwnedObjectPath, Vec<String>) = body.deserialize().ok()?;
            Some(Change { path: path.to_string(), what: What::Gone })
        }
        (PROPERTIES, "PropertiesChanged") => {
            let (interface, properties, _): (String, Properties, Vec<String>) = body.deserialize().ok()?;
            added(path, std::iter::once((interface, properties)))
        }
        (VM_INTERFACE, "StateChanged") => {
            let (_, now, reason): (String, String, String) = body.deserialize().ok()?;
            Some(Change { path, what: What::State { now, reason } })
        }
        _ => None,
    }
}

/// Returns the change to an object with these interfaces, if it is a job or a sandbox.
fn added(path: String, interfaces: impl Iterator<Item = (String, Properties)>) -> Option<Change> {
    let mut what = interfaces.filter_map(|(interface, properties)| match interface.as_str() {
        JOB_INTERFACE => Some(What::Job(properties)),
        VM_INTERFACE => Some(What::Vm(properties)),
        _ => None,
    });
    Some(Change { path, what: what.next()? })
}

/// Returns a property that is a text.
pub fn text<'a>(properties: &'a Properties, name: &str) -> Option<&'a str> {
    match properties.get(name).map(|value| &**value) {
        Some(Variant::Str(text)) => Some(text.as_str()),
        _ => None,
    }
}

/// Returns the first of the paths in a property.
pub fn first_path(properties: &Properties, name: &str) -> Option<String> {
    let paths = Vec::<OwnedObjectPath>::try_from(properties.get(name)?.try_clone().ok()?).ok()?;
    paths.first().map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_service_is_heard() {
        let change_by = |sender: &str, owner: Option<&str>| {
            let signal = Message::signal(MANAGER_PATH, VM_INTERFACE, "StateChanged");
            let message = signal.sender(sender).build(&("running", "failed", "guest-panic")).unwrap();
            change(&message, owner)
        };
        assert!(change_by(":1.5", Some(":1.5")).is_some());
        assert!(change_by(":1.6", Some(":1.5")).is_none());
        assert!(change_by(":1.5", None).is_none());
    }
}
