//! What the service may do that an ordinary process may not (capabilities(7)).

use banger_jail::capabilities::{Capability, missing};

use crate::ports::{FromHost as _, HostError, host_error::Result};

/// The capabilities that it needs, as `CapabilityBoundingSet=` of its unit lists them.
pub const NEEDED: [Capability; 5] = [
    // TAPs, addresses, routes, the packet filter.
    Capability::CAP_NET_ADMIN,
    // Loop devices, device mapper.
    Capability::CAP_SYS_ADMIN,
    // Files of sandboxes and workers, which are users of their own.
    Capability::CAP_CHOWN,
    Capability::CAP_FOWNER,
    // Port 53, and published ports below 1024.
    Capability::CAP_NET_BIND_SERVICE,
];

/// Checks that this process has them.
pub fn check() -> Result<()> {
    let missing =
        missing(&NEEDED).map_err(|error| HostError::os("read the capabilities of the service", error))?;
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Err(HostError::not_ready(format!(
        "the service lacks {}; start it with `systemctl start banger-system`, or as root",
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_unit_has_the_capabilities_that_the_service_needs_and_no_others() {
        let unit = include_str!("../../../systemd/banger-system.service");
        let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
        assert_eq!(line.split(' ').collect::<Vec<_>>(), NEEDED.map(|capability| capability.to_string()));
    }
}
