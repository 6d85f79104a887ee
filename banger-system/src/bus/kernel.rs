//! `dev.banger.Manager1.Kernel`: a kernel.

use std::sync::{Arc, Weak};

use banger_domain::id::KernelId;
use banger_proto::bus::{ErrorName, names::KERNEL_INTERFACE};
use zbus::{OwnedObjectPath, interface};

use super::{
    api::{Api, Target},
    error::{Error, Result},
    export::{
        Change::{Never, Signaled, Silent},
        Kind, Property, api, property,
    },
    item,
    options::{Dict, Options},
    path,
    request::parse_name,
};
use crate::engine::{Engine, view::KernelView};

/// The kind of kernel objects.
#[derive(Clone)]
pub struct KernelKind(pub KernelId);

impl Kind for KernelKind {
    type View = KernelView;
    type Methods = Methods;
    const INTERFACE: &'static str = KERNEL_INTERFACE;
    const SIGNALS: &'static str = "";

    fn path(&self) -> OwnedObjectPath {
        path::kernel(self.0)
    }

    fn properties() -> &'static [Property<KernelView>] {
        PROPERTIES
    }

    fn methods(&self, api: Weak<Api>) -> Methods {
        Methods { api, id: self.0 }
    }

    fn view(&self, engine: &Engine) -> Option<Arc<KernelView>> {
        engine.kernel(self.0)
    }

    fn target(kernel: &KernelView, _: &Api) -> Option<Target> {
        Some(item::target(kernel))
    }

    fn gone() -> Error {
        Error::new(ErrorName::NoSuchKernel, "the kernel has been deleted")
    }
}

const PROPERTIES: &[Property<KernelView>] = &[
    property("Id", "s", Never, item::id),
    property("Name", "s", Signaled, item::name),
    property("OwnerUid", "u", Signaled, item::owner),
    property("Shared", "b", Signaled, item::shared),
    property("Source", "s", Signaled, item::source),
    property("Digest", "s", Signaled, item::digest),
    property("Version", "s", Signaled, |kernel, _| kernel.facts.release.clone().into()),
    property("Architecture", "s", Signaled, item::architecture),
    property("Size", "t", Signaled, |kernel, _| kernel.facts.size.0.into()),
    property("HasModules", "b", Signaled, |kernel, _| (kernel.facts.modules > 0).into()),
    property("ModuleTreeSize", "t", Signaled, |kernel, _| kernel.facts.module_tree.0.into()),
    property("CreatedAt", "t", Signaled, item::created_at),
    property("UsedBy", "ao", Silent, |kernel, reader| {
        item::used_by(kernel, reader.engine.kernel_users(kernel.id), reader)
    }),
];

/// The methods of a kernel.
pub struct Methods {
    api: Weak<Api>,
    id: KernelId,
}

/// A kernel.
#[interface(name = "dev.banger.Manager1.Kernel", introspection_docs = false)]
impl Methods {
    async fn delete(&self, options: Dict) -> Result<()> {
        Options::new(options).finish()?;
        Ok(api(&self.api)?.engine.delete_kernel(self.id).await?)
    }

    async fn rename(&self, name: String) -> Result<()> {
        Ok(api(&self.api)?.engine.rename_kernel(self.id, &parse_name(&name)?).await?)
    }
}
