//! `dev.banger.Manager1.Kernel`: a kernel.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use banger_proto::bus::{ErrorName, names::KERNEL_INTERFACE};
use zbus::{OwnedObjectPath, OwnedVariant, Variant, interface};

use super::{
    border::{Border, Target},
    error::{Error, Result},
    export::{Exported, Kind, Property, border},
    options::Options,
    path,
};
use crate::{
    domain::id::KernelId,
    engine::{Engine, view::KernelView},
};

/// The kind of kernel objects.
#[derive(Clone)]
pub struct KernelKind(pub KernelId);

impl Kind for KernelKind {
    type View = KernelView;
    type Methods = Methods;
    const INTERFACE: &'static str = KERNEL_INTERFACE;
    const SIGNALS: &'static str = "";

    fn properties() -> &'static [Property<KernelView>] {
        PROPERTIES
    }

    fn methods(&self, border: Weak<Border>) -> Methods {
        Methods { border, id: self.0 }
    }

    fn view(&self, engine: &Engine) -> Option<Arc<KernelView>> {
        engine.kernel(self.0)
    }

    fn target(view: &KernelView, _: &Engine) -> Option<Target> {
        let details = vec![("image", view.name.to_string())];
        Some(Target { owner: view.owner, is_shared: view.shared, details })
    }

    fn gone() -> Error {
        Error::new(ErrorName::NoSuchKernel, "there is no such kernel any more")
    }
}

const fn property(
    name: &'static str,
    signature: &'static str,
    constant: bool,
    get: Get,
) -> Property<KernelView> {
    Property { name, signature, constant, get }
}

type Get = fn(&KernelView, &Engine) -> Variant<'static>;

const PROPERTIES: &[Property<KernelView>] = &[
    property("Id", "s", true, |kernel, _| kernel.id.to_string().into()),
    property("Name", "s", false, |kernel, _| kernel.name.to_string().into()),
    property("OwnerUid", "u", false, |kernel, _| kernel.owner.0.into()),
    property("Shared", "b", false, |kernel, _| kernel.shared.into()),
    property("Source", "s", false, |kernel, _| kernel.source.clone().into()),
    property("Digest", "s", false, |kernel, _| kernel.facts.digest.clone().into()),
    property("Version", "s", false, |kernel, _| kernel.facts.release.clone().into()),
    property("Architecture", "s", false, |_, _| std::env::consts::ARCH.into()),
    property("Size", "t", false, |kernel, _| kernel.facts.size.0.into()),
    property("HasModules", "b", false, |kernel, _| (kernel.facts.modules > 0).into()),
    property("CreatedAt", "t", false, |kernel, _| kernel.created_at.0.into()),
    property("UsedBy", "ao", false, |kernel, engine| {
        let users: Vec<OwnedObjectPath> = engine.kernel_users(kernel.id).iter().map(path::object).collect();
        users.into()
    }),
];

/// The methods of a kernel.
pub struct Methods {
    border: Weak<Border>,
    id: KernelId,
}

/// A kernel.
#[interface(name = "dev.banger.Manager1.Kernel", introspection_docs = false)]
impl Methods {
    async fn delete(&self, options: HashMap<String, OwnedVariant>) -> Result<()> {
        Options::new(options).finish()?;
        Ok(border(&self.border)?.engine.delete_kernel(self.id).await?)
    }
}

/// Makes a kernel's object; one that is there stays.
pub async fn export(border: &Arc<Border>, id: KernelId) -> zbus::Result<()> {
    let object = Exported::new(Arc::clone(border), KernelKind(id));
    border.connection.object_server().at(path::kernel(id), object).await.map(drop)
}
