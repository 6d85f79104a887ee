//! The import worker: it makes an ext4 file system of what an image consists of. It runs as a process of its own
//! that may do nothing but read and write the files that it was given, since what it reads is hostile; the service
//! tells it what to do over a socket, its standard input.
//!
//! Each archive is read once, from its beginning to its end. One thread unpacks it; another one checks it, notes
//! down what is in it ([`crate::rootfs`]), and writes the content of its files to where it will be if all
//! of them count. When all are read, it is known what the file system consists of; what a hidden file has left
//! is closed up, and everything but the content is written.

mod build;
mod export;
mod feed;
pub mod message;
mod module_tree;
mod moves;
mod room;
mod run;
mod spool;
mod take;
mod wall;

use std::{
    fs::File,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

#[cfg(feature = "fixtures")]
pub use run::obey_one;
pub use run::run;

use crate::{
    importer::{
        feed::Feed,
        message::{Failure, Import, Made},
        room::Room,
        spool::Spool,
    },
    rootfs::{
        entry::What,
        tar::Tar,
        tree::{Archive, Content, Tree},
    },
};

/// How far the work is.
#[derive(Debug, Default)]
pub struct Meter {
    read: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// Bytes that were read of the archives, and bytes that were written.
    pub fn read_and_written(&self) -> (u64, u64) {
        (self.read.load(Relaxed), self.written.load(Relaxed))
    }

    fn add_read(&self, count: usize) {
        self.read.fetch_add(count as u64, Relaxed);
    }

    fn add_written(&self, count: usize) {
        self.written.fetch_add(count as u64, Relaxed);
    }
}

/// The files of an import.
#[derive(Debug)]
pub struct Files {
    /// A new file, which the file system is written to.
    pub image: File,
    /// A new file for what has to be put aside.
    pub spool: File,
    /// The archives, the lowest first.
    pub archives: Vec<File>,
}

/// Makes a file system of archives.
pub fn import(order: &Import, mut files: Files, meter: &Meter) -> Result<Made, Failure> {
    let mut tree = Tree::default();
    let room = Room::new(order.size, || build::options(order.size, [0; 16]))
        .map_err(|error| build::failure(error, order.size))?;
    let mut spool = Spool::new(&files.image, &room, order.size, meter);
    let mut diff_ids = Vec::new();
    for (archive, file) in order.archives.iter().zip(files.archives.drain(..)) {
        let layer = if archive.claim.is_some() { Archive::Layer } else { Archive::Whole };
        let diff_id = feed::with(file, archive, order.size, meter, |feed| {
            tree.begin(layer);
            take(feed, &mut tree, &mut spool)
        })?;
        diff_ids.push((layer, diff_id));
    }
    if tree.is_empty() {
        return Err(Failure::refused("the image cannot be taken: there is nothing in it"));
    }
    let end = spool.finish()?;
    build::build(tree, &files, &room, end, order.size, &diff_ids, meter)
}

/// Puts the entries of an archive into the tree, and the content of its files to its place.
fn take(feed: &mut Feed, tree: &mut Tree, spool: &mut Spool<'_>) -> Result<(), Failure> {
    let mut tar = Tar::new(feed);
    while let Some(entry) = tar.next_entry()? {
        let content = match &entry.what {
            What::File(shape) => spool.store(&mut tar, shape)?,
            _ => Content::default(),
        };
        tree.put(entry, content)?;
    }
    Ok(())
}
