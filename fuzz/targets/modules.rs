//! Archives of modules are refused, or become an initramfs that a cpio reader accepts.
#![no_main]

use std::io::Cursor;

use banger_domain::architecture::Architecture;
use banger_image::{
    fixtures::kernel::RELEASE,
    kernel::{
        extract::{Facts, Kernel},
        initramfs::{MODULES_LIST, agent_archive, modules_archive},
        modules::pick,
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: { banger_fuzz::sow("modules") },
    |input: &[u8]| {
        Architecture::ALL.into_iter().for_each(|architecture| check(input, architecture));
    }
);

fn check(input: &[u8], architecture: Architecture) {
    let facts = Facts { release: RELEASE.parse().unwrap(), architecture, compression: None, pvh: false };
    let kernel = Kernel { vmlinux: b"pci-host-generic\0".into(), facts };
    let Ok(picked) = pick(Cursor::new(input), &kernel) else { return };
    let initramfs = [modules_archive(&picked).unwrap(), agent_archive(b"agent").unwrap()].concat();
    let entries = entries(&initramfs);
    let list = entries.iter().find(|(path, _)| *path == MODULES_LIST).unwrap().1;
    let lines: Vec<&str> = std::str::from_utf8(list).unwrap().lines().collect();
    assert_eq!(lines.len(), picked.modules.len());
    for (line, module) in lines.iter().zip(&picked.modules) {
        let (_, content) = entries.iter().find(|(path, _)| line.strip_prefix("/") == Some(*path)).unwrap();
        assert_eq!(*content, module.content);
        assert!(line.starts_with("/lib/modules/") && !line.contains("/../"));
    }
}

/// Reads the entries of concatenated archives, as described in `initramfs/buffer-format` of the kernel's
/// documentation.
fn entries(bytes: &[u8]) -> Vec<(&str, &[u8])> {
    let (mut entries, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        assert_eq!(&bytes[at..at + 6], b"070701");
        let field = |n: usize| {
            usize::from_str_radix(std::str::from_utf8(&bytes[at + 6 + 8 * n..][..8]).unwrap(), 16).unwrap()
        };
        let (size, name) = (field(6), field(11));
        let path = std::str::from_utf8(&bytes[at + 110..][..name - 1]).unwrap();
        let content = (at + 110 + name).next_multiple_of(4);
        entries.push((path, &bytes[content..content + size]));
        at = (content + size).next_multiple_of(4);
    }
    entries
}
