//! Opens connections to services in a guest and hands them to the client, which needs no route to the guest. The
//! service does not relay any bytes.

use core::net::SocketAddr;
use std::{os::fd::OwnedFd, time::Duration};

use banger_domain::{
    id::{Timestamp, Uid, VmId},
    lifecycle::State,
    vm::{BootedFrom, Vm},
};

use super::{
    Engine,
    error::{Error, Kind, Result},
    inventory::no_such,
    now,
};

/// Timeout of one connection attempt: a guest on this host answers at once, or is too busy.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a suspended guest may take until it answers.
const WAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long services may take to start after the agent: a multiple of the agent's own boot time, within bounds. On an
/// emulated or busy host, everything is slower by the same factor.
const BOOT_MIN: Duration = Duration::from_secs(5);
const BOOT_MAX: Duration = Duration::from_secs(120);
const BOOT_FACTOR: u32 = 12;
/// The same for a boot from a template, which lacks the kernel's part: under emulation four fifths of it.
const TEMPLATE_FACTOR: u32 = 60;
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// A service in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The ssh server.
    Ssh,
}

impl Service {
    /// Returns the service with this name on the bus.
    pub fn parse(name: &str) -> Option<Self> {
        use banger_proto::bus::option::stream;
        match name {
            stream::SSH => Some(Service::Ssh),
            _ => None,
        }
    }

    const fn port(self) -> u16 {
        match self {
            Service::Ssh => 22,
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Service::Ssh => "sshd",
        }
    }
}

impl Engine {
    /// Returns a connection to a service in a guest. While the guest boots, waits for it.
    pub async fn open_stream(&self, id: VmId, user: Uid, service: Service) -> Result<OwnedFd> {
        self.wake(id, WAKE_TIMEOUT).await?;
        self.note_use(id).await;
        loop {
            // Checked each time: the VM may stop, and keeps its id when it is renamed.
            let view = self.vm(id).ok_or_else(|| no_such(Kind::Vm, &id.to_string()))?;
            let name = || view.vm.name.to_string();
            match view.vm.state {
                State::Paused => return Err(Error::Paused { name: name() }),
                State::Suspending | State::Suspended => return Err(Error::Suspended { name: name() }),
                _ => {}
            }
            let address = match view.address {
                Some(address) if view.vm.state.is_up() => SocketAddr::from((address, service.port())),
                _ => return Err(Error::NotRunning { name: name() }),
            };
            if let Some(stream) = self.shared.ports.network.connect(address, CONNECT_TIMEOUT).await? {
                return self.hand_out(user, stream);
            }
            if !is_booting(&view.vm, now(&*self.shared.ports.clock)) {
                return Err(Error::NoAnswer { program: service.program(), name: name() });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Returns whether the image's services may still be starting.
fn is_booting(vm: &Vm, now: Timestamp) -> bool {
    if !vm.is_ready() {
        return since(vm.started_at, now) < BOOT_MAX;
    }
    is_booting_at(vm.started_at, vm.ready_at, vm.booted_from, now)
}

/// The same for a guest that became ready then.
fn is_booting_at(started: Timestamp, ready: Timestamp, from: Option<BootedFrom>, now: Timestamp) -> bool {
    let factor = if from == Some(BootedFrom::Template) { TEMPLATE_FACTOR } else { BOOT_FACTOR };
    since(ready, now) < (since(started, ready) * factor).clamp(BOOT_MIN, BOOT_MAX)
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::from_micros(now.0.saturating_sub(then.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_get_time_in_proportion_to_the_boot() {
        let (cold, template) = (Some(BootedFrom::Cold), Some(BootedFrom::Template));
        for (from, ready_at, until) in [
            (None, 1, 12),
            (cold, 1, 12),
            (template, 1, 60),
            (cold, 4, 48),
            // Bounds of a fast and of a very slow host.
            (template, 0, 5),
            (cold, 60, 120),
        ] {
            let at = |seconds: u64| Timestamp(1_000_000_000 + seconds * 1_000_000);
            let is_booting = |now| is_booting_at(at(0), at(ready_at), from, at(ready_at + now));
            assert!(is_booting(until - 1) && !is_booting(until), "{from:?} {ready_at}");
        }
    }
}
