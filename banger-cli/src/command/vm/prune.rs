//! `banger vm prune`.

use std::io::{self, BufRead, IsTerminal, Write};

use banger_proto::bus::names::VM_INTERFACE;
use clap::Args;

use super::change::{self, ChangeArgs};
use crate::{
    client::{
        bus::Bus,
        object::{self, Object},
    },
    command::batch,
    error::{Error, Result},
    ui::output,
};

/// The states in which a sandbox is neither running nor starting.
const INACTIVE_STATES: [&str; 3] = ["created", "stopped", "failed"];

/// Delete all your sandboxes that are not running
///
/// Asks first, unless you give --force. Running sandboxes are never deleted.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm prune
  banger vm prune --force      without asking
  banger vm prune --dry-run    what would be deleted

What was on their disks is lost for good.")]
pub struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Print the names of what would be deleted, and delete nothing
    #[arg(long, conflicts_with = "force")]
    dry_run: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Prune {
    pub async fn run(&self) -> Result<u8> {
        let mut sandboxes = Bus::connect().await?.objects(VM_INTERFACE).await?;
        sandboxes.retain(|sandbox| INACTIVE_STATES.contains(&sandbox.text("State")));
        object::sort(&mut sandboxes);
        let names: Vec<String> = sandboxes.iter().map(|sandbox| sandbox.name().to_owned()).collect();
        if self.change.output.json && (self.dry_run || names.is_empty()) {
            let row = |sandbox: &Object| batch::untouched(sandbox.name(), sandbox.text("Id"));
            output::json(&sandboxes.iter().map(row).collect())?;
            return Ok(0);
        }
        if self.dry_run {
            output::text(&names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
            return Ok(0);
        }
        if names.is_empty() {
            return Ok(0);
        }
        if !self.force && !ask(&sandboxes)? {
            return Err(Error::Refused("nothing was deleted".to_owned()));
        }
        // By id, because a name may have been reused. The service refuses those that were started meanwhile.
        let ids: Vec<String> = sandboxes.iter().map(|sandbox| sandbox.text("Id").to_owned()).collect();
        change::delete(&ids, &names, self.change).await
    }
}

fn ask(sandboxes: &[Object]) -> Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Error::Refused("there is no terminal to ask on".to_owned())
            .with_hint("`--force` deletes them without asking; `--dry-run` lists them."));
    }
    let names: Vec<&str> = sandboxes.iter().map(Object::name).collect();
    let failed = |source| Error::io("ask on the terminal", source);
    write!(io::stderr(), "Delete {} with everything on their disks? [y/N] ", names.join(", "))
        .map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
