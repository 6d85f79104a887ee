//! `banger events`.

use banger_proto::bus::{
    names::{IMAGE_INTERFACE, JOB_INTERFACE, KERNEL_INTERFACE, MANAGER_INTERFACE, VM_INTERFACE},
    option::subscribe,
    proxy::Options,
};
use clap::Args;
use futures_util::StreamExt;
use serde_json::{Value, json};
use zbus::{Message, Structure, Variant, message::Type};

use crate::{
    client::{bus::Bus, object},
    error::{Error, Result},
    ui::{
        age, output,
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
    /// Show the events of all users (needs an administrator)
    #[arg(short, long)]
    all: bool,
    /// Print a JSON object on each line
    #[arg(long)]
    json: bool,
}

impl Events {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        // Created before the call, so that nothing is missed.
        let mut messages = bus.messages();
        let options = match self.all {
            true => Options::from([(subscribe::ALL_OWNERS, Variant::from(true))]),
            false => Options::new(),
        };
        bus.subscribe(&options).await?;
        let mut listener = Signals::catch()?.listen();
        loop {
            let next = unless_ended(&mut listener, async { Ok(messages.next().await) }).await;
            let message = match next {
                Ok(Some(message)) => message?,
                Ok(None) => return Err(Error::ServiceEnded),
                // The normal way to end.
                Err(Error::Interrupted { .. }) => return Ok(0),
                Err(error) => return Err(error),
            };
            if let Some(event) = event_of(&message) {
                self.print(&event)?;
            }
        }
    }

    fn print(&self, event: &Value) -> Result<()> {
        if self.json {
            return output::text(&format!("{event}\n"));
        }
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let arguments: Vec<String> =
            event["arguments"].as_array().map(|all| all.iter().map(plain).collect()).unwrap_or_default();
        let at = age::stamp(event["time_usec"].as_u64().unwrap_or_default());
        let line = format!("{at} {} {} {}", text("event"), text("object"), arguments.join(" "));
        output::text(&format!("{}\n", crate::ui::sanitize::line(line.trim_end())))
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
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
