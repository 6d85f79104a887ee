//! Tools for the ports of a sandbox.

use banger_proto::{
    bus::{
        names::VM_INTERFACE,
        option::publish::{SCOPE, scope},
        proxy::Options,
    },
    guest::{Request, facts::ListeningPort},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zbus::Variant;

use super::{Call, Effect, Tool};
use crate::{
    client::published_port::PublishedPorts, command::vm::publish::add_hint, error::Result,
    mcp::failure::invalid, ui::signals::unless_ended,
};

/// Where a published port is reached. Other hosts do not reach it.
const LOOPBACK: &str = "127.0.0.1";

/// A protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Arguments of `ports`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ports {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
}

/// Result of `ports`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Listed {
    /// What listens in the sandbox.
    listening: Vec<Listening>,
    /// The ports of the host that reach it.
    published: Vec<Published>,
}

/// A listening socket in a sandbox.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Listening {
    /// `tcp` or `udp`.
    protocol: String,
    /// Its port.
    port: u16,
    /// Its address. One that listens on the loopback of the sandbox is not reached from the host.
    address: String,
    /// The name of the program.
    program: String,
}

/// A port of the host that reaches a sandbox.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Published {
    /// `tcp` or `udp`.
    protocol: String,
    /// The port in the sandbox.
    guest_port: u16,
    /// The address on the host.
    host_address: String,
    /// The port on the host.
    host_port: u16,
}

impl Tool for Ports {
    const NAME: &'static str = "ports";
    const ABOUT: &'static str = "Lists what listens in a sandbox, and the ports of the host that reach it.";
    const EFFECT: Effect = Effect::Reads;
    type Output = Listed;

    async fn run(self, call: Call) -> Result<Listed> {
        let found = call.find_for_use(&self.sandbox).await?;
        let listening: Vec<ListeningPort> =
            call.guest(&found).query(Request::Ports).await.map_err(|error| found.about(error))?;
        let sandbox = call.bus().properties(&found.path, VM_INTERFACE).await?;
        let listening =
            listening.into_iter().map(|ListeningPort { protocol, port, address, program, .. }| Listening {
                protocol,
                port,
                address,
                program,
            });
        let published = PublishedPorts::of(&sandbox).ports.into_iter().map(|port| Published {
            protocol: port.protocol,
            guest_port: port.guest_port,
            host_address: port.host_address,
            host_port: port.host_port,
        });
        Ok(Listed { listening: listening.collect(), published: published.collect() })
    }
}

/// Arguments of `publish`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// The port in the sandbox.
    guest_port: u16,
    /// The port on the host. A free one if absent.
    #[serde(default)]
    host_port: Option<u16>,
    /// `tcp` or `udp`.
    #[serde(default)]
    protocol: Protocol,
}

impl Tool for Publish {
    const NAME: &'static str = "publish";
    const ABOUT: &'static str =
        "Publishes a port of a sandbox at 127.0.0.1 of the host, so that the user can open it.";
    const EFFECT: Effect = Effect::Adds;
    type Output = Published;

    async fn run(self, call: Call) -> Result<Published> {
        let Self { guest_port, host_port, protocol, .. } = self;
        if guest_port == 0 || host_port == Some(0) {
            return Err(invalid("a port is a number from 1 to 65535"));
        }
        let found = call.find_for_use(&self.sandbox).await?;
        let options = Options::from([(SCOPE, Variant::from(scope::LOOPBACK))]);
        let host = host_port.unwrap_or_default();
        let publishing = call.bus().publish_port(&found.path, protocol.name(), guest_port, host, &options);
        let published = unless_ended(&mut call.listener(), publishing).await;
        let host_port = published.map_err(|error| found.about(add_hint(error)))?;
        let (protocol, host_address) = (protocol.name().to_owned(), LOOPBACK.to_owned());
        Ok(Published { protocol, guest_port, host_address, host_port })
    }
}

/// Arguments of `unpublish`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unpublish {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// The port on the host.
    host_port: u16,
    /// `tcp` or `udp`.
    #[serde(default)]
    protocol: Protocol,
}

/// Result of `unpublish`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Unpublished {
    /// The port of the host that no longer reaches the sandbox.
    host_port: u16,
}

impl Tool for Unpublish {
    const NAME: &'static str = "unpublish";
    const ABOUT: &'static str = "Removes a published port of a sandbox.";
    const EFFECT: Effect = Effect::Changes;
    type Output = Unpublished;

    async fn run(self, call: Call) -> Result<Unpublished> {
        let found = call.find(&self.sandbox).await?;
        let unpublishing = call.bus().unpublish_port(&found.path, self.protocol.name(), self.host_port);
        unless_ended(&mut call.listener(), unpublishing).await.map_err(|error| found.about(error))?;
        Ok(Unpublished { host_port: self.host_port })
    }
}
