//! Shared code of `vm show`, `image show` and `kernel show`.

use banger_proto::count::counted;
use clap::Args;
use serde_json::{Map, Value};

use crate::{
    client::{bus::Bus, published_port::PublishedPorts, service::Kind},
    command::table_args::View,
    error::Result,
    ui::{column::List, output, state_reason, table::Table, template::Format},
};

/// The options of a command that shows an object.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Name, id or id prefix
    #[arg(value_name = "NAME")]
    reference: String,
    /// Print a JSON object; its keys are the D-Bus properties in snake case
    #[arg(long)]
    json: bool,
    /// Fill this template, such as '{{.Name}} {{.Id}}'; `json` for a JSON object on one line. {{.KEY}} is a key of
    /// --json
    #[arg(short, long, value_name = "FORMAT", value_parser = form_of_one, conflicts_with = "json")]
    format: Option<Format>,
}

/// Parses the value of `--format`, which has no table of one object.
fn form_of_one(text: &str) -> Result<Format, String> {
    match Format::parse(text)? {
        Format::Table | Format::TableOf(_) => {
            Err("write json, or a template such as '{{.Name}} {{.Id}}'".to_owned())
        }
        format => Ok(format),
    }
}

impl ShowArgs {
    /// Shows all properties of the object.
    pub async fn run(&self, kind: Kind) -> Result<u8> {
        let view = self.view(kind)?;
        let bus = Bus::connect().await?;
        let path = bus.find(kind, &self.reference).await?;
        self.print(view, bus.properties(&path, kind.interface()).await?.json())
    }

    /// Checks the template, before the service is asked. Returns none if there is no template.
    pub fn view(&self, kind: Kind) -> Result<Option<View>> {
        let verb = match kind {
            Kind::Vm => "vm show",
            Kind::Image => "image show",
            Kind::Kernel => "kernel show",
        };
        self.format.clone().map(|format| View::formatted(List { verb, columns: &[] }, format)).transpose()
    }

    /// Returns whether the object is printed as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns the reference of the object.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Prints an object.
    pub fn print(&self, view: Option<View>, object: Value) -> Result<u8> {
        match view {
            Some(view) => view.print(vec![object], false)?,
            None if self.json => output::json(&object)?,
            None => output::text(&lines(&object))?,
        }
        Ok(0)
    }
}

/// Formats one line per property: name and id first, the others in order.
fn lines(object: &Value) -> String {
    let Value::Object(properties) = object else { return String::new() };
    const FIRST: [&str; 2] = ["name", "id"];
    let first = FIRST.iter().filter_map(|key| properties.get_key_value(*key));
    let rest = properties.iter().filter(|(key, _)| !FIRST.contains(&key.as_str()));
    let mut table = Table::pairs();
    for (key, value) in first.chain(rest) {
        table.row([key.clone(), text(key, value)]);
    }
    table.text()
}

/// Formats when the phases of a boot were reached, in their order.
fn phases_text(phases: &Map<String, Value>) -> String {
    let phase = |name: &str| match phases.get(name).and_then(Value::as_u64) {
        Some(usec) => format!("{name} after {:.1} s", usec as f64 / 1e6),
        None => format!("{name} not yet"),
    };
    ["agent", "init", "boot"].map(phase).join(", ")
}

/// Formats the time after which a sandbox counts as idle.
fn idle_time(usec: u64) -> String {
    let seconds = usec / 1_000_000;
    match seconds {
        _ if seconds.is_multiple_of(3600) => counted(seconds / 3600, "hour"),
        _ if seconds.is_multiple_of(60) => counted(seconds / 60, "minute"),
        _ => counted(seconds, "second"),
    }
}

/// Explains why a sandbox does not idle.
fn busy_text(busy: &str) -> String {
    let why = match busy {
        "streams" => "a client uses it",
        "commands" => "a detached command or a session runs in it",
        "connections" => "it has network connections",
        "load" => "its guest uses the processor",
        "unknown" => "it has a job, or does not answer",
        _ => return busy.to_owned(),
    };
    format!("{why} ({busy})")
}

/// Formats a value for people.
fn text(key: &str, value: &Value) -> String {
    const SIZES: [&str; 8] = [
        "memory",
        "disk_size",
        "root_size",
        "virtual_size",
        "content_size",
        "disk_usage",
        "size",
        "module_tree_size",
    ];
    let size = SIZES.contains(&key);
    match (value, value.as_u64()) {
        (_, Some(bytes)) if size => banger_proto::size::Bytes(bytes).to_string(),
        (_, Some(then)) if key.ends_with("_at") => crate::ui::age::date(then, crate::ui::age::now()),
        (_, Some(0)) if key == "idle_after" => String::new(),
        (_, Some(usec)) if key == "idle_after" => idle_time(usec),
        (Value::String(busy), _) if key == "busy_with" => busy_text(busy),
        (Value::String(reason), _) if key == "state_reason" => state_reason::describe(reason),
        (ports @ Value::Array(_), _) if key.ends_with("_ports") => PublishedPorts::of_json(ports).text(),
        (Value::Object(phases), _) if key == "phases" => phases_text(phases),
        (Value::String(text), _) => text.clone(),
        (Value::Array(items), _) => items.iter().map(|item| text("", item)).collect::<Vec<_>>().join(" "),
        (Value::Object(entries), _) => {
            let entry = |(key, value): (&String, &Value)| format!("{key}={}", text("", value));
            entries.iter().map(entry).collect::<Vec<_>>().join(" ")
        }
        (Value::Null, _) => String::new(),
        (other, _) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_are_filled_with_keys_of_one_object() {
        let object = json!({"name": "web", "state": "running", "phases": {"agent": 5}, "labels": {"a": "b"}});
        for (format, expect) in [
            ("{{.Name}} {{.state}}", "web running\n"),
            ("{{.phases.agent}} {{json .labels}}", "5 {\"a\":\"b\"}\n"),
            ("json", &*format!("{object}\n")),
        ] {
            let args = ShowArgs {
                reference: "web".to_owned(),
                json: false,
                format: Some(form_of_one(format).unwrap()),
            };
            let view = args.view(Kind::Vm).unwrap().unwrap();
            assert_eq!(view.text(std::slice::from_ref(&object), None, 0), expect, "{format}");
        }
        for table in ["table", "table {{.Name}}"] {
            assert!(form_of_one(table).is_err(), "{table}");
        }
    }

    #[test]
    fn properties_are_formatted_for_people() {
        let object = json!({
            "id": "0123",
            "name": "calm-otter",
            "memory": 1u64 << 30,
            "ready": true,
            "address": "",
            "idle_action": "suspend",
            "idle_after": 1_800_000_000u64,
            "busy_with": "connections",
            "dns_names": ["a.vm", "b.vm"],
            "labels": {"x": "y"},
            "started_at": 0,
            "vcpus": 2,
            "published_ports": [{
                "protocol": "tcp", "guest_port": 80, "host_port": 8080, "host_address": "127.0.0.1",
            }],
            "phases": {"agent": 640_000, "init": 3_210_000, "boot": null},
        });
        let expect = "\
name             calm-otter
id               0123
address          -
busy_with        it has network connections (connections)
dns_names        a.vm b.vm
idle_action      suspend
idle_after       30 minutes
labels           x=y
memory           1 GiB
phases           agent after 0.6 s, init after 3.2 s, boot not yet
published_ports  127.0.0.1:8080->80/tcp
ready            true
started_at       -
vcpus            2
";
        assert_eq!(lines(&object), expect);
    }
}
