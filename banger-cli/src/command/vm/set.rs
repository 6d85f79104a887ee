//! `banger vm set`.

use std::collections::HashMap;

use banger_proto::bus::{ErrorName, option::configure, proxy::Options};
use clap::Args;
use zbus::{OwnedObjectPath, Variant};

use super::{
    idle_policy::{IdlePolicy, idle_policy},
    restart_args::RestartArgs,
    size_args::SizeArgs,
    vm_args::label,
};
use crate::{
    client::{bus::Bus, service::Kind},
    command::batch::{self, Effect, ResultArgs},
    error::{Error, Result},
    ui::progress::{Progress, ProgressArgs},
};

/// Change the configuration of sandboxes
///
/// NAT, egress, labels, and the policies of restarts and idling change at once, even those of a running sandbox.
/// Processors, memory and disks change only while the sandbox is stopped. Disks can only grow; their file systems grow
/// at the next start.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm set --nat web
  banger vm set --no-nat web
  banger vm set --egress packages,github.com web
  banger vm set --restart always web
  banger vm set --label team=web --remove-label old web
  banger vm set --idle suspend=30m web
  banger vm stop web && banger vm set --memory 8GiB --root-size 40GiB web")]
#[group(id = "changes", multiple = true)]
pub struct Set {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Give the sandboxes internet access (NAT)
    #[arg(long, overrides_with = "no_nat", required_unless_present_any = changes())]
    nat: bool,
    /// Remove internet access; guests of the same owner still reach each other
    #[arg(long)]
    no_nat: bool,
    /// Let the sandboxes reach only this beyond the host: `none`, `all`, presets, or HOST[:PORT][/PROTOCOL]. Replaces
    /// what they could reach before
    #[arg(long, value_name = "EGRESS", value_delimiter = ',', conflicts_with_all = ["nat", "no_nat"])]
    egress: Vec<String>,
    #[command(flatten)]
    restart: RestartArgs,
    /// Set a label; others stay
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Remove a label
    #[arg(long, alias = "label-rm", value_name = "KEY")]
    remove_label: Vec<String>,
    /// Idle policy: suspend=TIME, suspend-no-wake=TIME, stop=TIME or off
    #[arg(long, value_name = "ACTION=TIME", value_parser = idle_policy)]
    idle: Option<IdlePolicy>,
    #[command(flatten)]
    sizes: SizeArgs,
    #[command(flatten)]
    output: ResultArgs,
}

/// The ids of the options of which one is required, unless `--nat` is given.
fn changes() -> impl Iterator<Item = &'static str> {
    let policies = RestartArgs::IDS.into_iter().chain(["no_nat", "egress", "label", "remove_label", "idle"]);
    SizeArgs::IDS.into_iter().chain(policies)
}

impl Set {
    pub async fn run(&self) -> Result<u8> {
        let bus = &Bus::connect().await?;
        let progress = Progress::new(ProgressArgs { quiet: true });
        let options = &self.options();
        let set = async |_, vm: OwnedObjectPath| {
            let set = bus.configure_vm(&vm, options).await;
            set.map(|()| Effect::Changed).map_err(add_hint)
        };
        batch::each(batch::find(bus, Kind::Vm, &self.sandboxes).await, &progress, "changed", self.output, set)
            .await
    }

    fn options(&self) -> Options<'_> {
        let mut options: Options<'_> = self.sizes.options();
        options.extend(self.restart.options());
        if self.nat || self.no_nat {
            options.insert(configure::NAT, Variant::from(self.nat));
        }
        if !self.egress.is_empty() {
            options.insert(configure::EGRESS, Variant::from(self.egress.clone()));
        }
        if let Some(policy) = self.idle {
            options.extend(policy.options());
        }
        if !self.label.is_empty() {
            let labels: HashMap<String, String> = self.label.iter().cloned().collect();
            options.insert(configure::LABELS, Variant::from(labels));
        }
        if !self.remove_label.is_empty() {
            options.insert(configure::REMOVE_LABELS, Variant::from(self.remove_label.clone()));
        }
        options
    }
}

/// Adds a hint for a sandbox whose state does not allow a change of its sizes.
fn add_hint(error: Error) -> Error {
    match error.name() {
        Some(ErrorName::InvalidState) => {
            error.with_hint("sizes do not change while it runs: `banger vm stop NAME` stops it.")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[test]
    fn hints_of_set() {
        use crate::ui::wording::{check, of_service, shown};

        let names = [ErrorName::InvalidState, ErrorName::DiskTooSmall, ErrorName::InvalidOption];
        check("hints_of_set", &shown(names.map(|name| (name, add_hint(of_service(name)).about("web")))));
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        set: Set,
    }

    fn keys(line: &str) -> Option<Vec<(String, String)>> {
        let line = Line::try_parse_from(line.split_whitespace()).ok()?;
        let mut keys: Vec<_> = line
            .set
            .options()
            .into_iter()
            .map(|(key, value)| (key.to_owned(), format!("{value:?}")))
            .collect();
        keys.sort();
        Some(keys)
    }

    #[test]
    fn a_change_is_required_and_the_last_nat_option_wins() {
        assert_eq!(keys("set web"), None);
        assert_eq!(keys("set --nat"), None);
        assert_eq!(keys("set --nat web"), keys("set --no-nat --nat web"));
        assert_ne!(keys("set --nat web"), keys("set --no-nat web"));
        assert_eq!(keys("set --vcpu 2 --memory 1GiB web").unwrap().len(), 2);
        assert_eq!(keys("set --label a=b --label c --remove-label d web").unwrap().len(), 2);
        assert_eq!(keys("set --label =b web"), None);
        assert_eq!(keys("set --egress git,a.example --egress b.example web").unwrap().len(), 1);
        assert_eq!(keys("set --egress git --nat web"), None);
        assert_eq!(keys("set --idle suspend=30m web").unwrap().len(), 2);
        assert_eq!(keys("set --idle off web").unwrap().len(), 1);
        assert_eq!(keys("set --restart always --autostart web").unwrap().len(), 2);
        assert_ne!(keys("set --autostart web"), keys("set --no-autostart web"));
        assert_eq!(keys("set --autostart --no-autostart web"), keys("set --no-autostart web"));
        assert_eq!(keys("set --restart sometimes web"), None);
        assert_eq!(keys("set --disk 20GiB web"), keys("set --root-size 20GiB web"));
        assert_eq!(keys("set --root-size 20GiB --disk-size 9GiB web").unwrap().len(), 2);
    }
}
