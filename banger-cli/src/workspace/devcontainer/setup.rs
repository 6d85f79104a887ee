//! Applies a devcontainer.json to a new sandbox, and remembers what it asks for later.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use super::mounts::Tmpfs;
use super::{
    Devcontainer,
    commands::{Command, Later, Moment},
    fill::{Guest as Values, needs_environment},
    mounts::Mount,
};
use crate::{
    client::service::id_of,
    error::Result,
    guest::agent::Guest,
    ui::{progress::Progress, sanitize},
    workspace::{record::Record, tooling},
};

/// What a workspace keeps of its devcontainer.json.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Setup {
    /// The directory in which commands run, if not that of the repository.
    #[serde(default)]
    pub directory: Option<String>,
    /// Variables that commands do not get.
    #[serde(default)]
    pub unset: BTreeSet<String>,
    /// Variables that may hold something of the user's environment. The configuration of ssh leaves them out.
    #[serde(default)]
    pub private: BTreeSet<String>,
    /// Commands of boots and shells.
    #[serde(flatten)]
    pub later: Later,
    /// File systems to mount at each boot.
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// When the sandbox was started for the last boot that was set up, in microseconds since the Unix epoch.
    #[serde(default)]
    pub boot: u64,
}

impl Setup {
    /// Returns whether a boot needs anything.
    pub fn needs_boot(&self) -> bool {
        !self.later.start.is_empty() || !self.tmpfs.is_empty()
    }
}

/// The commands of a new sandbox, in order.
pub type Creation = Vec<(Moment, Vec<Command>)>;

/// Applies the settings that need no command of the repository: the environment, and the volumes. Returns the commands
/// of the creation; those of `with_commands` false are forgotten.
pub async fn apply(
    container: &Devcontainer,
    guest: &mut Guest,
    record: &mut Record,
    progress: &Progress,
    with_commands: bool,
) -> Result<Creation> {
    let environment = match container.needs_environment() {
        true => tooling::environment(guest, record).await?,
        false => Some(BTreeMap::new()),
    };
    let wanted = match environment {
        Some(_) => container.env.clone(),
        None => {
            progress.note("note: the image has no `env`, so variables with ${containerEnv:…} are not set.");
            container.env.without_references()
        }
    };
    let mut values = Values { id: id_of(guest.vm()), env: environment.unwrap_or_default() };
    let variables = wanted.resolve(&mut values);
    for name in &variables.left {
        progress.note(&format!("note: the variable {} is too long, and is not set.", sanitize::line(name)));
    }
    (record.env, record.setup.unset) = (variables.set, variables.unset);
    record.setup.private = wanted.private;
    record.setup.directory = container.folder.as_ref().map(|folder| folder.directory.clone());
    let mut volumes = Vec::new();
    for mount in &container.mounts {
        match mount {
            Mount::Volume(target) => volumes.push(values.fill(target)),
            Mount::Tmpfs(tmpfs) => record
                .setup
                .tmpfs
                .push(Tmpfs { target: values.fill(&tmpfs.target), options: tmpfs.options.clone() }),
        }
    }
    if let Err(said) = tooling::create_directories(guest, record.owner(), &volumes).await? {
        progress.note(&format!("{said}warning: not all volumes could be created."));
    }
    if !with_commands {
        return Ok(Creation::new());
    }
    let filled = |moment: Moment| -> Vec<Command> {
        let commands = container.commands.get(&moment).into_iter().flatten();
        commands.map(|words| words.iter().map(|word| values.fill(word)).collect()).collect()
    };
    record.setup.later = Later { start: filled(Moment::PostStart), attach: filled(Moment::PostAttach) };
    Ok(Moment::OF_CREATION.into_iter().map(|moment| (moment, filled(moment))).collect())
}

impl Devcontainer {
    /// Returns whether a setting refers to the environment of the sandbox.
    fn needs_environment(&self) -> bool {
        let mut words = self.commands.values().flatten().flatten();
        self.env.needs_environment() || words.any(|word| needs_environment(word))
    }
}
