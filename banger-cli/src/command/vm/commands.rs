//! `banger vm commands`.

use banger_proto::guest::{Request, facts::Detached, message::Exit};
use clap::Args;
use serde_json::{Value, json};

use super::numbers::whole;

use crate::{
    command::table_args::TableArgs,
    error::{Error, Result},
    guest::agent::Guest,
    ui::column::{self, Column, List},
};

/// List or stop the detached commands of a sandbox
///
/// `banger vm exec -d` starts a detached command, and `banger vm logs --exec` shows its output. The sandbox keeps at
/// least the last 8 MiB of each command's output, and the exit status of the last 64 that have ended. At most 64 run
/// at once.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm commands web
  banger vm commands --stop 3 web
  banger vm commands --json web | jq '.[] | select(.running) | .id'")]
pub struct Commands {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// End this command and everything that it started: SIGTERM first, SIGKILL after 10 seconds
    #[arg(long, value_name = "NUMBER", value_parser = whole::<u64>)]
    stop: Vec<u64>,
    /// Print a JSON array
    #[arg(long, conflicts_with = "stop")]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
}

/// The columns of the list.
pub const LIST: List = List {
    verb: "vm commands",
    columns: &[
        Column::new("NUMBER", "id", column::text),
        Column::new("STATUS", "status", column::text),
        Column::new("STARTED", "started_at", column::age).drop(1),
        Column::new("WRITTEN", "written", column::text).drop(3),
        Column::new("USER", "user", column::text).drop(2),
        Column::new("COMMAND", "command", column::text).elastic(),
    ],
};

impl Commands {
    pub async fn run(&self) -> Result<u8> {
        let view = self.table.view(LIST)?;
        let mut guest = Guest::of(&self.sandbox).await?;
        for id in &self.stop {
            let stopped = guest.call(Request::StopDetached(*id), |call| call.finish()).await;
            stopped.map_err(|error| self.add_hint(error))?;
        }
        if !self.stop.is_empty() {
            return Ok(0);
        }
        let commands: Vec<Detached> = guest.query(Request::Detached).await?;
        view.print(commands.iter().map(object).collect(), self.json)?;
        Ok(0)
    }

    fn add_hint(&self, error: Error) -> Error {
        error.with_hint(format!("`banger vm commands {}` lists the detached commands.", self.sandbox))
    }
}

/// Describes the state of a command.
fn status(command: &Detached) -> String {
    match (command.running, command.exit) {
        (true, _) => "running".to_owned(),
        (false, Some(Exit::Code(code))) => format!("exited {code}"),
        (false, Some(Exit::Signal(signal))) => format!("killed by signal {signal}"),
        (false, None) => "lost with the guest".to_owned(),
    }
}

/// Returns the command that was started last, without sessions, which others may have open meanwhile.
pub fn last_without_session(commands: Vec<Detached>) -> Option<Detached> {
    commands.into_iter().filter(|command| command.session.is_none()).max_by_key(|command| command.id)
}

/// Returns the JSON object of a command.
pub fn object(command: &Detached) -> Value {
    json!({
        "id": command.id,
        "command": command.command,
        "user": command.user,
        "status": status(command),
        "running": command.running,
        "started_at": command.started_usec,
        "ended_at": command.ended_usec,
        "exit_status": command.exit.map(Exit::status),
        "written": command.written,
        "kept": command.kept,
        "session": command.session,
        "attached": command.attached,
        "terminal": command.terminal,
    })
}
