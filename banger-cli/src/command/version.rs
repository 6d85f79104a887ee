//! `banger version`.

use clap::Args;
use serde_json::json;

use crate::{
    client::bus::Bus,
    error::Result,
    remote,
    ui::{output, sanitize},
};

/// Print the versions of this command and of the service
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger version

After an upgrade, the old service runs until it is restarted.
`banger --version` does not ask the service.")]
pub struct Version {
    /// Print a JSON object with the keys client, service and host; service is null if it does not answer, and host is
    /// null for the local host
    #[arg(long)]
    json: bool,
}

impl Version {
    pub async fn run(&self) -> Result<u8> {
        let client = env!("CARGO_PKG_VERSION");
        let host = remote::chosen()?.map(|server| server.to_string());
        let service = match Bus::connect().await {
            Ok(bus) => bus.manager().await,
            Err(error) => Err(error),
        };
        let service = service.map(|manager| sanitize::line(manager.text("Version")));
        if self.json {
            output::json(&json!({ "client": client, "service": service.ok(), "host": host }))?;
        } else {
            let service = service.unwrap_or_else(|_| "does not answer".to_owned());
            let there = host.map(|host| format!("  on {host}")).unwrap_or_default();
            output::text(&format!("banger         {client}\nbanger-system  {service}{there}\n"))?;
        }
        Ok(0)
    }
}
