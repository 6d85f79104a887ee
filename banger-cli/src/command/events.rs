//! `banger events`.

use std::collections::HashMap;

use banger_proto::bus::{
    names::{
        IMAGE_INTERFACE, JOB_INTERFACE, KERNEL_INTERFACE, MANAGER_INTERFACE, MANAGER_PATH, VM_INTERFACE,
    },
    option::subscribe,
    proxy::Options,
};
use clap::Args;
use futures_util::StreamExt;
use serde_json::{Value, json};
use zbus::{Message, ObjectPath, Structure, Variant, message::Type};

use crate::{
    client::{
        bus::Bus,
        object,
        service::{Kind, id_of},
    },
    error::{Error, Result},
    ui::{
        age, output, sanitize,
        signals::{Signals, unless_ended},
    },
};

const INTERFACES: [&str; 5] =
    [MANAGER_INTERFACE, VM_INTERFACE, IMAGE_INTERFACE, KERNEL_INTERFACE, JOB_INTERFACE];

/// Follow the events of your sandboxes, images and jobs
///
/// Events are the signals that the service sends on the system bus. Press Ctrl-C to stop.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger events
  banger events --json | jq -r 'select(.event == \"StateChanged\") | .arguments[1]'")]
pub struct Events {
    /// Accepted as in `ps`: all your events are always shown
    #[arg(short = 'a', long = "all", hide = true)]
    _all: bool,
    /// Show the events of all users (needs an administrator)
    #[arg(long)]
    all_users: bool,
    /// Print a JSON object with the ids and paths of objects on each line
    #[arg(long)]
    json: bool,
}

impl Events {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        // Created before the call, so that nothing is missed.
        let mut messages = bus.messages();
        let options = match self.all_users {
            true => Options::from([(subscribe::ALL_OWNERS, Variant::from(true))]),
            false => Options::new(),
        };
        bus.subscribe(&options).await?;
        // Names are read on a connection of their own, whose answers need not wait behind signals.
        let mut names = Names::read(Bus::connect().await?).await?;
        let mut listener = Signals::catch()?.listen();
        loop {
            let next = unless_ended(&mut listener, async { Ok(messages.next().await) }).await;
            let message = match next {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(bus.ended(error.into()).await),
                Ok(None) => return Err(bus.ended(Error::ServiceEnded).await),
                // The normal way to end.
                Err(Error::Interrupted { .. }) => return Ok(0),
                Err(error) => return Err(error),
            };
            let Some(event) = event_of(&message) else { continue };
            match self.json {
                true => output::text(&format!("{event}\n"))?,
                false => output::text(&line(&event, &mut names).await)?,
            }
        }
    }
}

/// The names of objects, by id. A deleted object keeps its name here, for the events that follow.
struct Names {
    bus: Bus,
    by_id: HashMap<String, String>,
}

impl Names {
    /// Reads the names of all objects.
    async fn read(bus: Bus) -> Result<Self> {
        let mut by_id = HashMap::new();
        for kind in [Kind::Vm, Kind::Image, Kind::Kernel] {
            let objects = bus.objects(kind.interface()).await?;
            by_id.extend(
                objects.iter().map(|object| (object.text("Id").to_owned(), object.name().to_owned())),
            );
        }
        Ok(Self { bus, by_id })
    }

    /// Reads the name of an object again, which may be new or renamed. A job is called by what it does.
    async fn refresh(&mut self, path: &str) {
        let Ok(object) = ObjectPath::try_from(path) else { return };
        let id = id_of(&object);
        let interface = INTERFACES.iter().find(|interface| {
            let kind = interface.rsplit('.').next().unwrap_or_default().to_lowercase();
            path.strip_suffix(&id).is_some_and(|parent| parent.ends_with(&format!("/{kind}/")))
        });
        let Some(interface) = interface else { return };
        // A deleted object has no properties any more.
        let properties = self.bus.properties(&object, interface).await.unwrap_or_default();
        let name = if *interface == JOB_INTERFACE { properties.text("Kind") } else { properties.name() };
        if !name.is_empty() {
            self.by_id.insert(id, name.to_owned());
        }
    }

    /// Reads the names of the objects that these arguments have the paths of, as far as they are unknown.
    async fn learn(&mut self, arguments: &[Value]) {
        let mut left: Vec<&Value> = arguments.iter().collect();
        while let Some(value) = left.pop() {
            match value {
                Value::Array(items) => left.extend(items),
                Value::Object(entries) => left.extend(entries.values()),
                Value::String(path) if path.starts_with(MANAGER_PATH) && self.named(path) == path => {
                    self.refresh(path).await;
                }
                _ => {}
            }
        }
    }

    /// Forgets a job that is gone.
    fn forget(&mut self, path: &str) {
        self.by_id.remove(path.rsplit('/').next().unwrap_or(path));
    }

    /// Returns a text, or the name of the object whose id or path it is.
    fn named<'a>(&'a self, text: &'a str) -> &'a str {
        let id = text.rsplit('/').next().unwrap_or(text);
        self.by_id.get(id).map_or(text, String::as_str)
    }

    /// Formats an argument of an event.
    fn plain(&self, value: &Value) -> String {
        match value {
            Value::String(text) if text.is_empty() => "-".to_owned(),
            Value::String(text) => self.named(text).to_owned(),
            Value::Object(entries) => {
                let entry = |(key, value): (&String, &Value)| format!("{key}={}", self.plain(value));
                entries.iter().map(entry).collect::<Vec<_>>().join(" ")
            }
            other => other.to_string(),
        }
    }
}

/// Formats an event for people: the time, what happened, to which object, and the details.
async fn line(event: &Value, names: &mut Names) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    let arguments = event["arguments"].as_array().map(Vec::as_slice).unwrap_or_default();
    // The manager's signals are about the object in their arguments: its id and its path.
    let (path, details) = match (text("interface") == MANAGER_INTERFACE, arguments) {
        (true, [_, Value::String(path), details @ ..]) => (path.as_str(), details),
        _ => (text("path"), arguments),
    };
    names.refresh(path).await;
    names.learn(details).await;
    let words = details.iter().map(|value| names.plain(value)).filter(|word| !word.is_empty());
    let details = words.collect::<Vec<_>>().join(" ");
    let at = age::stamp(event["time_usec"].as_u64().unwrap_or_default());
    let line = format!("{at} {} {} {details}", text("event"), names.named(path));
    // The signals of a deletion's job come after the sandbox is gone.
    if text("event") == "JobRemoved" {
        names.forget(path);
    }
    format!("{}\n", sanitize::line(line.trim_end()))
}

/// Converts a signal of the service to a JSON object.
fn event_of(message: &Message) -> Option<Value> {
    let header = message.header();
    let interface = header.interface()?;
    if message.message_type() != Type::Signal || !INTERFACES.contains(&interface.as_str()) {
        return None;
    }
    let body = message.body();
    let arguments = match body.signature().to_string().as_str() {
        "" => Vec::new(),
        _ => body.deserialize::<Structure<'_>>().ok()?.fields().iter().map(object::json).collect(),
    };
    let path = header.path()?.as_str();
    Some(json!({
        "time_usec": age::now(),
        "interface": interface.as_str(),
        "event": header.member()?.as_str(),
        "object": path.rsplit('/').next().unwrap_or(path),
        "path": path,
        "arguments": arguments,
    }))
}
