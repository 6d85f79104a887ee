//! `dev.banger.Manager1.Kernel`: a kernel.

use std::sync::{Arc, Weak};

use banger_domain::id::KernelId;
use banger_proto::bus::{
    ErrorName,
    names::{KERNEL_INTERFACE, detail},
};
use zbus::{OwnedObjectPath, Variant, interface};

use super::{
    border::{Border, Target},
    error::{Error, Result},
    export::{
        Change::{self, Never, Told, Untold},
        Kind, Property, border,
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

    fn methods(&self, border: Weak<Border>) -> Methods {
        Methods { border, id: self.0 }
    }

    fn view(&self, engine: &Engine) -> Option<Arc<KernelView>> {
        engine.kernel(self.0)
    }

    fn target(view: &KernelView, _: &Border) -> Option<Target> {
        let details = vec![(detail::IMAGE, view.name.to_string())];
        let object = format!("kernel {}", view.name);
        Some(Target { owner: view.owner, is_shared: view.shared, guest: None, object, details })
    }

    fn gone() -> Error {
        Error::new(ErrorName::NoSuchKernel, "there is no such kernel any more")
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
    property("Name", "s", Told, |kernel, _| kernel.name.to_string().into()),
    property("OwnerUid", "u", Told, |kernel, _| kernel.owner.0.into()),
    property("Shared", "b", Told, |kernel, _| kernel.shared.into()),
    property("Source", "s", Told, |kernel, _| kernel.source.clone().into()),
    property("Digest", "s", Told, |kernel, _| kernel.facts.digest.clone().into()),
    property("Version", "s", Told, |kernel, _| kernel.facts.release.clone().into()),
    property("Architecture", "s", Told, |_, _| std::env::consts::ARCH.into()),
    property("Size", "t", Told, |kernel, _| kernel.facts.size.0.into()),
    property("HasModules", "b", Told, |kernel, _| (kernel.facts.modules > 0).into()),
    property("ModuleTreeSize", "t", Told, |kernel, _| kernel.facts.module_tree.0.into()),
    property("CreatedAt", "t", Told, |kernel, _| kernel.created_at.0.into()),
    property("UsedBy", "ao", Untold, |kernel, engine| {
        path::owned(engine.kernel_users(kernel.id), kernel.owner, engine).into()
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
    async fn delete(&self, options: Dict) -> Result<()> {
        Options::new(options).finish()?;
        Ok(border(&self.border)?.engine.delete_kernel(self.id).await?)
    }
}
