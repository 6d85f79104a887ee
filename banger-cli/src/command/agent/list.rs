//! `banger agent list`.

use clap::Args;
use serde_json::Value;

use super::show::json_of;
use crate::{
    coding_agent,
    error::Result,
    ui::{output, table::Table},
};

/// List the presets of coding agents
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger agent list
  banger agent list --json

FROM says whose preset it is: yours, the administrator's or the package's.")]
pub struct List {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl List {
    pub fn run(&self) -> Result<u8> {
        let mut found = Vec::new();
        for preset in coding_agent::all()? {
            match preset {
                Ok(preset) => found.push(preset),
                // The others are of use.
                Err(error) => error.print(None),
            }
        }
        if self.json {
            output::json(&found.iter().map(json_of).collect::<Value>())?;
            return Ok(0);
        }
        let mut table = Table::new(["NAME", "FROM", "COMMAND", "DESCRIPTION"]);
        for coding_agent::Found { preset, origin, .. } in found {
            let origin = origin.word().to_owned();
            table.row([preset.name, origin, preset.command.join(" "), preset.description]);
        }
        output::text(&table.text())?;
        Ok(0)
    }
}
