//! Capabilities of a process (capabilities(7)): what root may do, in parts.

use std::io;

pub use caps::Capability;
use caps::{CapSet, errors::CapsError};
use rustix::{
    io::Errno,
    thread::{CapabilitySet, remove_capability_from_bounding_set},
};

/// What a process has, and what it passes on to programs that it starts.
const SETS: [CapSet; 4] = [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted];
/// More capabilities than any kernel has.
const MOST: u8 = 64;

/// Removes all capabilities from the bounding set, which limits what programs of root get. That is a privilege itself,
/// so it comes before a change of the user.
pub fn clear_bounding() -> io::Result<()> {
    caps::clear(None, CapSet::Bounding).map_err(failed)?;
    // The kernel may have some that are newer than the crate.
    for number in caps::all().len() as u8..MOST {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1u64 << number)) {
            Err(Errno::INVAL) => break,
            removed => removed?,
        }
    }
    Ok(())
}

/// Removes all capabilities of this process, and checks that none is left. Succeeds if it had none.
pub fn give_up() -> io::Result<()> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(failed)? {
        clear_bounding()?;
    }
    for set in SETS {
        caps::clear(None, set).map_err(failed)?;
    }
    for set in SETS {
        if let Some(left) = caps::read(None, set).map_err(failed)?.into_iter().next() {
            return Err(io::Error::other(format!("the process still has {left} ({set:?})")));
        }
    }
    Ok(())
}

/// Returns which of these capabilities the process lacks.
pub fn missing(needed: &[Capability]) -> io::Result<Vec<Capability>> {
    let effective = caps::read(None, CapSet::Effective).map_err(failed)?;
    Ok(needed.iter().copied().filter(|capability| !effective.contains(capability)).collect())
}

fn failed(error: CapsError) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rustix::process::getuid;

    use super::*;

    fn is_root() -> bool {
        let is_root = getuid().is_root();
        if !is_root {
            eprintln!("SKIPPED: this test needs root");
        }
        is_root
    }

    /// Capabilities belong to a thread.
    fn in_a_thread(work: impl FnOnce() + Send + 'static) {
        std::thread::spawn(work).join().unwrap();
    }

    #[test]
    fn what_was_given_up_is_missing_and_no_program_gets_it_back() {
        if !is_root() {
            return;
        }
        in_a_thread(|| {
            give_up().unwrap();
            assert_eq!(missing(&[Capability::CAP_CHOWN]).unwrap(), [Capability::CAP_CHOWN]);
            // It is fine to do it twice.
            give_up().unwrap();
            let status = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            let status = String::from_utf8(status.stdout).unwrap();
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
            }
        });
    }

    #[test]
    fn the_capabilities_of_root_are_not_missing_until_one_is_dropped() {
        if !is_root() {
            return;
        }
        in_a_thread(|| {
            let needed = [Capability::CAP_CHOWN, Capability::CAP_FOWNER];
            assert_eq!(missing(&needed).unwrap(), []);
            caps::drop(None, CapSet::Effective, Capability::CAP_FOWNER).unwrap();
            assert_eq!(missing(&needed).unwrap(), [Capability::CAP_FOWNER]);
        });
    }
}
