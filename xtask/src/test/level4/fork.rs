//! Checks of forks: new sandboxes with the disks of another one, and with its memory if it runs; and of snapshots.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a fork of a fork keeps the layers of deleted sandboxes, grows, and becomes an image", layers)];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] = &[
    ("forks of a stopped sandbox have its files and share no identity", children),
    ("forks of a running sandbox continue its processes and share no identity", running),
    ("snapshots are forked and restored as often as wanted, and go with their sandbox", snapshots),
];

fn children(host: &Host) -> Result<()> {
    expect_lines(
        &run_as(host, "alice", &script!("level4/fork/children.sh"))?,
        &[
            "work-1: started",
            "work-2: started",
            "work-3: started",
            "work-1 has system work",
            "work-2 has system work",
            "work-3 has system work",
            "facts: 24, different: 24",
            "work-1 finds work-2",
            "work-1 finds work-3.vm",
            "work-2 still has system work",
        ],
    )
}

fn running(host: &Host) -> Result<()> {
    let said = run_as(host, "alice", &script!("level4/fork/running.sh"))?;
    let of_each = ["has the process", "has no gap", "has system work"];
    let each = ["live", "live-1", "live-2", "live-3"];
    let each = each.iter().flat_map(|name| of_each.map(|what| format!("{name} {what}")));
    let others = [
        "live running",
        "live-1 suspended",
        "live-2 suspended",
        "live-3 suspended",
        "facts: 24, different: 24",
        "boots: 1",
        "live-1 finds live-2",
        "live-1 finds live-3.vm",
        "live-1 finds live",
        "live-1 reaches live-2",
        "live-2 still has system work",
        "after a boot: system work, no gap",
    ];
    for expect in each.chain(others.map(str::to_owned)) {
        ensure!(said.lines().any(|line| line == expect), "no {expect:?} in {said}");
    }
    Ok(())
}

fn snapshots(host: &Host) -> Result<()> {
    let said = run_as(host, "alice", &script!("level4/fork/snapshots.sh"))?;
    ensure!(!said.contains("does not count"), "{said}");
    expect_lines(
        &said,
        &[
            "made: ready",
            "base runs on and has now now",
            "one has the process",
            "one has no gap",
            "one has then then",
            "two has the process",
            "two has no gap",
            "two has then then",
            "facts: 15, different: 15",
            "refused: the name is taken",
            "base ready yes",
            "base off no",
            "no snapshot is a sandbox",
            "three has now now",
            "refused: it has snapshots",
            "refused: it runs",
            "base is back at now now",
            "1: base has the process again",
            "1: base has no gap",
            "1: base is back at then then",
            "1: base is found",
            "2: base has the process again",
            "2: base has no gap",
            "2: base is back at then then",
            "2: base is found",
            "ran: then",
            "three still has now now",
        ],
    )
}

fn layers(host: &Host) -> Result<()> {
    expect_lines(
        &run_as(host, "alice", &script!("level4/fork/layers.sh"))?,
        &[
            "second: started",
            "third: created",
            "refused: the name is taken",
            "refused: the quota",
            "third has one two one two",
            "sizes: 41943040 25165824",
            "the image has one two three",
        ],
    )
}

fn expect_lines(said: &str, expect: &[&str]) -> Result<()> {
    let seen: Vec<&str> = said.lines().filter(|line| expect.contains(line)).collect();
    ensure!(seen == expect, "{said}");
    Ok(())
}
