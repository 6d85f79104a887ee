//! Layers for tests: files and pipes with archives of [`banger_image::fixtures::tar`].

use std::{
    fs::File,
    io::{Seek, Write},
    os::fd::OwnedFd,
};

use banger_domain::digest::Digest;
use banger_image::{
    fixtures::tar::{digest, pack},
    packing::Packing,
};
use banger_proto::size::Bytes;
use banger_system::ports::image_files::Layer;

/// Returns a file with these bytes, positioned at its end.
pub fn file(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.into()
}

/// Returns a layer with true claims.
pub fn layer(tar: &[u8], packing: Packing) -> Layer {
    let packed = pack(tar, packing);
    Layer {
        blob: file(&packed),
        offset: None,
        size: Bytes(packed.len() as u64),
        digest: digest(&packed),
        diff_id: digest(tar),
    }
}

/// Returns a layer with these compressed bytes.
pub fn packed(packed: &[u8], diff_id: Digest) -> Layer {
    let size = Bytes(packed.len() as u64);
    Layer { blob: file(packed), offset: None, size, digest: digest(packed), diff_id }
}

/// Returns the layer as a pipe, filled as fast as it is read.
pub fn in_a_pipe(mut layer: Layer) -> Layer {
    let (reader, writer) = pipe();
    let mut from = File::from(layer.blob);
    std::thread::spawn(move || {
        from.rewind().unwrap();
        // The reader may stop early.
        let _ = std::io::copy(&mut from, &mut File::from(writer));
    });
    layer.blob = reader;
    layer
}

/// Returns a pipe that no process inherits.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}
