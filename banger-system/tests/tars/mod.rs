//! Tar archives of tests, byte by byte: also those that no program would write.

#![allow(clippy::unwrap_used, dead_code, reason = "each test binary uses a part of this")]

use std::{
    fs::File,
    io::{Seek, Write},
    os::fd::OwnedFd,
};

use banger_proto::size::Bytes;
use banger_system::{
    domain::digest::Digest,
    ports::images::{Layer, Packing},
};
use sha2::{Digest as _, Sha256};

/// An archive that is being written.
#[derive(Default, Clone)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn header(name: &[u8], kind: u8, size: u64) -> [u8; 512] {
        let mut header = [0; 512];
        header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[136..147].copy_from_slice(b"00000000001");
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        sum(&mut header);
        header
    }

    pub fn raw(mut self, header: [u8; 512], data: &[u8]) -> Self {
        self.0.extend(header);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn entry(self, name: &str, kind: u8, data: &[u8]) -> Self {
        let header = Self::header(name.as_bytes(), kind, data.len() as u64);
        self.raw(header, data)
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name, b'0', data)
    }

    pub fn dir(self, name: &str) -> Self {
        let mut header = Self::header(name.as_bytes(), b'5', 0);
        header[100..107].copy_from_slice(b"0000755");
        sum(&mut header);
        self.raw(header, &[])
    }

    pub fn link(self, kind: u8, name: &str, target: &str) -> Self {
        let mut header = Self::header(name.as_bytes(), kind, 0);
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        sum(&mut header);
        self.raw(header, &[])
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|length| length.to_string().len() + rest == *length).unwrap();
            text.extend(format!("{length} {key}=").as_bytes());
            text.extend(*value);
            text.push(b'\n');
        }
        self.entry("pax", b'x', &text)
    }

    /// The whole archive, with its end.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// Makes the checksum of a header right.
pub fn sum(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

pub fn pack(tar: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => tar.to_vec(),
        Packing::Gzip => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(tar).unwrap();
            packer.finish().unwrap()
        }
        Packing::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}

/// A file with these bytes, which stands at its end.
pub fn file(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.into()
}

/// A layer that is what it says.
pub fn layer(tar: &[u8], packing: Packing) -> Layer {
    let packed = pack(tar, packing);
    Layer {
        blob: file(&packed),
        offset: None,
        packing,
        size: Bytes(packed.len() as u64),
        digest: digest(&packed),
        diff_id: digest(tar),
    }
}

/// A layer that is packed like this and whose packed bytes are these.
pub fn packed(packed: &[u8], packing: Packing, diff_id: Digest) -> Layer {
    let size = Bytes(packed.len() as u64);
    Layer { blob: file(packed), offset: None, packing, size, digest: digest(packed), diff_id }
}

/// A copy of the layer in a pipe, as fast as it is read.
pub fn in_a_pipe(mut layer: Layer) -> Layer {
    let (reader, writer) = pipe();
    let mut from = File::from(layer.blob);
    std::thread::spawn(move || {
        from.rewind().unwrap();
        // Whoever reads may have enough of it.
        let _ = std::io::copy(&mut from, &mut File::from(writer));
    });
    layer.blob = reader;
    layer
}

/// A pipe that no process inherits.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}
