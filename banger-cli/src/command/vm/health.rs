//! `banger vm health` and `banger vm ping`.

use std::time::{Duration, Instant};

use banger_proto::bus::names::VM_INTERFACE;
use clap::Args;
use serde_json::{Value, json};

use crate::{
    bus::Bus,
    error::{FAILURE, Result},
    guest::Guest,
    output,
    service::Kind,
    signals::{Signals, unless_ended},
    table::Table,
};

/// Between two pings.
const INTERVAL: Duration = Duration::from_secs(1);

/// Ask the agents in sandboxes how they are
///
/// Fails when one of them does not answer, or when something went wrong while it booted.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm health web
  banger vm health --json web db")]
pub struct Health {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Print an array of objects
    #[arg(long)]
    json: bool,
}

impl Health {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let signals = Signals::catch()?;
        let mut table = Table::new(["SANDBOX", "HEALTH", "AGENT", "KERNEL", "PROBLEMS"]);
        let (mut rows, mut status) = (Vec::new(), 0);
        for reference in &self.sandboxes {
            let asked = async {
                let vm = bus.find(Kind::Vm, reference).await?;
                let name = bus.properties(&vm, VM_INTERFACE).await?.name().to_owned();
                let mut guest = Guest::new(bus.clone(), vm, signals.listen());
                Ok((name, guest.info().await?))
            };
            match asked.await {
                Ok((name, info)) => {
                    let healthy = info.problems.is_empty();
                    if !healthy {
                        status = FAILURE;
                    }
                    table.row([
                        name.clone(),
                        if healthy { "good" } else { "poor" }.to_owned(),
                        info.agent_version.clone(),
                        info.kernel_release.clone(),
                        info.problems.join("; "),
                    ]);
                    rows.push(json!({
                        "sandbox": name,
                        "healthy": healthy,
                        "agent_version": info.agent_version,
                        "kernel_release": info.kernel_release,
                        "boot_id": info.boot_id,
                        "problems": info.problems,
                    }));
                }
                Err(error) => {
                    status = FAILURE;
                    let error: crate::error::Error = error;
                    rows.push(
                        json!({"sandbox": reference, "healthy": false, "problems": [error.to_string()]}),
                    );
                    error.about(reference).print((self.sandboxes.len() > 1).then_some(reference));
                }
            }
        }
        if self.json {
            output::json(&Value::Array(rows))?;
        } else {
            output::text(&table.text())?;
        }
        Ok(status)
    }
}

/// Measure how long the agent in a sandbox takes to answer
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm ping -c 10 web")]
pub struct Ping {
    /// A name, an id, or the beginning of an id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Stop after so many answers
    #[arg(short, long, value_name = "COUNT", default_value_t = 1)]
    count: u32,
    /// Print an object on each line
    #[arg(long)]
    json: bool,
}

impl Ping {
    pub async fn run(&self) -> Result<u8> {
        let mut guest = Guest::of(&self.sandbox).await?;
        let mut listener = Signals::catch()?.listen();
        for number in 0..self.count {
            if number > 0 {
                let rest = async {
                    tokio::time::sleep(INTERVAL).await;
                    Ok(())
                };
                unless_ended(&mut listener, rest).await?;
            }
            let begun = Instant::now();
            guest.info().await.map_err(|error| error.about(&self.sandbox))?;
            let millis = begun.elapsed().as_secs_f64() * 1000.0;
            if self.json {
                output::text(&format!(
                    "{}\n",
                    json!({"sandbox": self.sandbox, "msec": (millis * 1000.0).round() / 1000.0})
                ))?;
            } else {
                output::text(&format!("{}: answered in {millis:.1} ms\n", self.sandbox))?;
            }
        }
        Ok(0)
    }
}
