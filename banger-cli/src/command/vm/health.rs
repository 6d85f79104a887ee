//! `banger vm health` and `banger vm ping`.

use std::{
    io,
    time::{Duration, Instant},
};

use banger_proto::guest::GuestInfo;
use clap::Args;
use serde_json::{Value, json};

use super::{agents::Agents, numbers::whole};
use crate::{
    error::Result,
    guest::agent::Guest,
    ui::{
        output,
        signals::{Signals, unless_ended},
        table::{Fit, Table},
        terminal,
    },
};

/// Interval between pings.
const INTERVAL: Duration = Duration::from_secs(1);

/// Check the guest agent
///
/// Fails if the agent of a sandbox does not answer, or if something went wrong while the guest booted.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm health web
  banger vm health --json web db")]
pub struct Health {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Print a JSON array of objects
    #[arg(long)]
    json: bool,
}

impl Health {
    pub async fn run(&self) -> Result<u8> {
        let mut agents = Agents::new(&self.sandboxes).await?;
        let fits = [Fit::KEEP, Fit::KEEP, Fit::dropped(1), Fit::dropped(2), Fit::ELASTIC];
        let mut table = Table::new(["SANDBOX", "HEALTH", "AGENT", "KERNEL", "PROBLEMS"]).with_fits(fits);
        let mut rows = Vec::new();
        for reference in &self.sandboxes {
            let answer = async {
                let (name, mut guest) = agents.open(reference).await?;
                Ok((name, guest.info().await?))
            };
            let answer: Result<_> = answer.await;
            rows.push(object(reference, &answer));
            match answer {
                Ok((name, info)) => {
                    let healthy = info.problems.is_empty();
                    if !healthy {
                        agents.mark_unhealthy();
                    }
                    table.row([
                        name,
                        if healthy { "good" } else { "poor" }.to_owned(),
                        info.agent_version,
                        info.kernel_release,
                        info.problems.join("; "),
                    ]);
                }
                Err(error) => {
                    agents.failed(reference, error);
                    // Any failure counts as unhealthy here, whatever its kind.
                    agents.mark_unhealthy();
                }
            }
        }
        if self.json {
            output::json(&Value::Array(rows))?;
        } else {
            output::text(&table.fitted(terminal::width(&io::stdout())))?;
        }
        Ok(agents.status())
    }
}

fn object(reference: &str, answer: &Result<(String, GuestInfo)>) -> Value {
    let info = answer.as_ref().ok().map(|(_, info)| info);
    let problems = match answer {
        Ok((_, info)) => info.problems.clone(),
        Err(error) => vec![error.to_string()],
    };
    json!({
        "sandbox": answer.as_ref().map_or(reference, |(name, _)| name),
        "healthy": problems.is_empty(),
        "agent_version": info.map(|info| &info.agent_version),
        "kernel_release": info.map(|info| &info.kernel_release),
        "boot_id": info.map(|info| &info.boot_id),
        "problems": problems,
    })
}

/// Measure how long the agent in a sandbox takes to answer
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm ping -c 10 web")]
pub struct Ping {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Stop after this many answers
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = whole::<u32>)]
    count: u32,
    /// Print a JSON object on each line
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
