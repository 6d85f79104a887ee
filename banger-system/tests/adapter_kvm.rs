//! Whether KVM is there, asked of the real one.

mod skip;

use std::path::Path;

use banger_system::host::kvm::{DEVICE, run_a_guest};
use skip::require;

/// Also on a host that offers the device for guests of its own kind: it interprets what it cannot run.
#[test]
fn the_shortest_guest_halts() {
    require!(Path::new(DEVICE).exists(), "/dev/kvm");
    assert_eq!(run_a_guest(), Ok(true));
}
