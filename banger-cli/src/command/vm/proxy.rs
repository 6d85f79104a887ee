//! Passes the user's proxies on to commands in a sandbox.

use std::collections::BTreeMap;

use banger_proto::{
    bus::names::VM_INTERFACE,
    guest::{Exec, message::Endpoint},
};
use tokio::task::JoinSet;
use zbus::OwnedObjectPath;

use super::{exec_args::ExecArgs, forward};
use crate::{
    client::bus::Bus,
    error::{Error, Result},
    user::{defaults::Key, proxy::Proxies, settings::Settings},
    workspace::tooling,
};

/// The proxies of commands in a sandbox. Those that the sandbox cannot reach are relayed as long as this is kept.
#[derive(Default)]
pub struct ProxyRelays {
    variables: BTreeMap<String, String>,
    relays: Vec<JoinSet<Result<()>>>,
}

impl ProxyRelays {
    /// Starts the relays to the proxies of the caller, if the command gets them.
    pub async fn start(bus: &Bus, vm: &OwnedObjectPath, exec: &ExecArgs) -> Result<Self> {
        if !exec.proxy() {
            return Ok(Self::default());
        }
        let proxies = Proxies::of_caller()?;
        if proxies.is_empty() && exec.asks_for_proxy() {
            eprintln!(
                "note: there is no proxy to pass on: http_proxy, https_proxy and all_proxy are not set."
            );
        }
        Self::relay(bus, vm, &proxies).await
    }

    /// Does the same for commands without options of their own: the user's setting decides.
    pub async fn by_default(bus: &Bus, vm: &OwnedObjectPath) -> Result<Self> {
        match Settings::of_caller()?.defaults.switch(Key::Proxy) {
            Some(true) => Self::relay(bus, vm, &Proxies::of_caller()?).await,
            _ => Ok(Self::default()),
        }
    }

    async fn relay(bus: &Bus, vm: &OwnedObjectPath, proxies: &Proxies) -> Result<Self> {
        if proxies.is_empty() {
            return Ok(Self::default());
        }
        let sandbox = bus.properties(vm, VM_INTERFACE).await?;
        let (mut ports, mut relays) = (BTreeMap::new(), Vec::new());
        for (host, port) in proxies.unreachable(sandbox.flag("Nat")) {
            let connect = Endpoint::Tcp(host.clone(), port);
            let (listening, relay) = forward::listen_near(bus, vm, port, connect).await?;
            ports.insert((host, port), listening);
            relays.push(relay);
        }
        Ok(Self { variables: proxies.variables(sandbox.name(), &ports), relays })
    }

    /// Returns the variables of commands.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Adds the variables to a command, unless the user has set them for it.
    pub fn add_to(&self, exec: &mut Exec) {
        tooling::put_variables(exec, &self.variables);
    }

    /// Refuses to leave a command that needs a relay. The option is the one that lets the command continue.
    pub fn check_detached(&self, option: &str) -> Result<()> {
        if self.relays.is_empty() {
            return Ok(());
        }
        Err(not_detached(option))
    }
}

/// Returns the error for a command that would outlive its relay, because of this option.
pub fn not_detached(option: &str) -> Error {
    let message = format!(
        "cannot use the proxy with `{option}`: the sandbox reaches it through this command, which may end first"
    );
    Error::Refused(message)
        .with_hint(format!("leave out `{option}`, or run it without a proxy: `--no-proxy`."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_command_that_continues_may_not_need_a_relay() {
        let mut proxies = ProxyRelays::default();
        assert!(proxies.check_detached("--session").is_ok());
        proxies.relays.push(JoinSet::new());
        let error = proxies.check_detached("--session").unwrap_err();
        assert!(error.hint().unwrap().starts_with("leave out `--session`"));
    }
}
