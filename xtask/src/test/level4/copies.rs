//! Checks of copies into and out of a guest, compared entry by entry.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a tree is the same on the other side of a copy, entry by entry", trees),
    ("a log that grows and files without a length are copied whole", living_files),
];

fn trees(host: &Host) -> Result<()> {
    let session = script!(
        "level4/copies/trees.sh" uses "wait.sh",
        make = script_text!("level4/copies/make.sh"),
        list = script_text!("level4/copies/list.sh"),
    );
    let out = run_as(host, "alice", &session)?;
    let seen: Vec<_> = out.lines().map(str::trim_end).collect();
    let expect = [
        "in",
        "2",
        "out",
        "2",
        "700 1700 2700",
        "nobody",
        "piped",
        "between",
        "file second sub",
        "ended 143",
        "cleared",
    ];
    ensure!(seen == expect, "{out}");
    Ok(())
}

fn living_files(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/copies/living_files.sh"))?;
    let seen: Vec<_> = out.lines().collect();
    let expect =
        ["whole", "whole", "whole", "whole", "whole", "out", "in", "out", "in", "processors", "refused"];
    ensure!(seen == expect, "{out}");
    Ok(())
}
