//! Checks of repositories with a `devcontainer.json`.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a devcontainer's commands, variables, ports and mounts last through a start and a shell", lifecycle)];

fn lifecycle(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/workspace/lifecycle.sh" uses "wait.sh"))?;
    let file = ".devcontainer/shop/devcontainer.json";
    for line in [
        "create\nupdate\nstart\n7\n7\npath /opt/shop\nsecret none\n1\n",
        "fetched 7\n",
        "nothing ran on the host\n",
        "again starts 2\nagain kept\nagain 1\n",
        "the postAttachCommand runs in the background\nthen starts 2\n",
        &format!(
            "note: banger does not install the features of {file}: node:1. To use the image of this file:\n"
        ),
        &format!(
            "  devcontainer build --workspace-folder . --config {file} --image-name lifecycle-devcontainer\n"
        ),
        "initializeCommand (it would run on the host)",
        "containerEnv.SECRET (`-e HOME` lets it read HOME of your environment)",
        "forwardPorts db:5432 (it is a port of another container)",
        "(nothing of the host is mounted)",
    ] {
        ensure!(out.contains(line), "no {line:?} in {out:?}");
    }
    Ok(())
}
