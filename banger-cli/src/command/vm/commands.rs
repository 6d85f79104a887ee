//! `banger vm commands`.

use banger_proto::guest::{Request, facts::Detached, message::Exit};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    age,
    error::{Error, Result},
    guest::Guest,
    output,
    table::Table,
};

/// Show or stop the commands that were detached in a sandbox
///
/// The sandbox keeps the last of what each has written, at least 8 MiB, and how it ended, for the last 64 that have ended.
/// At most 64 run at once. `banger vm exec -d` detaches a command, and `banger vm logs --exec` shows what it writes.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm commands web
  banger vm commands --stop 3 web
  banger vm commands --json web | jq '.[] | select(.running) | .id'")]
pub struct Commands {
    /// A name, an id, or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// End this command and all that it started: ask it first, and kill it after 10 seconds
    #[arg(long, value_name = "NUMBER")]
    stop: Vec<u64>,
    /// Print an array of objects
    #[arg(long, conflicts_with = "stop")]
    json: bool,
}

impl Commands {
    pub async fn run(&self) -> Result<u8> {
        let mut guest = Guest::of(&self.sandbox).await?;
        for id in &self.stop {
            let stopped = guest.call(Request::StopDetached(*id), |call| call.finish()).await;
            stopped.map_err(|error| self.advise(error))?;
        }
        if !self.stop.is_empty() {
            return Ok(0);
        }
        let commands: Vec<Detached> = guest.ask(Request::Detached).await?;
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

    fn advise(&self, error: Error) -> Error {
        error.advise(format!("`banger vm commands {}` shows those that were detached.", self.sandbox))
    }
}

/// How a command is, in words.
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
