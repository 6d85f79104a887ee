//! `org.freedesktop.DBus.ObjectManager`, filtered for each caller. A caller of `GetManagedObjects` is subscribed to
//! changes, as clients of this interface expect.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use banger_proto::bus::names::MANAGER_PATH;
use zbus::{OwnedObjectPath, Variant, interface, message::Header};

use super::{
    api::Api,
    caller::RequestKind,
    error::Result,
    export::{Kind, Reader, api, values},
    image::ImageKind,
    item,
    job::JobKind,
    kernel::KernelKind,
    path,
    vm::VmKind,
};

/// The interfaces of an object, with their properties.
pub type Interfaces = HashMap<&'static str, HashMap<&'static str, Variant<'static>>>;

/// Returns the interfaces of an object.
pub fn interfaces<K: Kind>(view: &K::View, reader: &Reader<'_>) -> Interfaces {
    HashMap::from([(K::INTERFACE, values::<K>(view, reader))])
}

struct ObjectManager {
    api: Weak<Api>,
}

/// The objects that the caller may see.
#[interface(name = "org.freedesktop.DBus.ObjectManager", introspection_docs = false)]
impl ObjectManager {
    #[zbus(out_args("objects"))]
    async fn get_managed_objects(
        &self,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<HashMap<OwnedObjectPath, Interfaces>> {
        let api = api(&self.api)?;
        let caller = api.callers.of(&header).await?;
        let _permit = api.callers.acquire(caller.uid, RequestKind::Call)?;
        api.subscribe(&caller, false)?;
        let engine = &api.engine;
        let reader = &Reader { engine, uid: Some(caller.uid) };
        let mut objects = HashMap::new();
        for view in engine.vms().iter().filter(|view| view.vm.owner == caller.uid) {
            objects.insert(path::vm(view.vm.id), interfaces::<VmKind>(view, reader));
        }
        for image in &item::visible(engine.images(), &caller, false) {
            objects.insert(path::image(image.id), interfaces::<ImageKind>(image, reader));
        }
        for kernel in &item::visible(engine.kernels(), &caller, false) {
            objects.insert(path::kernel(kernel.id), interfaces::<KernelKind>(kernel, reader));
        }
        for job in engine.jobs().iter().filter(|job| job.owner == caller.uid) {
            objects.insert(path::job(job.id), interfaces::<JobKind>(job, reader));
        }
        Ok(objects)
    }

    /// Sent to those who may see the object, and to nobody else.
    #[zbus(signal)]
    async fn interfaces_added(
        emitter: &zbus::object_server::SignalEmitter<'_>,
        object_path: zbus::ObjectPath<'_>,
        interfaces_and_properties: Interfaces,
    ) -> zbus::Result<()>;

    /// Sent to those who could see the object, and to nobody else.
    #[zbus(signal)]
    async fn interfaces_removed(
        emitter: &zbus::object_server::SignalEmitter<'_>,
        object_path: zbus::ObjectPath<'_>,
        interfaces: Vec<&str>,
    ) -> zbus::Result<()>;
}

/// Exports the object.
pub async fn export(api: &Arc<Api>) -> zbus::Result<()> {
    let object = ObjectManager { api: Arc::downgrade(api) };
    api.connection.object_server().at(MANAGER_PATH, object).await.map(drop)
}
