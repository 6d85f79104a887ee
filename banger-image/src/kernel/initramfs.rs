//! The two concatenated archives of a guest's initramfs.
//!
//! 1. [`modules_archive`], one per kernel;
//! 2. [`agent_archive`], one per build of the agent.
//!
//! So nothing is made for a start, and nothing in them belongs to one sandbox: the agent gets its configuration over its
//! channel. They are not compressed: decompression costs a guest more than reading.

use super::{
    cpio::{Archive, TooLarge},
    modules::PickedModules,
};

/// The list of modules, one absolute path in each line, in the order of loading.
pub const MODULES_LIST: &str = "banger/modules";

/// The agent, which the kernel runs as the first process.
pub const INIT: &str = "init";

/// The directories that the agent mounts on.
const MOUNT_POINTS: [&str; 5] = ["dev", "newroot", "proc", "run", "sys"];

/// Returns the archive of a kernel's modules, with the list by which the agent loads them.
pub fn modules_archive(picked: &PickedModules) -> Result<Vec<u8>, TooLarge> {
    let mut archive = Archive::new();
    let mut list = String::new();
    for module in &picked.modules {
        let path = format!("lib/modules/{}/{}", picked.release, module.path);
        archive.file(&path, 0o644, &module.content)?;
        list.extend(["/", &path, "\n"]);
    }
    archive.file(MODULES_LIST, 0o644, list.as_bytes())?;
    Ok(archive.finish())
}

/// Returns the archive of the agent as `/init`, with the directories that it needs.
pub fn agent_archive(agent: &[u8]) -> Result<Vec<u8>, TooLarge> {
    let mut archive = Archive::new();
    for directory in MOUNT_POINTS {
        archive.directory(directory, 0o755);
    }
    archive.file(INIT, 0o755, agent)?;
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::*;
    use crate::{
        fixtures::kernel as fixture,
        kernel::{cpio::tests::read, modules::Module},
    };

    #[test]
    fn the_two_archives_make_one_initramfs() {
        let module =
            |name: &str, path: &str| Module { name: name.into(), path: path.into(), content: vec![1; 5] };
        let picked = PickedModules {
            release: fixture::release(),
            modules: vec![module("jbd2", "kernel/fs/jbd2/jbd2.ko"), module("ext4", "kernel/fs/ext4/ext4.ko")],
            absent: Vec::new(),
        };
        let initramfs = [modules_archive(&picked).unwrap(), agent_archive(b"agent").unwrap()].concat();
        let entries = read(&initramfs);
        let file = |path: &str| {
            let entry = entries.iter().find(|entry| entry.path == path).unwrap();
            (entry.mode, entry.content.as_slice())
        };
        let list = "/lib/modules/6.1.0-41-cloud-amd64/kernel/fs/jbd2/jbd2.ko\n\
                    /lib/modules/6.1.0-41-cloud-amd64/kernel/fs/ext4/ext4.ko\n";
        assert_eq!(file("banger/modules"), (0o100644, list.as_bytes()));
        assert_eq!(
            file("lib/modules/6.1.0-41-cloud-amd64/kernel/fs/ext4/ext4.ko"),
            (0o100644, [1; 5].as_slice())
        );
        assert_eq!(file("init"), (0o100755, b"agent".as_slice()));
        for directory in ["dev", "newroot", "proc", "run", "sys"] {
            assert_eq!(file(directory), (0o40755, [].as_slice()));
        }
    }
}
