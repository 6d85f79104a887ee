//! Object paths: a parent for each kind, and the id.

use std::fmt::Display;

use banger_proto::bus::names;
use zbus::OwnedObjectPath;

use crate::{
    domain::id::{ImageId, JobId, KernelId, VmId},
    engine::view::Object,
};

/// Ids are hexadecimal, and so every path is valid.
fn path(parent: &str, id: impl Display) -> OwnedObjectPath {
    OwnedObjectPath::try_from(format!("{parent}/{id}")).unwrap_or_default()
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
