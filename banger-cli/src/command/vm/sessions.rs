//! `banger vm sessions`.

use std::collections::BTreeMap;

use banger_proto::guest::{Request, facts::Detached, message::is_session_name};
use clap::Args;

use super::{attach::session_name, commands};
use crate::{
    command::table_args::TableArgs,
    error::{Error, Result},
    guest::agent::Guest,
    ui::column::{self, Column, List},
};

/// List or stop the sessions of a sandbox
///
/// `banger vm exec --session NAME` and `banger vm shell --session NAME` start a session, and `banger vm attach` attaches to
/// it. The list has the last session of each name, with the exit status if it has ended. At most 32 run at once. They are
/// detached commands with an input: `banger vm commands` lists all of those.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm sessions web
  banger vm sessions --stop work web
  banger vm sessions --json web | jq -r '.[] | select(.running) | .session'")]
pub struct Sessions {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// End this session and everything that it started: SIGTERM and SIGHUP first, SIGKILL after 10 seconds
    #[arg(long, value_name = "SESSION", value_parser = session_name)]
    stop: Vec<String>,
    /// Print a JSON array
    #[arg(long, conflicts_with = "stop")]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
}

/// The columns of the list.
pub const LIST: List = List {
    verb: "vm sessions",
    columns: &[
        Column::new("SESSION", "session", column::text),
        Column::new("STATUS", "status", column::text),
        Column::new("ATTACHED", "attached", column::yes_or_no).drop(3),
        Column::new("STARTED", "started_at", column::age).drop(1),
        Column::new("USER", "user", column::text).drop(2),
        Column::new("COMMAND", "command", column::text).elastic(),
    ],
};

impl Sessions {
    pub async fn run(&self) -> Result<u8> {
        let view = self.table.view(LIST)?;
        let mut guest = Guest::of(&self.sandbox).await?;
        let sessions = latest(guest.query(Request::Detached).await?);
        for name in &self.stop {
            let found = sessions.iter().find(|found| found.session.as_deref() == Some(name));
            let Some(Detached { id, .. }) = found else {
                return Err(unknown(&self.sandbox, name));
            };
            guest.call(Request::StopDetached(*id), |call| call.finish()).await?;
        }
        if self.stop.is_empty() {
            view.print(sessions.iter().map(commands::object).collect(), self.json)?;
        }
        Ok(0)
    }
}

/// Returns the error for a session that does not exist.
pub fn unknown(sandbox: &str, session: &str) -> Error {
    Error::Refused(format!("{sandbox} has no session {session}"))
        .with_hint(format!("`banger vm sessions {sandbox}` lists its sessions."))
}

/// Returns the last session of each name, by name. Leaves out names that no client has given: the guest wrote them.
pub fn latest(commands: Vec<Detached>) -> Vec<Detached> {
    let mut sessions = BTreeMap::new();
    for command in commands {
        if let Some(name) = command.session.clone().filter(|name| is_session_name(name)) {
            sessions.insert(name, command);
        }
    }
    sessions.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_session_of_each_name_is_listed() {
        let command = |id, session: Option<&str>| Detached {
            id,
            command: String::new(),
            user: "root".to_owned(),
            running: true,
            started_usec: 1,
            ended_usec: 0,
            exit: None,
            written: 0,
            kept: 0,
            session: session.map(str::to_owned),
            attached: false,
            terminal: true,
        };
        let invalid = "x`; rm -rf ~ #\u{1b}]0;owned\u{7}";
        let all =
            [(1, Some("b")), (2, None), (3, Some("a")), (4, Some("b")), (5, Some(invalid)), (6, Some(""))];
        let found = latest(all.map(|(id, session)| command(id, session)).to_vec());
        let found: Vec<_> = found.iter().map(|found| (found.id, found.session.as_deref())).collect();
        assert_eq!(found, [(3, Some("a")), (4, Some("b"))]);
    }
}
