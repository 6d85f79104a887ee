//! `banger vm egress`.

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, object::Object, service::Kind},
    error::Result,
    ui::{age, output, table::Table},
};

/// The policy that allows everything.
const EVERYTHING: &str = "all";

/// Show what a sandbox may reach beyond this host, and what it was denied
///
/// `allow` and `deny` change that at once, also while the sandbox runs. A host is a name, `*.` and a domain for its
/// sub-domains, an address, a network, or a preset such as `packages`; :PORT and /udp limit it.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = "\
Examples:
  banger vm egress web
  banger vm egress allow web github.com
  banger vm egress allow web packages '*.example.com:443'
  banger vm egress deny web github.com"
)]
pub struct Egress {
    #[command(subcommand)]
    change: Option<EgressCommand>,
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX", required = true)]
    sandbox: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// The subcommands of `banger vm egress`.
#[derive(Debug, Subcommand)]
pub enum EgressCommand {
    Allow(Allow),
    Deny(Deny),
}

/// Let a sandbox reach more
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm egress allow web github.com
  banger vm egress allow web packages '*.example.com:443'")]
pub struct Allow {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// HOST[:PORT][/PROTOCOL], or a preset
    #[arg(required = true, value_name = "EGRESS", value_delimiter = ',')]
    hosts: Vec<String>,
}

/// Take back what `allow` or `--egress` gave; its connections end
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm egress deny web github.com")]
pub struct Deny {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// HOST[:PORT][/PROTOCOL], or a preset, as it was allowed
    #[arg(required = true, value_name = "EGRESS", value_delimiter = ',')]
    hosts: Vec<String>,
}

impl Egress {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        match (&self.change, &self.sandbox) {
            (Some(EgressCommand::Allow(Allow { sandbox, hosts })), _) => {
                change(&bus, sandbox, (hosts, &[])).await
            }
            (Some(EgressCommand::Deny(Deny { sandbox, hosts })), _) => {
                change(&bus, sandbox, (&[], hosts)).await
            }
            (None, Some(sandbox)) => show(&bus, sandbox, self.json).await,
            (None, None) => Ok(0),
        }
    }
}

/// Adds entries to the policy of a sandbox, and removes others.
async fn change(bus: &Bus, sandbox: &str, (allow, deny): (&[String], &[String])) -> Result<u8> {
    let vm: OwnedObjectPath = bus.find(Kind::Vm, sandbox).await.map_err(|error| error.about(sandbox))?;
    let changed = bus.change_egress(&vm, allow, deny).await;
    changed.map_err(|error| match error.name() {
        Some(ErrorName::InvalidOption) if allow.is_empty() => {
            error.with_hint(format!("`banger vm egress {sandbox}` shows its policy."))
        }
        _ => error.about(sandbox),
    })?;
    Ok(0)
}

async fn show(bus: &Bus, sandbox: &str, json: bool) -> Result<u8> {
    let vm = bus.find(Kind::Vm, sandbox).await.map_err(|error| error.about(sandbox))?;
    let object = bus.properties(&vm, VM_INTERFACE).await?;
    match json {
        true => output::json(&of_object(&object))?,
        false => output::text(&text(&object, age::now()))?,
    }
    Ok(0)
}

fn of_object(sandbox: &Object) -> Value {
    let properties = sandbox.json();
    json!({
        "egress": properties["egress"],
        "cut": sandbox.strings("EgressCut"),
        "allowed": properties["egress_allowed"],
        "denied": properties["egress_denials"],
    })
}

fn text(sandbox: &Object, now: u64) -> String {
    let policy = sandbox.strings("Egress");
    let may_reach = match policy.as_slice() {
        [] => "nothing beyond this host".to_owned(),
        [word] if word == EVERYTHING => "everything beyond this host".to_owned(),
        entries => entries.join(" "),
    };
    let mut text = format!("{} may reach {may_reach}\n", sandbox.name());
    let cut = sandbox.strings("EgressCut");
    if !cut.is_empty() {
        let cut = cut.join(" ");
        text.push_str(&format!("the host's ceiling limits: {cut}\n"));
    }
    let log = of_object(sandbox);
    let mut table = Table::new(["DESTINATION", "PORT", "RESULT", "TIMES", "LAST"]);
    let mut rows = 0;
    for (key, result, host) in [("denied", "denied", "destination"), ("allowed", "allowed", "name")] {
        for row in log[key].as_array().into_iter().flatten() {
            let port = match (row["port"].as_u64(), row["protocol"].as_str()) {
                (Some(port), Some(protocol)) if port > 0 => format!("{port}/{protocol}"),
                _ => "look-up".to_owned(),
            };
            table.row([
                row[host].as_str().unwrap_or_default().to_owned(),
                port,
                result.to_owned(),
                row["count"].to_string(),
                age::ago(row["last_at"].as_u64().unwrap_or_default(), now),
            ]);
            rows += 1;
        }
    }
    if rows > 0 {
        text.push_str(&table.text());
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use clap::Parser;
    use zbus::{OwnedVariant, Variant};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        egress: Egress,
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_sandbox_is_shown_or_changed() {
        let parse = |line: &str| Line::try_parse_from(line.split_whitespace()).map(|line| line.egress);
        assert_eq!(parse("egress web").unwrap().sandbox.as_deref(), Some("web"));
        assert!(matches!(parse("egress allow web a.example").unwrap().change, Some(EgressCommand::Allow(_))));
        assert!(matches!(parse("egress deny web a.example b").unwrap().change, Some(EgressCommand::Deny(_))));
        for wrong in ["egress", "egress allow", "egress allow web", "egress deny web"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_policy_and_its_denials_are_shown() {
        let values: [(&str, Variant<'static>); 5] = [
            ("Name", "web".into()),
            ("EgressCut", words("a.example").into()),
            ("Egress", words("git a.example").into()),
            ("EgressAllowed", vec![("a.example".to_owned(), 2u64, 5_000_000u64)].into()),
            (
                "EgressDenials",
                vec![
                    ("b.example".to_owned(), 0u16, "dns".to_owned(), 3u64, 6_000_000u64),
                    ("192.0.2.1".to_owned(), 443u16, "tcp".to_owned(), 1u64, 7_000_000u64),
                ]
                .into(),
            ),
        ];
        let values = values.map(|(name, value)| (name.to_owned(), OwnedVariant::try_from(value).unwrap()));
        let shown = text(&Object::new(HashMap::from(values)), 10_000_000);
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["web", "may", "reach", "git", "a.example"]);
        assert_eq!(lines[1].join(" "), "the host's ceiling limits: a.example");
        assert_eq!(lines[3][..4], ["b.example", "look-up", "denied", "3"]);
        assert_eq!(lines[4][..4], ["192.0.2.1", "443/tcp", "denied", "1"]);
        assert_eq!(lines[5][..4], ["a.example", "look-up", "allowed", "2"]);
    }
}
