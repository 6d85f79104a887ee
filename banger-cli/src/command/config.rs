//! `banger config`.

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use serde_json::{Value, json};

use crate::{
    command::complete,
    error::Result,
    ui::{output, table::Table},
    user::{
        defaults::Key,
        dirs::UserDirs,
        settings::{self, Settings},
        settings_file::SettingsFile,
    },
};

/// The subcommands of `banger config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    Show(Show),
}

impl ConfigCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            ConfigCommand::Show(show) => show.run(),
        }
    }
}

/// Show the settings in effect
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger config show
  banger config show --origin          with the file or the variable that sets each of them
  banger config show --profile work    those in effect with `banger vm run --profile work`

Your settings are in ~/.config/banger/config.toml, those of the service in /etc/banger/config.toml.
An option of the command line counts first, then the variable BANGER_OPTION, the profile, and
[defaults].")]
pub struct Show {
    /// Show where each setting comes from
    #[arg(long)]
    origin: bool,
    /// Show what is in effect with this profile [default: that in BANGER_PROFILE]
    #[arg(long, value_name = "PROFILE", add = ArgValueCompleter::new(complete::profiles))]
    profile: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    fn run(&self) -> Result<u8> {
        let path = UserDirs::of_caller()?.settings();
        let (file, settings) = (settings::read(&path)?, Settings::with_profile(self.profile.as_deref())?);
        let rows = rows(&settings, &file, &path.display().to_string());
        if self.json {
            let object = rows.into_iter().map(|Row { key, value, origin, .. }| {
                let entry = if self.origin { json!({"value": value, "origin": origin}) } else { value };
                (key.to_owned(), entry)
            });
            output::json(&Value::Object(object.collect()))?;
            return Ok(0);
        }
        let mut table = Table::pairs();
        for Row { key, shown, origin, .. } in rows {
            let origin = if self.origin { format!("  ({origin})") } else { String::new() };
            table.row([key.to_owned(), format!("{shown}{origin}")]);
        }
        output::text(&table.text())?;
        Ok(0)
    }
}

/// A setting, its value for programs and for people, and where it comes from.
struct Row {
    key: &'static str,
    value: Value,
    shown: String,
    origin: String,
}

const DEFAULT: &str = "default";

fn rows(settings: &Settings, file: &SettingsFile, path: &str) -> Vec<Row> {
    let row = |key, value: Value, origin: &str| {
        let shown = if value.is_null() { "-".to_owned() } else { value.to_string() };
        Row { key, value, shown, origin: origin.to_owned() }
    };
    let of_file = |is_set| if is_set { path } else { DEFAULT };
    let files: Vec<Value> = settings
        .file_sync
        .iter()
        .map(|file| json!({"host": file.host, "guest": file.guest, "mode": file.mode}))
        .collect();
    let (profile, chosen) = match &settings.profile {
        Some((name, origin)) => (Value::from(name.as_str()), *origin),
        None => (Value::Null, DEFAULT),
    };
    let mut rows = vec![
        row("profile", profile, chosen),
        row("git_identity", settings.git_identity.into(), of_file(file.git_identity.is_some())),
        row("file_sync", files.into(), of_file(file.file_sync.is_some())),
    ];
    rows.extend(Key::all().map(|key| {
        // Without a setting, the service decides on the others.
        let usual = match key {
            Key::Timezone => json!(settings.timezone),
            Key::Wait => json!(settings.wait),
            Key::AutoPrepare => json!(settings.auto_prepare),
            _ => Value::Null,
        };
        match settings.defaults.get(key) {
            Some((value, origin)) => {
                Row { shown: value.to_string(), ..row(key.name(), value.json(), origin) }
            }
            None => row(key.name(), usual, DEFAULT),
        }
    }));
    rows
}
