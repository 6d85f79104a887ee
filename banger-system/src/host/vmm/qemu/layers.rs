//! Makes a running QEMU write to new layers, over the control protocol. What it has written so far is below them.

use std::os::fd::{AsFd, OwnedFd};

use serde_json::{Value, json};

use super::{
    args::drive_name,
    qmp::{Qmp, nonsense},
};
use crate::ports::vmm::Result;

/// Puts each of these layers over the disk of its number. The guest must stand still.
pub async fn switch(qmp: &mut Qmp, layers: &[OwnedFd]) -> Result<()> {
    let on_top = nodes_on_top(&qmp.run("query-block", json!({})).await?);
    let mut added = Vec::new();
    let switched = switch_all(qmp, layers, &on_top, &mut added).await;
    if switched.is_err() {
        for node in added {
            // One that is in use stays.
            let _ = qmp.run("blockdev-del", json!({"node-name": node})).await;
        }
    }
    switched
}

async fn switch_all(
    qmp: &mut Qmp,
    layers: &[OwnedFd],
    on_top: &[String],
    added: &mut Vec<String>,
) -> Result<()> {
    let mut actions = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let node = on_top.iter().find(|node| is_of(node, index)).ok_or_else(nonsense)?;
        let set = qmp.add_file(layer.as_fd()).await?;
        let suffix = uuid::Uuid::new_v4().simple().to_string();
        let overlay = format!("{}-{}", drive_name(index), &suffix[..8]);
        qmp.run("blockdev-add", over(&overlay, set)).await?;
        added.push(overlay.clone());
        let data = json!({"node": node, "overlay": overlay});
        actions.push(json!({"type": "blockdev-snapshot", "data": data}));
    }
    qmp.run("transaction", json!({"actions": actions})).await?;
    Ok(())
}

/// Returns the description of a layer with nothing below it yet, as `args.rs` has it.
fn over(node: &str, set: u64) -> Value {
    json!({
        "driver": "qcow2", "node-name": node, "backing": null, "discard": "unmap",
        "file": {
            "driver": "file", "filename": format!("/dev/fdset/{set}"), "locking": "off",
            "discard": "unmap", "cache": {"direct": false},
        },
    })
}

/// Returns the nodes that devices write to.
fn nodes_on_top(devices: &Value) -> Vec<String> {
    let devices = devices.as_array().into_iter().flatten();
    let nodes = devices.filter_map(|device| device["inserted"]["node-name"].as_str());
    nodes.map(str::to_owned).collect()
}

/// Returns whether a node is the disk of this number, or a layer that was put over it.
fn is_of(node: &str, index: usize) -> bool {
    let rest = node.strip_prefix(&drive_name(index));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_a_device_is_its_first_node_or_the_last_layer_over_it() {
        let devices = json!([
            {"device": "", "inserted": {"node-name": "drive0-0123abcd"}},
            {"device": "", "inserted": {"node-name": "drive1"}},
            {"device": "empty"},
            {"device": "", "inserted": {"node-name": "drive10"}},
        ]);
        let nodes = nodes_on_top(&devices);
        let found = [0, 1, 2, 10].map(|index| nodes.iter().find(|node| is_of(node, index)).cloned());
        assert_eq!(
            found,
            [Some("drive0-0123abcd"), Some("drive1"), None, Some("drive10")]
                .map(|node| node.map(str::to_owned))
        );
        assert_eq!(nodes_on_top(&json!({"unexpected": 1})), Vec::<String>::new());
    }
}
