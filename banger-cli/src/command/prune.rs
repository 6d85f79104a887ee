//! Shared code of `vm prune` and `image prune`.

use std::io::{self, BufRead, IsTerminal};

use clap::Args;

use crate::{
    client::object::{self, Object},
    command::batch,
    error::{Error, Result},
    ui::{output, terminal},
};

/// The options of a command that deletes what is not used.
#[derive(Debug, Clone, Copy, Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Print the names of what would be deleted, and delete nothing
    #[arg(long, conflicts_with = "force")]
    dry_run: bool,
}

/// What is to be deleted, by id: a name may be reused meanwhile.
pub struct Chosen {
    pub ids: Vec<String>,
    pub names: Vec<String>,
}

impl PruneArgs {
    /// Asks whether to delete these objects with what they contain, unless the user has said so. Returns none if there
    /// is nothing left to do.
    pub fn choose(&self, mut objects: Vec<Object>, contents: &str, json: bool) -> Result<Option<Chosen>> {
        object::sort(&mut objects);
        let names: Vec<String> = objects.iter().map(|object| object.name().to_owned()).collect();
        if json && (self.dry_run || names.is_empty()) {
            let row = |object: &Object| batch::untouched(object.name(), object.text("Id"));
            output::json(&objects.iter().map(row).collect())?;
            return Ok(None);
        }
        if self.dry_run {
            output::text(&names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
        }
        if self.dry_run || names.is_empty() {
            return Ok(None);
        }
        if !self.force && !ask(&names, contents)? {
            return Err(Error::Refused("nothing was deleted".to_owned()));
        }
        let ids = objects.iter().map(|object| object.text("Id").to_owned()).collect();
        Ok(Some(Chosen { ids, names }))
    }
}

fn ask(names: &[String], contents: &str) -> Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Error::Refused("there is no terminal to ask on".to_owned())
            .with_hint("`--force` deletes them without asking; `--dry-run` lists them."));
    }
    let failed = |source| Error::io("ask on the terminal", source);
    terminal::question(&format!("Delete {}{contents}? [y/N]", names.join(", "))).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
