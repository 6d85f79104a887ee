//! What a guest's kernel may ask of a mounted directory. Nothing outside the directory changes or is read, and every answer
//! has the length that it claims.
#![no_main]

use std::{fs, os::unix::fs::symlink, path::Path};

use banger_mount::{HEADER, Limits, Options, Server};
use banger_proto::guest::mount::{MAX_MESSAGE, Owner, is_answered, take_message};
use libfuzzer_sys::fuzz_target;

const SECRET: &[u8] = b"this is outside of the directory";

fuzz_target!(
    init: { banger_fuzz::sow("mount") },
    |input: &[u8]| {
        let place = banger_fuzz::place("mount");
        let root = place.join("root");
        fs::create_dir_all(root.join("directory")).unwrap();
        fs::write(place.join("outside"), SECRET).unwrap();
        fs::write(root.join("file"), "content").unwrap();
        symlink("../outside", root.join("outward")).unwrap();
        serve(&root, input);
        assert_eq!(fs::read(place.join("outside")).unwrap(), SECRET);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 2, "something was created outside");
        fs::remove_dir_all(&place).unwrap();
    }
);

fn serve(root: &Path, input: &[u8]) {
    let limits = Limits { nodes: 16, handles: 4, held: 2 };
    let owner = Owner { uid: 0, gid: 0 };
    let options = Options { read_only: input.first() == Some(&255), owner, limits };
    let server = Server::new(banger_mount::open(root).unwrap(), options).unwrap();
    let init = [7u32, 31, 0, 0].map(u32::to_ne_bytes).concat();
    server.answer(&message(26, 0, &init)).unwrap();
    let mut rest = input;
    while let Some(([opcode, node, length], bytes)) = rest.split_first_chunk() {
        // What follows the last opcode is a message as it is.
        let (asked, others) = match opcode {
            254 => (take_message(&mut bytes.to_vec(), HEADER).ok().flatten().unwrap_or_default(), &[][..]),
            _ => {
                let (body, others) = bytes.split_at(bytes.len().min(usize::from(*length)));
                (message(u32::from(*opcode), u64::from(*node), body), others)
            }
        };
        rest = others;
        match server.answer(&asked) {
            Ok(Some(answer)) => {
                assert!(is_answered(&asked) && answer.len() <= MAX_MESSAGE);
                assert_eq!(answer[..4], (answer.len() as u32).to_ne_bytes());
                assert!(!answer.windows(SECRET.len()).any(|bytes| bytes == SECRET));
            }
            Ok(None) => assert!(!is_answered(&asked)),
            Err(_) => return,
        }
    }
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
