//! What restricted guests were denied: names by the name server, which tells, and packets by the packet filter, which is
//! asked.

use std::{
    sync::{MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use banger_domain::{
    egress::{
        host_name::HostName,
        log::{Destination, EgressLogs},
    },
    id::{Timestamp, VmId},
    net::nic::Nic,
};

use super::{LinuxNetwork, grants::Denied};
use crate::{host::blocking::blocking, ports::network::Result};

/// How often the service asks the packet filter what it has refused to restricted guests.
pub(super) const COLLECT: Duration = Duration::from_secs(1);

impl LinuxNetwork {
    /// Begins to count what a guest is allowed and denied, if it is restricted.
    pub(super) fn follow_denials(&self, nic: &Nic) {
        if nic.is_restricted() {
            self.logs().follow(nic.vm);
        }
    }

    /// Counts the look-up of a name. The name server calls this, and must not wait for the packet filter.
    pub(super) fn deny_name(&self, vm: VmId, name: &HostName) {
        self.logs().deny(vm, Destination::Name(name.clone()), 1, now());
        self.denied.notify_one();
    }

    /// Counts what the packet filter has refused to restricted guests.
    pub(super) async fn collect_denials(&self) -> Result<()> {
        let filter = self.filter.clone();
        let denied = blocking("look for what was refused to guests", move || filter.take_denied()).await?;
        if denied.is_empty() {
            return Ok(());
        }
        let (mut logs, now) = (self.logs(), now());
        for Denied { vm, destination, times } in denied {
            logs.deny(vm, destination, times, now);
        }
        self.denied.notify_one();
        Ok(())
    }

    pub(super) fn logs(&self) -> MutexGuard<'_, EgressLogs> {
        self.egress_logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether what is tried each second fails. Only the first failure is logged.
#[derive(Default)]
pub(super) struct Failing(bool);

impl Failing {
    pub(super) fn note(&mut self, result: Result<()>) {
        let was_failing = std::mem::replace(&mut self.0, result.is_err());
        if let Err(error) = result
            && !was_failing
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot count what was refused to guests"
            );
        }
    }
}

/// Returns the current time.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        sync::{Arc, mpsc},
        thread,
    };

    use super::*;
    use crate::tasks::Tasks;

    #[tokio::test]
    async fn a_denied_name_does_not_wait_for_the_packet_filter() {
        let network = Arc::new(LinuxNetwork::new(0, Arc::default(), &Tasks::default()).unwrap());
        let vm = VmId::from_bits(1);
        network.logs().follow(vm);
        let busy = network.filter.lock();
        let (done, denied) = mpsc::channel();
        let asked = Arc::clone(&network);
        thread::spawn(move || {
            asked.deny_name(vm, &"a.example".parse().unwrap());
            let _ = done.send(());
        });
        assert!(denied.recv_timeout(Duration::from_secs(120)).is_ok(), "it waits");
        drop(busy);
        assert_eq!(network.logs().of(vm).denied().len(), 1);
    }
}
