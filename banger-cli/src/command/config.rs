//! `banger config`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    error::Result,
    ui::{output, table::Table},
    user::{dirs::UserDirs, settings::Settings},
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
  banger config show --origin    with the file that sets each of them

Your settings are in ~/.config/banger/config.toml; those of the service in /etc/banger/config.toml.")]
pub struct Show {
    /// Show where each setting comes from
    #[arg(long)]
    origin: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    fn run(&self) -> Result<u8> {
        let (settings, path) = (Settings::of_caller()?, UserDirs::of_caller()?.settings());
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let set: toml::Table = text.parse().unwrap_or_default();
        let files: Vec<Value> = settings
            .file_sync
            .iter()
            .map(|file| json!({"host": file.host, "guest": file.guest, "mode": file.mode}))
            .collect();
        let rows = [
            ("auto_prepare", Value::from(settings.auto_prepare)),
            ("git_identity", Value::from(settings.git_identity)),
            ("file_sync", Value::from(files)),
            ("timezone", Value::from(settings.timezone)),
            ("wait", json!(settings.wait)),
        ];
        let origin =
            |key: &str| if set.contains_key(key) { path.display().to_string() } else { "default".to_owned() };
        if self.json {
            let object = rows.into_iter().map(|(key, value)| {
                let entry = if self.origin { json!({"value": value, "origin": origin(key)}) } else { value };
                (key.to_owned(), entry)
            });
            output::json(&Value::Object(object.collect()))?;
            return Ok(0);
        }
        let mut table = Table::pairs();
        for (key, value) in rows {
            let value = if self.origin { format!("{value}  ({})", origin(key)) } else { value.to_string() };
            table.row([key.to_owned(), value]);
        }
        output::text(&table.text())?;
        Ok(0)
    }
}
