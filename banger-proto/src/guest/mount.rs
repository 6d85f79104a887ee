//! A directory of the host in the guest ([`Request::Mount`](super::Request::Mount)).
//!
//! The agent relays messages of FUSE, which begin with their own length: what the guest's kernel asks goes to the host as
//! output, what the host answers comes as input. Only the host looks into them.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

/// The most bytes of a file that one message carries. Linux sends no more unless a server asks for more.
pub const MAX_IO: usize = 128 << 10;
/// The longest message in either direction: the bytes of a file, and room for what comes with them.
pub const MAX_MESSAGE: usize = MAX_IO + (8 << 10);
/// Limit on requests that the agent has relayed and the host has not answered.
pub const MAX_IN_FLIGHT: usize = 64;
/// The length that a message of FUSE begins with (`linux/fuse.h`).
const LENGTH: usize = 4;
/// `FUSE_FORGET` and `FUSE_BATCH_FORGET`.
const FORGETTING: [u32; 2] = [2, 42];
/// The longest path of the kernel (`PATH_MAX`, with its end).
const MAX_PATH: usize = 4095;
/// Directories that the guest itself needs, with everything below.
const NEEDED: [&str; 4] = ["/dev", "/proc", "/sys", "/run/banger"];
/// Directories that the guest itself needs. Others may be mounted below.
const NEEDED_ALONE: [&str; 4] = ["/", "/root", "/run", "/var/run"];

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mount {
    /// An absolute path, see [`check_path`]; created if missing.
    pub path: String,
    /// Whether the guest's kernel refuses changes, too.
    pub read_only: bool,
    /// The login name or number that the host wants to know the ids of; the image's user, else root, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A user of the guest: the first line of output, in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Owner {
    /// The user id.
    pub uid: u32,
    /// The id of the user's group.
    pub gid: u32,
}

/// A message has a length that no message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of FUSE has {0} bytes")]
pub struct BadLength(pub usize);

/// Takes a message from the received bytes, or `None` until it is complete. `header` is the shortest length.
pub fn take_message(buffer: &mut Vec<u8>, header: usize) -> Result<Option<Vec<u8>>, BadLength> {
    let Some(length) = buffer.first_chunk::<LENGTH>() else { return Ok(None) };
    // Guests have the byte order of the host.
    let length = u32::from_ne_bytes(*length) as usize;
    if !(header..=MAX_MESSAGE).contains(&length) {
        return Err(BadLength(length));
    }
    Ok((buffer.len() >= length).then(|| buffer.drain(..length).collect()))
}

/// Returns whether the host answers a message of the guest's kernel. What the kernel forgets gets no answer.
pub fn is_answered(message: &[u8]) -> bool {
    let kind = message.get(LENGTH..).and_then(|rest| rest.first_chunk());
    !kind.is_some_and(|kind| FORGETTING.contains(&u32::from_ne_bytes(*kind)))
}

/// Checks that a directory of the host may be mounted at a path of the guest. Returns the reason if not.
pub fn check_path(path: &str) -> Result<(), &'static str> {
    let parsed = Path::new(path);
    if !path.starts_with('/') {
        return Err("a path in the sandbox begins with /");
    }
    if path.len() > MAX_PATH || path.contains('\0') {
        return Err("it is no path");
    }
    if path.split('/').any(|part| part == "..") {
        return Err("a path in the sandbox has no ..");
    }
    // Compared by components, so that slashes do not matter.
    let is_needed = NEEDED_ALONE.iter().any(|needed| parsed == Path::new(needed))
        || NEEDED.iter().any(|needed| parsed.starts_with(needed))
        || is_of_banger(parsed);
    if is_needed { Err("the guest needs what is there") } else { Ok(()) }
}

/// Returns whether the agent has something there: its files in `/run` begin with its name.
fn is_of_banger(path: &Path) -> bool {
    let mut parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let mut first = parts.next();
    if first == Some("var") {
        first = parts.next();
    }
    first == Some("run") && parts.next().is_some_and(|name| name.starts_with("banger"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_needs_is_not_covered() {
        for path in [
            "/srv/web",
            "/home/ann/src",
            "/mnt",
            "/root/x",
            "/run/user/1",
            "/devices",
            "/srv/banger",
            "/a b/",
        ] {
            assert_eq!(check_path(path), Ok(()), "{path}");
        }
        let long = format!("/{}", "x".repeat(4095));
        for path in [
            "",
            "srv",
            "./srv",
            "~/x",
            "/",
            "//",
            "/.",
            "/..",
            "/srv/../etc",
            "/srv/..",
            "/proc",
            "/proc/1",
            "/sys/",
            "//dev",
            "/dev/shm",
            "/root",
            "/run",
            "/run/",
            "/var/run",
            "/run/banger",
            "/run/banger-git-1.sock",
            "/var/run/banger/x",
            "/a\0b",
            &long,
        ] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn messages_are_taken_from_any_chunks() {
        let message = |length: u32, byte: u8| {
            let mut message = vec![byte; length as usize];
            message[..4].copy_from_slice(&length.to_ne_bytes());
            message
        };
        let (first, second) = (message(16, 1), message(MAX_MESSAGE as u32, 2));
        for piece in [1, 7, 70_000] {
            let (mut buffer, mut taken) = (Vec::new(), Vec::new());
            for bytes in [first.clone(), second.clone()].concat().chunks(piece) {
                buffer.extend_from_slice(bytes);
                while let Ok(Some(message)) = take_message(&mut buffer, 16) {
                    taken.push(message);
                }
            }
            assert!(taken == [first.clone(), second.clone()] && buffer.is_empty(), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_is_checked_before_the_message_arrives() {
        for length in [0, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
            let mut buffer = length.to_ne_bytes().to_vec();
            assert_eq!(take_message(&mut buffer, 16), Err(BadLength(length as usize)));
        }
        assert_eq!(take_message(&mut vec![1, 0, 0], 16), Ok(None));
    }
}
