//! Records all signals that the bus sends to one connection.

use std::collections::HashMap;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use zbus::{MatchRule, Message, MessageStream, ObjectPath, OwnedVariant, fdo::DBusProxy, message::Type};

use super::{Client, within_timeout};

type Interfaces = HashMap<String, HashMap<String, OwnedVariant>>;

/// A signal: its object and its name.
#[derive(Debug, Clone)]
pub struct Signal {
    pub object: String,
    pub signal: String,
    pub message: Message,
}

pub struct SignalRecorder {
    signals: mpsc::UnboundedReceiver<Signal>,
}

impl SignalRecorder {
    /// Records every signal that the bus delivers.
    pub async fn of(client: &Client) -> Self {
        let all = MatchRule::builder().msg_type(Type::Signal).build().unwrap();
        DBusProxy::new(&client.connection).await.unwrap().add_match_rule(all).await.unwrap();
        let mut messages = MessageStream::from(&client.connection);
        let (sender, signals) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let from_bus = message.header().sender().is_some_and(|name| name == "org.freedesktop.DBus");
                if message.message_type() == Type::Signal && !from_bus {
                    let _ = sender.send(parse_signal(message));
                }
            }
        });
        Self { signals }
    }

    /// Returns all signals up to this one, which must come.
    pub async fn until(&mut self, object: &str, signal: &str) -> Vec<Signal> {
        let mut all = Vec::new();
        within_timeout(async {
            loop {
                let next = self.signals.recv().await.expect("the connection lives");
                let is_it = next.object == object && next.signal == signal;
                all.push(next);
                if is_it {
                    return;
                }
            }
        })
        .await;
        all
    }
}

fn parse_signal(message: Message) -> Signal {
    let signal = message.header().member().unwrap().to_string();
    let body = message.body();
    // The manager's signals name their object in the body.
    let object: String = match signal.as_str() {
        "InterfacesAdded" => body.deserialize::<(ObjectPath<'_>, Interfaces)>().unwrap().0.to_string(),
        "InterfacesRemoved" => body.deserialize::<(ObjectPath<'_>, Vec<String>)>().unwrap().0.to_string(),
        "JobRemoved" => body.deserialize::<(String, ObjectPath<'_>, String)>().unwrap().1.to_string(),
        name if name.ends_with("New") || name.ends_with("Removed") => {
            body.deserialize::<(String, ObjectPath<'_>)>().unwrap().1.to_string()
        }
        _ => message.header().path().unwrap().to_string(),
    };
    drop(body);
    Signal { object, signal, message }
}
