//! Checks of egress policies: what a guest reaches of an internet with two servers and a name server.

use anyhow::{Result, ensure};

use super::{Check, network::with_internet, run_as, run_as_root};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a guest with an egress policy reaches the allowed names, and nothing else", egress)];

fn egress(host: &Host) -> Result<()> {
    with_internet(host, || {
        run_as_root(host, &script!("level4/egress/names.sh" uses "wait.sh"))?;
        let guest = script!("level4/egress/guest.sh" uses "wait.sh" + "level4/network/tools.sh");
        let said = run_as(host, "alice", &guest);
        run_as_root(host, &script!("level4/egress/no_names.sh"))?;
        let said = said?;
        for expected in [
            "allowed: 200 in time 1",
            "not allowed: 000 in time 1",
            "a literal address: 000 in time 1",
            "the host reaches the server inside: open",
            "a name that leads inside has: .",
            "a name that leads inside: 000 in time 1",
            "a name that leads to an allowed address has: 10.0.0.1.",
            "another port of that address: 000 in time 1",
            "denied: other.test look-up denied",
            "denied: 203.0.113.3 80/tcp denied",
            "in json: other.test",
            "allowed now: 200 in time 1",
            "denied again: 000 in time 1",
            "nothing allowed: 000 in time 1",
            "a wrong entry: refused",
        ] {
            ensure!(said.lines().any(|line| line == expected), "no {expected:?} in {said:?}");
        }
        Ok(())
    })
}
