//! `banger vm ports`.

use banger_proto::guest::{Request, facts::ListeningPort};
use clap::Args;
use serde_json::{Value, json};

use super::{agents::Agents, loopback};
use crate::{
    client::published_port::{PublishedPort, PublishedPorts},
    command::table_args::TableArgs,
    error::Result,
    ui::column::{self, Column, List, plain},
};

/// Show the ports on which sandboxes listen
///
/// The agent reads the tables of the guest's kernel, so the image needs no program for it. Ports on the
/// sandbox's own address can be reached from the host at NAME.vm; for ports on its loopback, use
/// `banger vm forward`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm ports web
  banger vm ports --json web db | jq '.[].port'

Next: `banger vm forward -L 8080:80 web` forwards a port of this host to the sandbox.")]
pub struct Ports {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Print a JSON array of objects
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
}

/// The columns of the list.
pub const LIST: List = List {
    verb: "vm ports",
    columns: &[
        Column::new("SANDBOX", "sandbox", column::text),
        Column::new("PORT", "port", |port| format!("{}/{}", column::text(port), plain(port.of("protocol")))),
        Column::new("ADDRESS", "address", column::text).drop(2),
        Column::new("REACHED AT", "endpoint", column::text).drop(1),
        Column::new(
            "PID",
            "pid",
            |port| if port.number("pid") == 0 { String::new() } else { column::text(port) },
        )
        .drop(4),
        Column::new("PROGRAM", "program", column::text).drop(3),
    ],
};

impl Ports {
    pub async fn run(&self) -> Result<u8> {
        let view = self.table.view(LIST)?;
        let mut agents = Agents::new(&self.sandboxes).await?;
        let (mut rows, mut notes) = (Vec::new(), Vec::new());
        for reference in &self.sandboxes {
            match listening(&agents, reference).await {
                Ok((name, published, ports)) => {
                    notes.extend(loopback::notes(&name, &published, &ports));
                    rows.extend(ports.iter().map(|port| object(&name, port)));
                }
                Err(error) => agents.failed(reference, error),
            }
        }
        view.print(rows, self.json)?;
        notes.iter().for_each(|note| eprintln!("{note}"));
        Ok(agents.status())
    }
}

async fn listening(
    agents: &Agents<'_>,
    reference: &str,
) -> Result<(String, Vec<PublishedPort>, Vec<ListeningPort>)> {
    let (sandbox, mut guest) = agents.open_with_properties(reference).await?;
    let published = PublishedPorts::of(&sandbox).ports;
    Ok((sandbox.name().to_owned(), published, guest.query(Request::Ports).await?))
}

/// Returns how to reach it from the host; `None` if it listens on the loopback.
fn endpoint(name: &str, port: &ListeningPort) -> Option<String> {
    let loopback = port.address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    (!loopback).then(|| format!("{name}.vm:{}", port.port))
}

fn object(name: &str, port: &ListeningPort) -> Value {
    json!({
        "sandbox": name,
        "protocol": port.protocol,
        "port": port.port,
        "address": port.address,
        "endpoint": endpoint(name, port),
        "pid": port.pid,
        "program": port.program,
    })
}
