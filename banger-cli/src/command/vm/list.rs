//! `banger vm list`, also `banger ps`.

use banger_proto::{
    bus::{names::VM_INTERFACE, option::filter, proxy::Options},
    size::Bytes,
};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use zbus::Variant;

use crate::{
    client::{
        bus::Bus,
        object::{self, Object},
        published_port::PublishedPorts,
        service::Kind,
    },
    error::Result,
    ui::{age, output, table::Table},
};

/// Limit of the service on concurrent calls of a user.
const MAX_CONCURRENT: usize = 16;

/// List your sandboxes, running or not
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm list
  banger ps --json
  banger vm list --filter state=running --filter label=team=web

Next: `banger vm show NAME` shows all details of one, `banger vm exec NAME` opens a shell in it.")]
pub struct List {
    /// Accepted for users of docker: sandboxes that are not running are always shown
    #[arg(short = 'a', long = "all", hide = true)]
    _all: bool,
    /// Show the sandboxes of all users (needs an administrator)
    #[arg(long)]
    all_users: bool,
    /// Show only sandboxes that match all of these: `state=`, `name=`, `image=`, `kernel=`, or
    /// `label=KEY[=VALUE]`
    #[arg(long, value_name = "WHAT=VALUE", value_parser = Filter::parse)]
    filter: Vec<Filter>,
    /// Print only their names
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print a JSON array of objects; their keys are the D-Bus properties in snake case
    #[arg(long)]
    json: bool,
}

/// A condition on sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    /// This property has this value.
    Property(&'static str, String),
    /// It has this label, with this value if given.
    Label(String, Option<String>),
}

impl Filter {
    const PROPERTIES: [(&'static str, &'static str); 4] =
        [("state", "State"), ("name", "Name"), ("image", "ImageName"), ("kernel", "KernelName")];

    fn parse(text: &str) -> Result<Self, String> {
        let (what, value) = text.split_once('=').unwrap_or((text, ""));
        if what == "label" && !value.is_empty() {
            return Ok(match value.split_once('=') {
                Some((key, value)) => Self::Label(key.to_owned(), Some(value.to_owned())),
                None => Self::Label(value.to_owned(), None),
            });
        }
        let property = Self::PROPERTIES.iter().find(|(name, _)| *name == what && !value.is_empty());
        match property {
            Some((_, property)) => Ok(Self::Property(property, value.to_owned())),
            None => Err("write state=…, name=…, image=…, kernel=…, label=KEY or label=KEY=VALUE".to_owned()),
        }
    }

    fn fits(&self, sandbox: &Object) -> bool {
        match self {
            Self::Property(property, value) => sandbox.text(property) == value,
            Self::Label(key, wanted) => {
                let labels = sandbox.json();
                let value =
                    labels.get("labels").and_then(|labels| labels.get(key)).and_then(|value| value.as_str());
                value.is_some_and(|value| wanted.as_deref().is_none_or(|wanted| wanted == value))
            }
        }
    }
}

impl List {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let mut sandboxes =
            if self.all_users { of_all_users(&bus).await? } else { bus.objects(VM_INTERFACE).await? };
        sandboxes.retain(|sandbox| self.filter.iter().all(|filter| filter.fits(sandbox)));
        object::sort(&mut sandboxes);
        if self.json {
            output::json(&sandboxes.iter().map(Object::json).collect())?;
        } else if self.quiet {
            output::text(
                &sandboxes.iter().map(|sandbox| format!("{}\n", sandbox.name())).collect::<String>(),
            )?;
        } else {
            output::text(&table(&sandboxes, age::now()))?;
        }
        Ok(0)
    }
}

async fn of_all_users(bus: &Bus) -> Result<Vec<Object>> {
    let rows = bus.list_vms(&Options::from([(filter::ALL, Variant::from(true))])).await?;
    stream::iter(rows)
        .map(async |row| bus.properties(&row.path, Kind::Vm.interface()).await)
        .buffered(MAX_CONCURRENT)
        .try_collect()
        .await
}

fn table(sandboxes: &[Object], now: u64) -> String {
    let mut table =
        Table::new(["ID", "NAME", "STATE", "IMAGE", "ADDRESS", "VCPU", "MEM", "DISK", "CREATED", "PORTS"]);
    for sandbox in sandboxes {
        table.row([
            sandbox.short_id().to_owned(),
            sandbox.name().to_owned(),
            sandbox.text("State").to_owned(),
            sandbox.text("ImageName").to_owned(),
            sandbox.text("Address").to_owned(),
            sandbox.number("Vcpus").to_string(),
            Bytes(sandbox.number("Memory")).to_string(),
            Bytes(sandbox.number("DiskSize")).to_string(),
            age::ago(sandbox.number("CreatedAt"), now),
            PublishedPorts::of(sandbox).text(),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use zbus::OwnedVariant;

    use super::*;

    #[test]
    fn filters_look_at_properties_and_labels() {
        let labels = HashMap::from([("team".to_owned(), "web".to_owned())]);
        let properties = [("State", Variant::from("running")), ("Labels", Variant::from(labels))];
        let sandbox = Object::new(
            properties.map(|(name, value)| (name.to_owned(), OwnedVariant::try_from(value).unwrap())).into(),
        );
        let fits = |text: &str| Filter::parse(text).unwrap().fits(&sandbox);
        assert!(fits("state=running") && fits("label=team") && fits("label=team=web"));
        assert!(!fits("state=stopped") && !fits("label=other") && !fits("label=team=db") && !fits("name=x"));
        for text in ["running", "state=", "label=", "colour=red"] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_sandbox_is_a_row() {
        let properties = [
            ("Id", Variant::from("0123456789abcdef0123456789abcdef")),
            ("Name", Variant::from("calm-otter")),
            ("State", Variant::from("running")),
            ("ImageName", Variant::from("debian-bookworm")),
            ("Address", Variant::from("")),
            ("Vcpus", Variant::from(2u32)),
            ("Memory", Variant::from(1u64 << 30)),
            ("DiskSize", Variant::from(8u64 << 30)),
            ("CreatedAt", Variant::from(1_000_000u64)),
            ("PublishedPorts", Variant::from(vec![("tcp", 80u16, 8080u16, "127.0.0.1")])),
        ];
        let properties: HashMap<_, _> = properties
            .into_iter()
            .map(|(name, value)| (name.to_owned(), OwnedVariant::try_from(value).unwrap()))
            .collect();
        let expect = "\
ID            NAME        STATE    IMAGE            ADDRESS  VCPU  MEM    DISK   CREATED        PORTS
0123456789ab  calm-otter  running  debian-bookworm  -        2     1 GiB  8 GiB  3 minutes ago  127.0.0.1:8080->80/tcp
";
        assert_eq!(table(&[Object::new(properties)], 181_000_000), expect);
    }
}
