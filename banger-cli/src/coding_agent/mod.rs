//! Presets of coding agents: how one runs in a sandbox, in one file.
//!
//! ```text
//!   ~/.config/banger/agents ─┐                    ┌─ image, or a recipe that is built once
//!   /etc/banger/agents.d     ├─ find ─► preset ───┼─ sizes, egress, command ─► a run
//!   /usr/share/banger/agents ┘                    └─ files and variables of the user
//!                                                                  │ at its end
//!                                       work tree ◄── bring_back ◄─┘
//! ```
//!
//! - A preset can ask for nothing that `banger vm run` cannot: it becomes options of that command. It never comes from a
//!   repository.
//! - It names files of the user's home only. Those with secrets are copied only if the user says so for this run.
//! - Variables are named, and their values go to the command, over the stream of the guest's agent. They are written
//!   nowhere.

mod bring_back;
mod find;
mod preset;

use zbus::OwnedObjectPath;

pub use self::{
    bring_back::{Apply, Work, bring_back},
    find::{Found, all, named, names},
    preset::{Image, Preset},
};
use crate::{
    build::{self, Once, Reporter},
    client::{
        bus::Bus,
        job::Jobs,
        service::{Kind, id_of},
    },
    command::vm::vm_args::VmArgs,
    error::Result,
    ui::{progress::Progress, signals::Listener},
};

/// What a run of a coding agent does in addition to one of another command.
#[derive(Debug, Clone)]
pub struct AgentRun {
    /// The preset.
    pub preset: Preset,
    /// Whether its image is built although there is one.
    pub build: bool,
    /// Whether the user has named another image.
    pub image_is_given: bool,
    /// Whether its changes are applied at the end.
    pub apply: Apply,
}

impl AgentRun {
    /// Returns the name of the image that the preset chooses, if it does.
    pub fn image_name(&self) -> Option<String> {
        match &self.preset.image {
            _ if self.image_is_given => None,
            Image::Default => None,
            Image::Named(name) => Some(name.clone()),
            Image::Recipe(_) => Some(self.preset.image_name()),
        }
    }

    /// Returns the image of the sandbox, if the preset chooses it. One that comes from a recipe is built if it is missing,
    /// unless the service would refuse the sandbox.
    pub async fn image(
        &self,
        bus: &Bus,
        jobs: &Jobs,
        progress: &Progress,
        listener: &mut Listener,
        vm_args: &VmArgs,
    ) -> Result<Option<String>> {
        let name = match self.image_name() {
            None => return Ok(None),
            Some(name) => name,
        };
        let Image::Recipe(recipe) = &self.preset.image else { return Ok(Some(name)) };
        let reporter = Reporter::new(progress.clone(), false);
        let found = match bus.find(Kind::Image, &name).await {
            _ if self.build => None,
            Ok(image) => Some(image),
            Err(error) if build::is_missing(&error) => None,
            Err(error) => return Err(error),
        };
        if let Some(image) = found {
            if self.is_outdated(bus, &image).await? {
                progress.note(&format!(
                    "note: the image {name} was built from another version of the preset; `--build` builds it again."
                ));
            }
            return Ok(Some(id_of(&image)));
        }
        vm_args.check(bus).await?;
        // A build creates a sandbox, too.
        let title = format!("the image {name}");
        let wanted = Once { recipe, name: &name, title, replace: self.build };
        let built = Box::pin(build::once(bus, jobs, &reporter, listener, &wanted)).await?;
        Ok(Some(id_of(&built)))
    }

    /// Returns whether the image was built from another recipe than that of the preset.
    async fn is_outdated(&self, bus: &Bus, image: &OwnedObjectPath) -> Result<bool> {
        let Image::Recipe(recipe) = &self.preset.image else { return Ok(false) };
        let properties = bus.properties(image, Kind::Image.interface()).await?;
        Ok(build::digest_of(&properties).is_none_or(|digest| digest != recipe.digest))
    }
}
