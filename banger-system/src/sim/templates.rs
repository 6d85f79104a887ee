//! Templates in memory. Each VM has a key of its processors and its memory.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use banger_domain::launch_spec::LaunchSpec;

use super::Sim;
use crate::ports::{
    Check, FromHost as _, HostError,
    templates::{Kept, Result, TemplateKey, Templates},
    vmm::{self, Capture},
};

/// What a host in memory has of templates.
#[derive(Default)]
pub(super) struct State {
    kept: BTreeSet<TemplateKey>,
    quarantined: BTreeSet<TemplateKey>,
    /// How many VMs continued from one.
    children: u32,
    /// VMs do not continue from them.
    misfit: bool,
    /// There is no room for any.
    full: bool,
    /// Kernels have the drivers of disks built in.
    built_in_drivers: bool,
    /// A package has replaced QEMU.
    upgraded: bool,
}

impl Sim {
    /// Returns how many templates are kept, and how many were moved aside.
    pub fn templates(&self) -> (usize, usize) {
        let state = self.lock();
        (state.templates.kept.len(), state.templates.quarantined.len())
    }

    /// Returns how many VMs continued from a template.
    pub fn children(&self) -> u32 {
        self.lock().templates.children
    }

    /// Makes VMs not continue from templates, or continue again.
    pub fn break_templates(&self, broken: bool) {
        self.lock().templates.misfit = broken;
    }

    /// Leaves no room for templates.
    pub fn fill_templates(&self) {
        self.lock().templates.full = true;
    }

    /// Builds the drivers of disks into kernels.
    pub fn build_in_drivers(&self) {
        self.lock().templates.built_in_drivers = true;
    }

    /// Replaces the VMM by another version.
    pub fn upgrade_vmm(&self) {
        self.lock().templates.upgraded = true;
    }

    pub(super) fn has_built_in_drivers(&self) -> bool {
        self.lock().templates.built_in_drivers
    }

    /// Returns the key of a VM.
    pub(super) fn key_of(&self, spec: &LaunchSpec) -> TemplateKey {
        let version = if self.lock().templates.upgraded { "2" } else { "1" };
        TemplateKey {
            files: [(spec.kernel.clone(), String::new())].into(),
            host: vec![version.to_owned()],
            arguments: vec![spec.vcpus.to_string(), spec.memory.to_string()],
        }
    }

    /// Counts a VM that continues from a template.
    pub(super) fn continue_child(&self) -> vmm::Result<()> {
        let mut state = self.step("continue from a template")?;
        if state.templates.misfit {
            return Err(vmm::Error::Failed { message: "the state does not fit".to_owned() });
        }
        state.templates.children += 1;
        Ok(())
    }
}

/// Returns a capture of nothing.
pub(super) fn empty_capture() -> Result<Capture> {
    let null = || rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let os = |error| HostError::os("open /dev/null", error);
    Ok(Capture { state: null().map_err(os)?, memory: null().map_err(os)? })
}

#[async_trait]
impl Templates for Sim {
    async fn tidy(&self) -> Result<usize> {
        Ok(0)
    }

    async fn load(&self, key: &TemplateKey) -> Result<Option<Arc<Capture>>> {
        let is_kept = self.lock().templates.kept.contains(key);
        is_kept.then(empty_capture).transpose().map(|capture| capture.map(Arc::new))
    }

    async fn keep(&self, key: &TemplateKey, _capture: &Capture) -> Result<Kept> {
        let mut state = self.step("keep a template")?;
        if state.templates.full {
            return Ok(Kept::TooLarge);
        }
        state.templates.kept.insert(key.clone());
        Ok(Kept::Yes)
    }

    async fn quarantine(&self, key: &TemplateKey) -> Result<()> {
        let mut state = self.lock();
        state.templates.kept.remove(key);
        state.templates.quarantined.insert(key.clone());
        Ok(())
    }

    async fn checks(&self) -> Vec<Check> {
        Vec::new()
    }
}
