//! Any requests, in any order: nothing outside the directory is read or changed, and answers have the length that they claim.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, os::unix::fs::symlink};

use banger_mount::{HEADER, Limits, Options, Server};
use banger_proto::guest::mount::{MAX_MESSAGE, Owner, is_answered};
use proptest::prelude::*;

const SECRET: &[u8] = b"this is outside of the directory";

/// Returns the number of an operation: those that are served, and some that are not.
fn opcode() -> impl Strategy<Value = u32> {
    prop_oneof![9 => 1..49u32, 1 => any::<u32>()]
}

/// Returns what follows a header: small numbers, which may be of files, handles and flags, and names.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let word =
        prop_oneof![6 => 0..9u32, 1 => Just(0o100_644), 1 => Just(MAX_MESSAGE as u32), 1 => any::<u32>()];
    let words = prop::collection::vec(word, 0..23);
    let name = prop_oneof![
        4 => prop::sample::select(&["file", "directory", "new", "outward", "up", "fifo"][..]),
        1 => prop::sample::select(&["", ".", "..", "../outside", "/etc/passwd", "directory/x"][..]),
    ];
    let names = prop::collection::vec(name, 0..3);
    (words, names).prop_map(|(words, names)| {
        let mut body: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        for name in names {
            body.extend(name.as_bytes());
            body.push(0);
        }
        body
    })
}

/// The length of the fixed part of what follows a header, for operations with names.
fn fixed(opcode: u32) -> Option<usize> {
    Some(match opcode {
        1 | 6 | 10 | 11 => 0,
        8 | 35 => 16,
        9 | 12 | 13 => 8,
        45 => 16,
        2 | 14 | 27 => 8,
        3 | 20 | 30 => 16,
        4 => 88,
        15 | 28 | 44 => 40,
        18 | 29 => 24,
        _ => return None,
    })
}

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(opcode.to_ne_bytes());
    message.extend(7u64.to_ne_bytes());
    message.extend(node.to_ne_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_requests_stay_within_the_directory(
        read_only: bool,
        requests in prop::collection::vec((opcode(), 0..9u64, body(), any::<bool>()), 1..60),
    ) {
        let place = tempfile::tempdir().unwrap();
        let (root, outside) = (place.path().join("root"), place.path().join("outside"));
        fs::create_dir_all(root.join("directory")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), SECRET).unwrap();
        fs::write(root.join("file"), "content").unwrap();
        symlink("../outside/secret", root.join("outward")).unwrap();
        symlink("..", root.join("up")).unwrap();
        let limits = Limits { nodes: 16, handles: 4, held: 2 };
        let options = Options { read_only, owner: Owner { uid: 0, gid: 0 }, limits };
        let new = || Server::new(banger_mount::open(&root).unwrap(), options).unwrap();
        let init = message(26, 0, &[7u32, 31, 0, 0].map(u32::to_ne_bytes).concat());
        let mut server = new();
        server.answer(&init).unwrap();
        for (opcode, node, mut body, fits) in requests {
            // Most requests have the right length, so that they get further.
            if let Some(length) = fixed(opcode).filter(|_| fits) {
                let names = [b"file\0".as_slice(), b"new\0"][usize::from(node % 2 == 0)];
                body.truncate(length);
                body.resize(length, 0);
                match opcode {
                    6 | 12 | 45 => body.extend([names, b"directory\0"].concat()),
                    1 | 8..=11 | 13 | 35 => body.extend(names),
                    _ => {}
                }
            }
            let asked = message(opcode, node, &body);
            match server.answer(&asked) {
                Ok(Some(answer)) => {
                    prop_assert!(is_answered(&asked) && answer.len() <= MAX_MESSAGE);
                    prop_assert_eq!(&answer[..4], &(answer.len() as u32).to_ne_bytes()[..]);
                    prop_assert!(!answer.windows(SECRET.len()).any(|bytes| bytes == SECRET));
                }
                Ok(None) => prop_assert!(!is_answered(&asked)),
                Err(_) => {
                    server = new();
                    server.answer(&init).unwrap();
                }
            }
        }
        prop_assert_eq!(fs::read(outside.join("secret")).unwrap(), SECRET);
        prop_assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        prop_assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
        if read_only {
            prop_assert_eq!(fs::read(root.join("file")).unwrap(), b"content");
            prop_assert_eq!(fs::read_dir(&root).unwrap().count(), 4);
        }
    }
}
