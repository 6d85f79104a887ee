//! `banger context`.

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use serde_json::{Value, json};

use crate::{
    command::complete,
    error::Result,
    remote::{
        choice::{self, Origin},
        contexts::{Contexts, DEFAULT},
        server::Server,
    },
    ui::{output, table::Table},
};

/// What is shown as the address of the local host.
const LOCAL: &str = "-";

/// The subcommands of `banger context`.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    Add(Add),
    Use(Use),
    #[command(visible_alias = "ls")]
    List(List),
    #[command(visible_alias = "inspect")]
    Show(Show),
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

impl ContextCommand {
    pub fn run(&self) -> Result<u8> {
        match self {
            ContextCommand::Add(add) => add.run(),
            ContextCommand::Use(choose) => choose.run(),
            ContextCommand::List(list) => list.run(),
            ContextCommand::Show(show) => show.run(),
            ContextCommand::Delete(delete) => delete.run(),
        }
        .map(|()| 0)
    }
}

/// Add a name for a host
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger context add lab ssh://alice@lab.example.org
  banger context add lab ssh://lab    with the settings for `Host lab` in ~/.ssh/config

The host is not contacted. Next: `banger context use lab`, and `banger doctor` checks the host.")]
pub struct Add {
    /// Name for the host: letters, digits, dots, hyphens and underscores
    #[arg(value_name = "NAME")]
    name: String,
    /// Address: ssh://[USER@]HOST[:PORT]
    #[arg(value_name = "URL")]
    server: Server,
}

impl Add {
    fn run(&self) -> Result<()> {
        Contexts::change(|contexts| contexts.add(&self.name, &self.server))?;
        output::text(&format!("{}\n", self.name))
    }
}

/// Choose the host that commands use
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger context use lab
  banger context use default    the local host")]
pub struct Use {
    /// Name of the context; `default` is the local host
    #[arg(value_name = "CONTEXT", add = ArgValueCompleter::new(complete::contexts))]
    name: String,
}

impl Use {
    fn run(&self) -> Result<()> {
        Contexts::change(|contexts| contexts.choose(&self.name))?;
        if std::env::var(choice::VARIABLE).is_ok_and(|host| !host.is_empty()) {
            eprintln!("note: {} is set and overrides the context", choice::VARIABLE);
        }
        output::text(&format!("{}\n", self.name))
    }
}

/// List the contexts
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger context list
  banger context list --json")]
pub struct List {
    /// Print a JSON array of objects
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print only names
    #[arg(short, long)]
    quiet: bool,
}

impl List {
    fn run(&self) -> Result<()> {
        let contexts = Contexts::of_caller()?;
        let all = || {
            let others = contexts.iter().map(|(name, host)| (name, Some(host)));
            [(DEFAULT, None)].into_iter().chain(others)
        };
        let is_current = |name: &str| name == contexts.current();
        if self.json {
            return output::json(&all().map(|(name, host)| object(name, host, is_current(name))).collect());
        }
        if self.quiet {
            return output::text(&all().map(|(name, _)| format!("{name}\n")).collect::<String>());
        }
        let mut table = Table::new(["NAME", "HOST", "IN USE"]);
        for (name, host) in all() {
            let mark = if is_current(name) { "yes" } else { "" };
            table.row([name.to_owned(), host.unwrap_or(LOCAL).to_owned(), mark.to_owned()]);
        }
        output::text(&table.text())
    }
}

fn object(name: &str, host: Option<&str>, in_use: bool) -> Value {
    json!({ "name": name, "host": host, "in_use": in_use })
}

/// Show a context
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger context show        the host that commands use
  banger context show lab")]
pub struct Show {
    /// Name of the context [default: the one in effect]
    #[arg(value_name = "CONTEXT", add = ArgValueCompleter::new(complete::contexts))]
    name: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    fn run(&self) -> Result<()> {
        let contexts = Contexts::of_caller()?;
        let (name, server, in_use) = match &self.name {
            Some(name) => (Some(name.clone()), contexts.server(name)?, contexts.current() == name),
            None => match choice::chosen_by()? {
                (server, Origin::Context(name)) => (Some(name), server, true),
                (server, Origin::Address) => (None, server, true),
            },
        };
        let host = server.map(|server| server.to_string());
        if self.json {
            return output::json(&json!({ "name": name, "host": host, "in_use": in_use }));
        }
        let mut table = Table::pairs();
        table.row(["name".to_owned(), name.unwrap_or_else(|| LOCAL.to_owned())]);
        table.row(["host".to_owned(), host.unwrap_or_else(|| LOCAL.to_owned())]);
        table.row(["in use".to_owned(), if in_use { "yes" } else { "no" }.to_owned()]);
        output::text(&table.text())
    }
}

/// Delete contexts
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger context delete lab

Sandboxes on the hosts are not affected.")]
pub struct Delete {
    /// Names of the contexts
    #[arg(value_name = "CONTEXT", required = true, add = ArgValueCompleter::new(complete::contexts))]
    names: Vec<String>,
}

impl Delete {
    fn run(&self) -> Result<()> {
        Contexts::change(|contexts| self.names.iter().try_for_each(|name| contexts.delete(name)))?;
        output::text(&self.names.iter().map(|name| format!("{name}\n")).collect::<String>())
    }
}
