//! Resolves a caller's reference to an object. An object that the caller may not see does not exist for it: the
//! answer reveals nothing about other users' objects.

use std::sync::Arc;

use banger_domain::{id::Uid, name::Reference};
use banger_image::oci::reference::ImageRef;
use banger_proto::bus::{ErrorName, names::action};

use super::{
    api::Api,
    caller::Caller,
    error::{Error, Result},
    item,
};
use crate::engine::{
    HOST_KERNEL,
    error::{self, Kind},
    view::{ImageView, KernelView, VmView},
};

/// Parses a reference.
pub fn parse(text: &str) -> Result<Reference> {
    text.parse().map_err(|error| Error::of(ErrorName::InvalidName, &error))
}

/// The two forms of an image's name.
enum ImageName {
    Local(Reference),
    /// An OCI reference, in a form that no local name has.
    Remote(ImageRef),
}

fn parse_image(text: &str) -> Result<ImageName> {
    match (parse(text), text.parse()) {
        (Ok(local), _) => Ok(ImageName::Local(local)),
        (Err(_), Ok(remote)) => Ok(ImageName::Remote(remote)),
        (Err(error), Err(_)) => Err(error),
    }
}

impl Api {
    /// Finds the VM that the caller means.
    pub async fn find_vm(&self, caller: &Caller, text: &str) -> Result<Arc<VmView>> {
        let reference = parse(text)?;
        let found = self.engine.find_vm(caller.uid, &reference).await;
        let owner = |view: &VmView| (view.vm.owner, false);
        self.reveal(caller, Kind::Vm, text, &reference, found, owner).await
    }

    /// Finds the image that the caller means.
    pub async fn find_image(&self, caller: &Caller, text: &str) -> Result<Arc<ImageView>> {
        let reference = match parse_image(text)? {
            ImageName::Local(reference) => reference,
            ImageName::Remote(reference) => return self.pulled(caller, text, &reference),
        };
        let found = self.engine.find_image(caller.uid, &reference).await;
        if found.is_err()
            && let Ok(reference) = text.parse()
            && let Ok(pulled) = self.pulled(caller, text, &reference)
        {
            return Ok(pulled);
        }
        let owner = |image: &ImageView| (image.owner, image.shared);
        self.reveal(caller, Kind::Image, text, &reference, found, owner).await
    }

    /// Finds the kernel that the caller means.
    pub async fn find_kernel(&self, caller: &Caller, text: &str) -> Result<Arc<KernelView>> {
        let reference = parse(text)?;
        let found = self.engine.find_kernel(caller.uid, &reference).await;
        let owner = |kernel: &KernelView| (kernel.owner, kernel.shared);
        self.reveal(caller, Kind::Kernel, text, &reference, found, owner).await
    }

    /// Finds the image for a sandbox of the caller. It must be the caller's own or shared, because a clone can be
    /// read: permission to see it is not enough.
    pub async fn usable_image(&self, caller: &Caller, text: &str) -> Result<Reference> {
        let reference = match parse_image(text)? {
            ImageName::Local(reference) => reference,
            ImageName::Remote(reference) => {
                return Ok(Reference::IdPrefix(self.pulled(caller, text, &reference)?.id.to_string()));
            }
        };
        let found = match (self.engine.find_image(caller.uid, &reference).await, text.parse()) {
            (Ok(found), _) => found,
            (Err(error), Ok(remote)) => self.pulled(caller, text, &remote).map_err(|_| Error::from(error))?,
            (Err(error), Err(_)) => return Err(error.into()),
        };
        item::usable(&*found, caller, text)
    }

    /// Finds the kernel for a sandbox of the caller: its own, or shared.
    pub async fn usable_kernel(&self, caller: &Caller, text: &str) -> Result<Reference> {
        let reference = parse(text)?;
        match self.engine.find_kernel(caller.uid, &reference).await {
            Ok(found) => item::usable(&*found, caller, text),
            // The first sandbox that uses it imports it.
            Err(error::Error::NoSuch { .. }) if text == HOST_KERNEL => Ok(reference),
            Err(error) => Err(error.into()),
        }
    }

    /// Finds the image that was pulled by an OCI reference.
    fn pulled(&self, caller: &Caller, text: &str, reference: &ImageRef) -> Result<Arc<ImageView>> {
        self.engine.find_pulled(caller.uid, reference).ok_or_else(|| no_such(Kind::Image, text))
    }

    async fn reveal<T>(
        &self,
        caller: &Caller,
        kind: Kind,
        text: &str,
        reference: &Reference,
        found: error::Result<Arc<T>>,
        owner: impl Fn(&T) -> (Uid, bool),
    ) -> Result<Arc<T>> {
        if let Ok(view) = &found {
            let (owner, is_shared) = owner(view);
            if owner == caller.uid || is_shared {
                return Ok(found?);
            }
        }
        match reference {
            // Names are looked up only among objects that the caller may see.
            Reference::Name(_) => Ok(found?),
            // The name service does not answer, and would not answer the next question.
            Reference::Owned { .. } if matches!(found, Err(error::Error::Host(_))) => Ok(found?),
            // The caller names another user's object. It is authorised before the answer, whether the object exists
            // or not, so that a dialog reveals nothing.
            Reference::Owned { .. } => {
                if self.engine.user_of(reference).await? != Some(caller.uid) {
                    self.require(caller, action::VM_VIEW_OTHERS, Vec::new()).await?;
                }
                Ok(found?)
            }
            Reference::IdPrefix(_) => match self.may_view_others(caller).await {
                true => Ok(found?),
                false => Err(no_such(kind, text)),
            },
        }
    }
}

pub(super) fn no_such(kind: Kind, text: &str) -> Error {
    error::Error::NoSuch { kind, reference: text.to_owned() }.into()
}
