//! Small kernels and modules for tests: real formats, no code in them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::io::{Cursor, Write};

use super::{decompress::Compression, release::Release};

pub(crate) const RELEASE: &str = "6.1.0-41-cloud-amd64";

pub(crate) fn release() -> Release {
    RELEASE.parse().unwrap()
}

/// The names of what a guest needs, as they are in a kernel that has it built in.
pub(crate) const DRIVERS: &str = "virtio-pci\0virtio_blk\0ext4\0virtio_console\0";

/// An ELF kernel with one segment that holds the banner, and a PVH note.
pub(crate) fn vmlinux() -> Vec<u8> {
    let banner = format!(
        "Linux version %s\0Linux version {RELEASE} (builder) #1 SMP\0{DRIVERS}{}",
        "kernel ".repeat(400)
    );
    let mut note = Vec::new();
    for word in [4u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(0x1000_0000u64.to_le_bytes());

    let segments: [(u32, &[u8]); 2] = [(1, banner.as_bytes()), (4, &note)];
    let mut contents = Vec::new();
    let mut headers = Vec::new();
    let first = 64 + segments.len() * 56;
    for (kind, content) in segments {
        let offset = (first + contents.len()) as u64;
        let size = content.len() as u64;
        headers.extend([kind.to_le_bytes(), 5u32.to_le_bytes()].concat());
        headers.extend([offset, 0x100_0000, 0x100_0000, size, size, 4].map(u64::to_le_bytes).concat());
        contents.extend(content);
        contents.resize(contents.len().next_multiple_of(4), 0);
    }
    let mut elf = elf_header(2, 64, 2, 0, 0);
    elf.extend(headers);
    elf.extend(contents);
    elf
}

/// A kernel module with these lines in its `.modinfo`.
pub(crate) fn module(modinfo: &[&str]) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let modinfo = modinfo.iter().flat_map(|line| [line.as_bytes(), b"\0"].concat()).collect::<Vec<u8>>();
    let table = (64 + modinfo.len() + names.len()) as u64;
    let mut elf = elf_header(1, 0, 0, table, 3);
    elf.extend(&modinfo);
    elf.extend(names);
    let sections = [(0u32, 0u32, 0, 0), (1, 1, 64, modinfo.len()), (10, 3, 64 + modinfo.len(), names.len())];
    for (name, kind, offset, size) in sections {
        elf.extend([name, kind].map(u32::to_le_bytes).concat());
        elf.extend(
            [0, 0, offset as u64, size as u64, 0, 1, 0, 0].map(u64::to_le_bytes).concat().get(..56).unwrap(),
        );
    }
    elf
}

/// A module of [`RELEASE`] that depends on these others.
pub(crate) fn module_needing(depends: &str) -> Vec<u8> {
    module(&[
        "license=GPL",
        &format!("depends={depends}"),
        &format!("vermagic={RELEASE} SMP preempt mod_unload "),
    ])
}

fn elf_header(kind: u16, segments_at: u64, segments: u16, sections_at: u64, sections: u16) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([kind, 62].map(u16::to_le_bytes).concat());
    elf.extend(1u32.to_le_bytes());
    elf.extend([0x100_0000, segments_at, sections_at].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64, 56, segments, 64, sections, sections.saturating_sub(1)].map(u16::to_le_bytes).concat());
    elf
}

/// A `bzImage` around this payload.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let version = format!("{RELEASE} (builder@example.org) #1 SMP\0");
    let mut image = vec![0u8; 3 * 512];
    let mut set =
        |at: usize, bytes: &[u8]| image.get_mut(at..at + bytes.len()).unwrap().copy_from_slice(bytes);
    set(0x1f1, &[2]);
    set(0x1fe, &[0x55, 0xaa]);
    set(0x202, b"HdrS");
    set(0x206, &0x020fu16.to_le_bytes());
    set(0x20e, &0x0200u16.to_le_bytes());
    set(0x248, &16u32.to_le_bytes());
    set(0x24c, &u32::try_from(payload.len()).unwrap().to_le_bytes());
    set(0x400, version.as_bytes());
    image.extend([0xf4; 16]);
    image.extend(payload);
    image.extend([0; 32]);
    image
}

/// The content compressed and followed by its size, as the kernel's build does it; gzip brings its own.
pub(crate) fn payload(compression: Compression, content: &[u8]) -> Vec<u8> {
    let mut stream = pack(compression, content);
    if compression != Compression::Gzip {
        stream.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
    }
    stream
}

/// A stream in each format that we read.
pub(crate) fn pack(compression: Compression, content: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
        }
        Compression::Lz4 => {
            let mut stream = b"\x02\x21\x4c\x18".to_vec();
            for block in content.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                stream.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
                stream.extend(block);
            }
            stream
        }
        Compression::Xz => xz_stored(content),
        other => panic!("no encoder for {other}"),
    }
}

/// An xz stream of LZMA2 chunks that are stored, not compressed (`xz-file-format.txt` 1.2.1): there is no
/// safe encoder among our dependencies.
fn xz_stored(content: &[u8]) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    let flags = [0, 1]; // CRC32 of the content
    let mut stream = [b"\xfd7zXZ\0".as_slice(), &flags, &crc(&flags)].concat();

    let block_header = [2, 0, 0x21, 1, 22, 0, 0, 0]; // 12 bytes, one filter: LZMA2 with 8 MiB of dictionary
    let mut block = [block_header.as_slice(), &crc(&block_header)].concat();
    for (index, chunk) in content.chunks(1 << 16).enumerate() {
        block.push(if index == 0 { 1 } else { 2 });
        block.extend(u16::try_from(chunk.len() - 1).unwrap().to_be_bytes());
        block.extend(chunk);
    }
    block.push(0);
    let unpadded = block.len() + 4;
    block.resize(block.len().next_multiple_of(4), 0);
    block.extend(crc(content));
    stream.extend(block);

    let mut index = vec![0, 1];
    for mut number in [unpadded, content.len()] {
        while number >= 0x80 {
            index.push(number as u8 | 0x80);
            number >>= 7;
        }
        index.push(number as u8);
    }
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(crc(&index));
    let backward = [u32::try_from(index.len() / 4 - 1).unwrap().to_le_bytes().as_slice(), &flags].concat();
    stream.extend(index);
    stream.extend([crc(&backward).as_slice(), &backward, b"YZ"].concat());
    stream
}

/// A tar of these files.
pub(crate) fn tar(files: &[(&str, Vec<u8>)]) -> Cursor<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    Cursor::new(builder.into_inner().unwrap())
}
