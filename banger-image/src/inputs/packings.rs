//! How layers and archives are packed, whatever their media type or name says. The reference is GNU tar, which looks at
//! the first bytes and runs `gzip` or `zstd`.

use std::{
    fs::{self, File},
    io::Write,
    process::Command,
};

use banger_proto::size::Bytes;
use mkext4::reader::Fs;

use super::{has, skip};
use crate::{
    fixtures::tar::{Tar, digest, pack},
    importer::{
        Files, Meter, import,
        message::{Archive, Claim, Import},
    },
    packing::Packing,
};

struct Case {
    name: &'static str,
    /// Packs an archive.
    build: fn(&[u8]) -> Vec<u8>,
    /// Whether `tar -xf` succeeds.
    gnu: bool,
    /// Why it is refused.
    ours: Result<(), &'static str>,
}

const CASES: &[Case] = &[
    Case { name: "plain", build: |tar| tar.to_vec(), gnu: true, ours: Ok(()) },
    Case { name: "gzip", build: |tar| pack(tar, Packing::Gzip), gnu: true, ours: Ok(()) },
    Case { name: "zstd", build: |tar| pack(tar, Packing::Zstd), gnu: true, ours: Ok(()) },
    Case {
        name: "gzip of several members, as pigz and eStargz write it",
        build: |tar| tar.chunks(700).flat_map(|part| pack(part, Packing::Gzip)).collect(),
        gnu: true,
        ours: Ok(()),
    },
    Case {
        name: "gzip padded with zeros",
        build: |tar| [pack(tar, Packing::Gzip), vec![0; 10_000]].concat(),
        gnu: true,
        ours: Ok(()),
    },
    Case {
        // `gzip` warns of it and unpacks the rest; tar reports an error.
        name: "gzip with something else behind it",
        build: |tar| [pack(tar, Packing::Gzip), b"something else".to_vec()].concat(),
        gnu: false,
        ours: Err("not valid gzip data"),
    },
    Case {
        name: "zstd of several frames",
        build: |tar| tar.chunks(700).flat_map(|part| pack(part, Packing::Zstd)).collect(),
        gnu: true,
        ours: Ok(()),
    },
    Case {
        // tar knows zstd by the bytes of an ordinary frame alone.
        name: "zstd with a skippable frame at its beginning, as pzstd writes it",
        build: |tar| [&SKIPPABLE[..], &pack(tar, Packing::Zstd)].concat(),
        gnu: false,
        ours: Ok(()),
    },
    Case {
        name: "zstd with a skippable frame at its end, as zstd:chunked has it",
        build: |tar| [&pack(tar, Packing::Zstd)[..], &SKIPPABLE].concat(),
        gnu: true,
        ours: Ok(()),
    },
    Case {
        name: "a cut gzip",
        build: |tar| {
            let packed = pack(tar, Packing::Gzip);
            packed[..packed.len() - 9].to_vec()
        },
        gnu: false,
        ours: Err("not valid gzip data"),
    },
    Case {
        name: "xz, by its first bytes",
        build: |_| b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46".to_vec(),
        gnu: false,
        ours: Err("it is packed by xz"),
    },
    Case { name: "bzip2", build: |_| b"BZh91AY&SY".to_vec(), gnu: false, ours: Err("it is packed by bzip2") },
];

/// A frame of zstd that decoders skip: its magic number, its length, and its content.
const SKIPPABLE: [u8; 12] = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
const SIZE: Bytes = Bytes::mib(32);

fn archive() -> Vec<u8> {
    Tar::default().dir("d").file("d/f", &b"content".repeat(300)).end()
}

/// Imports a packed archive, as a layer or as a root file system.
fn imported(packed: &[u8], claim: Option<Claim>) -> Result<(), String> {
    let file = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    let image = file(b"");
    let order = Import { archives: vec![Archive { claim, offset: None }], size: SIZE };
    let files = Files { image: image.try_clone().unwrap(), spool: file(b""), archives: vec![file(packed)] };
    import(&order, files, &Meter::default()).map_err(|failure| failure.to_string())?;
    let fs = Fs::open(image).unwrap();
    assert_eq!(fs.read_file(fs.resolve("/d/f").unwrap()).unwrap(), b"content".repeat(300));
    Ok(())
}

#[test]
fn the_bytes_tell_the_packing() {
    for case in CASES {
        let (tar, packed) = (archive(), (case.build)(&archive()));
        let claim = Claim {
            size: Bytes(packed.len() as u64),
            digest: digest(&packed).to_string(),
            diff_id: digest(&tar).to_string(),
        };
        for claim in [Some(claim), None] {
            match (imported(&packed, claim), case.ours) {
                (Ok(()), Ok(())) => {}
                (Err(found), Err(expect)) => assert!(found.contains(expect), "{}: {found}", case.name),
                (found, expect) => panic!("{}: {found:?} instead of {expect:?}", case.name),
            }
        }
    }
}

#[test]
fn gnu_tar_unpacks_what_the_table_says() {
    if !["tar", "gzip", "zstd"].into_iter().all(has) {
        return skip::skipped("comparing how archives are packed needs tar, gzip and zstd");
    }
    for case in CASES {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("archive");
        fs::write(&path, (case.build)(&archive())).unwrap();
        let done = Command::new("tar").arg("-xf").arg(&path).current_dir(&home).output().unwrap();
        let is_whole =
            File::open(home.path().join("d/f")).is_ok_and(|file| file.metadata().unwrap().len() == 2100);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.success() && is_whole, case.gnu, "{}: {said}", case.name);
    }
}
