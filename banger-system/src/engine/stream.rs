//! Streams to programs that listen in a guest, handed over connected: the client needs no route to the guest, and
//! the service is not in its way.

use core::net::SocketAddr;
use std::{os::fd::OwnedFd, time::Duration};

use banger_domain::{
    id::{Timestamp, Uid, VmId},
    vm::Vm,
};

use super::{
    Engine,
    error::{Error, Kind, Result},
    now,
    registry::no_such,
};

/// What one try may take: a guest on this host answers in no time, or is too busy to be of use.
const TRY: Duration = Duration::from_secs(3);
/// How long what the image starts may take after the agent, at least and at most, and how many times as long
/// as the agent itself took: on an emulated or busy host everything is slower by the same measure.
const BOOT_MIN: Duration = Duration::from_secs(5);
const BOOT_MAX: Duration = Duration::from_secs(120);
const BOOT_FACTOR: u32 = 12;
/// From one try to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// What listens in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The ssh server.
    Ssh,
}

impl Service {
    /// The service with this name on the bus.
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
    /// A connection to what listens in a guest. While the guest boots, this waits for it.
    pub async fn open_stream(&self, id: VmId, for_whom: Uid, service: Service) -> Result<OwnedFd> {
        loop {
            // Looked at each time: the machine may stop, and stays known by its id when it is renamed.
            let view = self.vm(id).ok_or_else(|| no_such(Kind::Vm, &id.to_string()))?;
            let name = || view.vm.name.to_string();
            let address = match view.address {
                Some(address) if view.vm.state.is_up() => SocketAddr::from((address, service.port())),
                _ => return Err(Error::NotRunning { name: name() }),
            };
            if let Some(stream) = self.shared.ports.network.connect(address, TRY).await? {
                return self.hand_out(for_whom, stream);
            }
            if !is_booting(&view.vm, now(&*self.shared.ports.clock)) {
                return Err(Error::NoAnswer { program: service.program(), name: name() });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether what the image starts may still be on its way.
fn is_booting(vm: &Vm, now: Timestamp) -> bool {
    let since = |then: Timestamp| Duration::from_micros(now.0.saturating_sub(then.0));
    if !vm.is_ready() {
        return since(vm.started_at) < BOOT_MAX;
    }
    let agent = since(vm.started_at).saturating_sub(since(vm.ready_at));
    since(vm.ready_at) < (agent * BOOT_FACTOR).clamp(BOOT_MIN, BOOT_MAX)
}
