//! `banger schema`.

use clap::Args;

use crate::{
    error::{Error, Result},
    ui::{output, schema},
};

/// Print the schema of what a command prints with --json
///
/// It is a JSON Schema (draft 2020-12). Without a command, banger lists the commands that have one. Later
/// versions may add keys to objects, and remove none.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger schema
  banger schema vm list
  banger schema vm show | jq '.properties.state.enum'")]
pub struct Schema {
    /// Command, such as vm list
    #[arg(value_name = "COMMAND")]
    verb: Vec<String>,
}

impl Schema {
    pub fn run(&self) -> Result<u8> {
        if self.verb.is_empty() {
            output::text(&schema::verbs().map(|verb| format!("{verb}\n")).collect::<String>())?;
            return Ok(0);
        }
        let verb = self.verb.join(" ");
        let schema = schema::of_verb(&verb).ok_or_else(|| {
            Error::Usage(format!("{verb} has no schema"))
                .with_hint("`banger schema` lists the commands that have one.")
        })?;
        output::json(&schema)?;
        Ok(0)
    }
}
