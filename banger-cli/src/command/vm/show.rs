//! `banger vm show`.

use std::time::Duration;

use banger_proto::{bus::names::VM_INTERFACE, guest::message::Phases};
use clap::Args;
use serde_json::{Value, json};

use super::history;
use crate::{
    client::{bus::Bus, service::Kind},
    command::show::ShowArgs,
    error::Result,
    guest::agent::Guest,
    ui::{output, signals::Signals},
};

/// How long a guest may take to report its phases; then it is shown without them. An emulated one on a busy host takes
/// seconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Show all details of a sandbox
///
/// `phases` shows how far its guest has booted, and how many seconds after the kernel's start it reached each phase.
///
/// --events shows how long each phase of the last start took, and the last 64 changes of the state. The service keeps them
/// until it ends.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm show web
  banger vm show --events web
  banger vm show --format '{{.State}} {{.Address}}' web
  banger vm show --json web | jq -r .state_reason")]
pub struct Show {
    #[command(flatten)]
    show: ShowArgs,
    /// Show the last start and the changes of the state instead of the properties; with --json or --format, show both
    #[arg(long)]
    events: bool,
}

impl Show {
    pub async fn run(&self) -> Result<u8> {
        let view = self.show.view(Kind::Vm)?;
        let bus = Bus::connect().await?;
        let path = bus.find(Kind::Vm, self.show.reference()).await?;
        let history = if self.events { Some(bus.history(&path).await?) } else { None };
        if let Some((changes, phases)) = &history
            && view.is_none()
            && !self.show.is_json()
        {
            output::text(&history::text(changes, phases))?;
            return Ok(0);
        }
        let sandbox = bus.properties(&path, VM_INTERFACE).await?;
        let mut object = sandbox.json();
        if let Value::Object(properties) = &mut object {
            let phases = if sandbox.flag("Ready") {
                let mut guest = Guest::new(bus, path, Signals::catch()?.listen());
                let answer = tokio::time::timeout(TIMEOUT, guest.info()).await;
                answer.ok().and_then(Result::ok).map(|info| info.phases)
            } else {
                None
            };
            properties.insert("phases".to_owned(), phases.map_or(Value::Null, phases_json));
            if let Some((changes, phases)) = &history {
                properties.insert("last_start".to_owned(), history::phases_json(phases));
                properties.insert("changes".to_owned(), history::changes_json(changes));
            }
        }
        self.show.print(view, object)
    }
}

/// Returns the phases in the order in which they are reached.
fn phases_json(Phases { agent, init, boot }: Phases) -> Value {
    json!({ "agent": agent, "init": init, "boot": boot })
}
