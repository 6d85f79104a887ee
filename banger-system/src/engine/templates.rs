//! Kernel templates: which starts use one, and how they are made.
//!
//! ```text
//!   first start of a key      boots ──► its guest is ready ──► a template is made in the background
//!   later starts              continue from the template
//!   one of them fails         the template is moved aside, and the same start boots, as do all later ones
//! ```
//!
//! A template is captured from a VM of its own, which belongs to root and has no disk, no network and no identity. Its
//! unit and its directory are in the ledger, so recovery removes them like those of any VM without a row. One template
//! is made at a time, and only for kernels that all users share. A key whose template could not be made, or failed, gets no other one in this run of the service.

use std::{
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use banger_domain::{
    id::{KernelId, Uid, VmId},
    launch_spec::LaunchSpec,
    resource::Resource,
    vmm::{VmmChoice, VmmKind},
};
use banger_image::record::Kernel;
use futures_util::FutureExt as _;

use super::{
    Shared,
    error::{Error, Result, one_line},
    lease::Lease,
};
use crate::ports::{
    FromHost as _, HostError,
    templates::{Kept, TemplateKey},
    vmm::Capture,
};

/// How long the guest of a template may take until it waits for its configuration.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long making a template may take. Nothing waits for it.
const MAKE_TIMEOUT: Duration = Duration::from_secs(300);

/// How many failed keys are remembered. Users choose the sizes in them.
const MOST_FAILED: usize = 64;

/// The template of a start.
#[derive(Clone)]
pub(super) struct Template {
    pub(super) key: TemplateKey,
    /// None if it was not made yet.
    pub(super) capture: Option<Arc<Capture>>,
}

/// What is known about the making of templates.
#[derive(Default)]
pub(super) struct Making {
    /// Held while one is made.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The keys whose templates could not be made, or failed.
    failed: Mutex<BTreeSet<TemplateKey>>,
    /// The VM in which one is made.
    vm: Mutex<Option<VmId>>,
}

impl Making {
    fn set_vm(&self, vm: Option<VmId>) {
        *self.vm.lock().unwrap_or_else(PoisonError::into_inner) = vm;
    }
}

impl Shared {
    /// Returns the template of a VM, once its VMM is chosen. None if this VM or this host has no templates. A kernel of
    /// one user has none: its VM would belong to root, outside the quota of that user.
    pub(super) async fn template_of(&self, spec: &LaunchSpec, kernel: KernelId) -> Option<Template> {
        let is_shared = self.inventory.item::<Kernel>(kernel).is_some_and(|kernel| kernel.shared);
        if !self.settings.templates || !is_shared {
            return None;
        }
        let found = async {
            let key = self.ports.vmm.template_key(spec).await?;
            let Some(key) = key.filter(|key| !self.has_failed(key)) else { return Ok(None) };
            let capture = self.ports.templates.load(&key).await?;
            Ok::<_, Error>(Some(Template { key, capture }))
        };
        found.await.unwrap_or_else(|error| {
            tracing::warn!(vm = %spec.vm, error = %one_line(&error), "cannot look for a template");
            None
        })
    }

    /// Moves a template aside that a start failed with. The next one would most likely fail too.
    pub(super) async fn distrust_template(&self, key: &TemplateKey, cause: &Error) {
        tracing::warn!(error = %one_line(cause), "cannot start from a template; it is not used any more");
        if let Err(error) = self.ports.templates.quarantine(key).await {
            tracing::error!(error = %one_line(&error), "cannot move a template aside");
        }
        self.note_failed(key.clone());
    }

    /// Removes the templates that no start can use, unless one is being made. Returns how many were removed.
    pub(super) async fn tidy_templates(&self) -> Result<usize> {
        match self.making.turn.try_lock() {
            Ok(_turn) => Ok(self.ports.templates.tidy().await?),
            Err(_) => Ok(0),
        }
    }

    /// Makes the template for VMs like this one in the background, unless another is being made.
    pub(super) fn make_template(self: &Arc<Self>, key: TemplateKey, like: LaunchSpec) {
        let Ok(turn) = Arc::clone(&self.making.turn).try_lock_owned() else { return };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            // Another start may have made it, or failed with it, while this one booted.
            if shared.has_failed(&key) || !matches!(shared.ports.templates.load(&key).await, Ok(None)) {
                return;
            }
            let begun = Instant::now();
            match shared.make_template_now(&key, like).await {
                Ok(Kept::Yes) => {
                    let made_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(made_ms, "made a template");
                }
                Ok(Kept::TooLarge) => {
                    tracing::warn!("a template does not fit into the room for templates");
                    shared.note_failed(key);
                }
                Err(error) => {
                    tracing::warn!(error = %one_line(&error), "cannot make a template");
                    shared.note_failed(key);
                }
            }
            drop(turn);
        });
    }

    async fn make_template_now(&self, key: &TemplateKey, like: LaunchSpec) -> Result<Kept> {
        let vm = VmId::random();
        let spec = LaunchSpec {
            vm,
            owner: Uid::ROOT,
            name: "template".to_owned(),
            // Only this VMM has templates.
            vmm: VmmChoice::Only(VmmKind::Qemu),
            ..like
        };
        let mut lease = Lease::new(vm, self.ports.clone(), self.problems.clone());
        self.making.set_vm(Some(vm));
        let capture = AssertUnwindSafe(self.capture(&mut lease, &spec)).catch_unwind();
        let made = tokio::time::timeout(MAKE_TIMEOUT, capture).await;
        // What cannot be released is a problem, and tried again.
        lease.release_all().await;
        self.making.set_vm(None);
        let late = |_| HostError::timeout("making a template", MAKE_TIMEOUT);
        let capture = made.map_err(late)?.unwrap_or_else(|_| Err(Error::Bug))?;
        Ok(self.ports.templates.keep(key, &capture).await?)
    }

    /// Boots a guest until it waits for its configuration, and captures it.
    async fn capture(&self, lease: &mut Lease, spec: &LaunchSpec) -> Result<Capture> {
        let ports = &self.ports;
        lease.hold(Resource::Disks, ports.disks.create_directory(spec.vm)).await?;
        let jail = lease.hold(Resource::Sockets, ports.vmm.jail_spec(spec)).await?;
        let jail = lease.hold(Resource::Unit, ports.supervisor.start_jail(jail)).await?;
        jail.run(ports.vmm.prepare_template(spec).await?).await?;
        if ports.guest.wait_unconfigured(spec.vm, WAIT_TIMEOUT).await?.early_devices {
            let message = "the kernel has drivers of disks or network interfaces built in".to_owned();
            return Err(Error::Unsupported { message });
        }
        Ok(ports.vmm.capture(spec.vm).await?)
    }

    /// Returns whether a template is made in this VM, which has no row.
    pub(super) fn makes_template_in(&self, vm: VmId) -> bool {
        *self.making.vm.lock().unwrap_or_else(PoisonError::into_inner) == Some(vm)
    }

    fn has_failed(&self, key: &TemplateKey) -> bool {
        self.making.failed.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    fn note_failed(&self, key: TemplateKey) {
        let mut failed = self.making.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= MOST_FAILED {
            failed.clear();
        }
        failed.insert(key);
    }
}
