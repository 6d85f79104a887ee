//! `dev.banger.Manager1.Kernel`: a kernel.

use std::sync::{Arc, Weak};

use banger_domain::id::KernelId;
use banger_proto::bus::{
    ErrorName,
    names::{KERNEL_INTERFACE, detail},
};
use zbus::{OwnedObjectPath, Variant, interface};

use super::{
    api::{Api, Target},
    error::{Error, Result},
    export::{
        Change::{self, Never, Signaled, Silent},
        Kind, Property, api,
    },
    options::{Dict, Options},
    path,
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

    fn target(view: &KernelView, _: &Api) -> Option<Target> {
        let details = vec![(detail::IMAGE, view.name.to_string())];
        let object = format!("kernel {}", view.name);
        Some(Target { owner: view.owner, is_shared: view.shared, creator: None, object, details })
    }

    fn gone() -> Error {
        Error::new(ErrorName::NoSuchKernel, "the kernel has been deleted")
    }
}

const fn property(
    name: &'static str,
    signature: &'static str,
    change: Change,
    get: Get,
) -> Property<KernelView> {
    Property { name, signature, change, get }
}

type Get = fn(&KernelView, &Engine) -> Variant<'static>;

const PROPERTIES: &[Property<KernelView>] = &[
    property("Id", "s", Never, |kernel, _| kernel.id.to_string().into()),
    property("Name", "s", Signaled, |kernel, _| kernel.name.to_string().into()),
    property("OwnerUid", "u", Signaled, |kernel, _| kernel.owner.0.into()),
    property("Shared", "b", Signaled, |kernel, _| kernel.shared.into()),
    property("Source", "s", Signaled, |kernel, _| kernel.source.clone().into()),
    property("Digest", "s", Signaled, |kernel, _| kernel.facts.digest.clone().into()),
    property("Version", "s", Signaled, |kernel, _| kernel.facts.release.clone().into()),
    property("Architecture", "s", Signaled, |_, _| std::env::consts::ARCH.into()),
    property("Size", "t", Signaled, |kernel, _| kernel.facts.size.0.into()),
    property("HasModules", "b", Signaled, |kernel, _| (kernel.facts.modules > 0).into()),
    property("ModuleTreeSize", "t", Signaled, |kernel, _| kernel.facts.module_tree.0.into()),
    property("CreatedAt", "t", Signaled, |kernel, _| kernel.created_at.0.into()),
    property("UsedBy", "ao", Silent, |kernel, engine| {
        path::owned(engine.kernel_users(kernel.id), kernel.owner, engine).into()
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
}
