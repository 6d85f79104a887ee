//! What the objects of images and kernels have in common.

use std::sync::Arc;

use banger_domain::{id::Uid, name::Reference};
use banger_proto::bus::names::detail;
use zbus::Variant;

use super::{api::Target, caller::Caller, error::Result, export::Reader, path, reference::no_such};
use crate::engine::view::{Item, Object};

pub fn id<I: Item>(item: &I, _: &Reader<'_>) -> Variant<'static> {
    item.id().to_string().into()
}

pub fn name<I: Item>(item: &I, _: &Reader<'_>) -> Variant<'static> {
    item.name().to_string().into()
}

pub fn owner<I: Item>(item: &I, _: &Reader<'_>) -> Variant<'static> {
    item.owner().0.into()
}

pub fn shared<I: Item>(item: &I, _: &Reader<'_>) -> Variant<'static> {
    item.is_shared().into()
}

pub fn source<I: Item>(item: &I, _: &Reader<'_>) -> Variant<'static> {
    item.source().to_owned().into()
}

pub fn digest<I: Item>(item: &I, _: &Reader<'_>) -> Variant<'static> {
    item.digest().to_owned().into()
}

pub fn created_at<I: Item>(item: &I, _: &Reader<'_>) -> Variant<'static> {
    item.created_at().0.into()
}

/// Every image and kernel runs on this host.
pub fn architecture<I: Item>(_: &I, _: &Reader<'_>) -> Variant<'static> {
    std::env::consts::ARCH.into()
}

/// Returns those of its users that the reader may know: of a shared one the reader's own, else the owner's.
pub fn used_by<I: Item>(
    item: &I,
    users: impl IntoIterator<Item = Object>,
    reader: &Reader<'_>,
) -> Variant<'static> {
    let owner = if item.is_shared() { reader.uid } else { Some(item.owner()) };
    owner.map(|owner| path::owned(users, owner, reader.engine)).unwrap_or_default().into()
}

/// Returns its owner and name for dialogs.
pub fn target<I: Item>(item: &I) -> Target {
    Target {
        owner: item.owner(),
        is_shared: item.is_shared(),
        creator: None,
        object: format!("{} {}", I::KIND.noun(), item.name()),
        details: vec![(detail::IMAGE, item.name().to_string())],
    }
}

/// Returns those that the caller may use, or all, the oldest first.
pub fn visible<I: Item>(mut items: Vec<Arc<I>>, caller: &Caller, all: bool) -> Vec<Arc<I>> {
    items.retain(|item| all || item.is_shared() || item.owner() == caller.uid);
    items.sort_by_key(|item| (item.created_at(), item.id()));
    items
}

/// Returns a reference to an object for a sandbox of the caller. It must be the caller's own or shared: permission to
/// see it is not enough.
pub fn usable<I: Item>(item: &I, caller: &Caller, text: &str) -> Result<Reference> {
    match item.owner() == caller.uid || item.is_shared() || caller.uid == Uid::ROOT {
        true => Ok(Reference::IdPrefix(item.id().to_string())),
        false => Err(no_such(I::KIND, text)),
    }
}
