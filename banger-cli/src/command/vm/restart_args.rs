//! When a sandbox starts by itself: options that `vm run`, `vm create` and `vm set` share.

use banger_proto::bus::{
    option::{create, restart},
    proxy::Options,
};
use clap::Args;
use zbus::Variant;

use crate::user::defaults::{Defaults, Key};

/// When a sandbox starts by itself.
#[derive(Debug, Clone, Default, Args)]
pub struct RestartArgs {
    /// Start the sandbox again when it ends: `no`, `on-failure` if its VMM or its kernel failed, or `always` unless you
    /// stop it. With `always`, it also starts when the host boots
    #[arg(long, value_name = "POLICY", value_parser = [restart::NO, restart::ON_FAILURE, restart::ALWAYS])]
    restart: Option<String>,
    /// Start the sandbox when the host boots
    #[arg(long, overrides_with = "no_autostart")]
    autostart: bool,
    /// Do not start the sandbox when the host boots
    #[arg(long, overrides_with = "autostart")]
    no_autostart: bool,
}

impl RestartArgs {
    /// The ids of the options.
    pub const IDS: [&str; 3] = ["restart", "autostart", "no_autostart"];

    /// Returns the same options, with the user's defaults for those that were not given.
    pub fn with(&self, defaults: &Defaults) -> Self {
        let restart = self.restart.clone().or_else(|| defaults.text(Key::Restart).map(str::to_owned));
        let autostart =
            self.autostart || (!self.no_autostart && defaults.switch(Key::Autostart).unwrap_or_default());
        Self { restart, autostart, no_autostart: self.no_autostart }
    }

    /// Returns what was given, as options of `CreateVM` and `Configure`.
    pub fn options(&self) -> Options<'_> {
        let mut options = Options::new();
        if let Some(policy) = &self.restart {
            options.insert(create::RESTART, Variant::from(policy.as_str()));
        }
        if self.autostart || self.no_autostart {
            options.insert(create::AUTOSTART, Variant::from(self.autostart));
        }
        options
    }
}
