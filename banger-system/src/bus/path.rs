//! Object paths: a parent for each kind, and the id.

use std::fmt::Display;

use banger_domain::id::{ImageId, JobId, KernelId, Uid, VmId};
use banger_proto::bus::names;
use zbus::OwnedObjectPath;

use crate::engine::{Engine, view::Object};

/// Returns the path of an object. Ids are hexadecimal, so every path is valid.
fn path(parent: &str, id: impl Display) -> OwnedObjectPath {
    OwnedObjectPath::try_from(format!("{parent}/{id}")).unwrap_or_default()
}

pub fn manager() -> OwnedObjectPath {
    zbus::ObjectPath::from_static_str_unchecked(names::MANAGER_PATH).into()
}

pub fn vm(id: VmId) -> OwnedObjectPath {
    path(names::VM_PARENT, id)
}

pub fn image(id: ImageId) -> OwnedObjectPath {
    path(names::IMAGE_PARENT, id)
}

pub fn kernel(id: KernelId) -> OwnedObjectPath {
    path(names::KERNEL_PARENT, id)
}

pub fn job(id: JobId) -> OwnedObjectPath {
    path(names::JOB_PARENT, id)
}

pub fn object(object: &Object) -> OwnedObjectPath {
    match object {
        Object::Vm(id) => vm(*id),
        Object::Image(id) => image(*id),
        Object::Kernel(id) => kernel(*id),
    }
}

/// Returns the paths of this owner's objects.
pub fn owned(objects: impl IntoIterator<Item = Object>, owner: Uid, engine: &Engine) -> Vec<OwnedObjectPath> {
    let owner_of = |object: &Object| match object {
        Object::Vm(id) => engine.vm(*id).map(|view| view.vm.owner),
        Object::Image(id) => engine.image(*id).map(|image| image.owner),
        Object::Kernel(id) => engine.kernel(*id).map(|kernel| kernel.owner),
    };
    let owned = objects.into_iter().filter(|object| owner_of(object) == Some(owner));
    owned.map(|found| object(&found)).collect()
}
