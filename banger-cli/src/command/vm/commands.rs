//! `banger vm commands`.

use banger_proto::guest::{Request, facts::Detached, message::Exit};
use clap::Args;
use serde_json::{Value, json};

use super::numbers::whole;

use crate::{
    error::{Error, Result},
    guest::agent::Guest,
    ui::{age, output, table::Table},
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
}

impl Commands {
    pub async fn run(&self) -> Result<u8> {
        let mut guest = Guest::of(&self.sandbox).await?;
        for id in &self.stop {
            let stopped = guest.call(Request::StopDetached(*id), |call| call.finish()).await;
            stopped.map_err(|error| self.add_hint(error))?;
        }
        if !self.stop.is_empty() {
            return Ok(0);
        }
        let commands: Vec<Detached> = guest.query(Request::Detached).await?;
        if self.json {
            output::json(&Value::Array(commands.iter().map(object).collect()))?;
            return Ok(0);
        }
        let mut table = Table::new(["NUMBER", "STATUS", "STARTED", "WRITTEN", "USER", "COMMAND"]);
        let now = age::now();
        for command in commands {
            table.row([
                command.id.to_string(),
                status(&command),
                age::ago(command.started_usec, now),
                command.written.to_string(),
                command.user,
                command.command,
            ]);
        }
        output::text(&table.text())?;
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

fn object(command: &Detached) -> Value {
    json!({
        "id": command.id,
        "command": command.command,
        "user": command.user,
        "running": command.running,
        "started_at": command.started_usec,
        "ended_at": command.ended_usec,
        "exit_status": command.exit.map(Exit::status),
        "written": command.written,
        "kept": command.kept,
    })
}
