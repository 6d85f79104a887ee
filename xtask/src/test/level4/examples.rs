//! Checks of the programs in `examples`, which are what authors of other clients start from.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Check, expect};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("the examples in Python, JavaScript and shell run a sandbox", examples)];

/// The interpreter, the name and the text of each example.
const EXAMPLES: [(&str, &str, &str); 4] = [
    ("sh -eu", "sandbox.sh", include_str!("../../../../examples/sandbox.sh")),
    ("/usr/bin/python3", "sandbox-gio.py", include_str!("../../../../examples/sandbox-gio.py")),
    ("/usr/bin/python3", "sandbox-dbus-fast.py", include_str!("../../../../examples/sandbox-dbus-fast.py")),
    ("gjs -m", "sandbox.js", include_str!("../../../../examples/sandbox.js")),
];

fn examples(host: &Host) -> Result<()> {
    let run = |(interpreter, name, text): (&str, &str, &str)| -> Result<Child> {
        let run = script!("level4/examples/run.sh", interpreter = interpreter, name = name, text = text);
        let mut session = host.session("alice", false, &run)?;
        session.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        session.spawn().context("cannot run in the private host")
    };
    let children = EXAMPLES.map(run);
    for ((_, name, _), child) in EXAMPLES.into_iter().zip(children) {
        let out = expect(&child?.wait_with_output()?, 0).context(name)?;
        // busctl follows no signals, and says no states.
        let signals = ["created -> starting", "starting -> running", "running -> stopping"];
        let signals = signals.iter().filter(|_| name != "sandbox.sh").copied();
        let both =
            ["sandboxes: ", "vm-create: done", "/2 ", "vm-start: done", "running at 172.", "vm-delete: done"];
        for part in both.into_iter().chain(signals) {
            ensure!(out.contains(part), "{name} prints no {part:?}: {out:?}");
        }
    }
    Ok(())
}
