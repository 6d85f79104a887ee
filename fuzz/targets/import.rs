//! Archives are refused, or become a file system that `e2fsck` accepts and that is the same each time.
#![no_main]

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsRawFd,
    process::Command,
};

use banger_fuzz::Archives;
use banger_image::{
    fixtures::tar,
    importer::{
        Files, Meter, import,
        message::{Archive, Claim, Failure, Import},
    },
};
use banger_proto::size::Bytes;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

const SIZE: Bytes = Bytes::mib(64);

fuzz_target!(
    init: { banger_fuzz::sow("import") },
    |input: &[u8]| {
        let Some(archives) = Archives::of(input) else { return };
        let Ok(image) = made(&archives) else { return };
        assert!(!archives.lie || !archives.are_layers, "what is said of a layer was not looked at");
        let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
        let checked = Command::new("/usr/sbin/e2fsck").args(["-fn", &path]).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        if input[0] & 64 != 0 {
            assert!(same(&image, &made(&archives).unwrap()), "twice is not the same");
        }
    }
);

fn made(archives: &Archives) -> Result<File, ()> {
    let order = archives.tars.iter().map(|bytes| {
        let packed = tar::pack(bytes, archives.packing);
        let claim = archives.are_layers.then(|| Claim {
            size: Bytes(packed.len() as u64),
            digest: tar::digest(&packed).to_string(),
            diff_id: tar::digest(if archives.lie { b"something else" } else { bytes }).to_string(),
        });
        let mut file = memory();
        file.write_all(&packed).unwrap();
        (Archive { offset: None, claim }, file)
    });
    let (archives, files) = order.unzip();
    let image = memory();
    let files = Files { image: image.try_clone().unwrap(), spool: memory(), archives: files };
    match import(&Import { archives, size: SIZE }, files, &Meter::default()) {
        Ok(_) => Ok(image),
        Err(Failure::Refused { .. }) => Err(()),
        Err(broken) => panic!("{broken}"),
    }
}

fn memory() -> File {
    memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap().into()
}

fn same(one: &File, other: &File) -> bool {
    let read = |mut file: &File| {
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    read(one) == read(other)
}
