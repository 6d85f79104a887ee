//! The import worker: makes an ext4 file system from the layers of an image, or from an archive of a root file system.
//!
//! It runs as a process of its own, the program `banger-import`, since everything that it reads is hostile. It may only
//! read and write the files that the service passes to it with its order, over a socket that is its standard input:
//!
//! ```text
//!   banger-system                      banger-import: own user, no network, opens nothing (lockdown)
//!
//!   order, files ───────────────────►  run ──► import
//!                                               │  for each archive, the lowest first:
//!     a layer from the cache,                   ▼
//!     or a user's archive ──── pipe ──►  unpack ──► rootfs::tar ──► rootfs::tree: names, owners, links
//!                                        thread 1       │ thread 2
//!                                                       ▼
//!     new, empty file ◄──── content ──────────────── spool: each file's data, at its likely place (layout)
//!            ▲                                          │  after the last archive:
//!            │                                          ▼
//!            ├────────────── moved content ────────── relocate: close the gaps of hidden files
//!            └────────────── everything else ──────── build: mkext4 writes inodes, directories, the journal
//!
//!   progress, result ◄──────────────  run
//! ```
//!
//! - An archive is read once, from beginning to end, so that a layer can be imported while it is downloaded. One thread
//!   decompresses and hashes; another one parses, adds names to the tree, and writes the content of files.
//! - Content is written directly into the image, to where it belongs if no layer above hides anything. [`layout`]
//!   computes that place before the files are known. An image in which no layer hides a file usually needs no moves
//!   afterwards.
//! - The tree has names and metadata only, so memory is bounded by the limits of [`crate::rootfs::limits`].
//! - An archive that does not match its claim (size, digest, digest of the tar) is refused, whatever is in it.
//! - The same archives give the same bytes: times and UUIDs are derived from the input ([`build`]).
//!
//! The worker also does four other jobs with hostile input: it writes a file system as an image ([`export`]),
//! copies a user's file, which may be on a file system that never answers ([`copy_file`]), copies a sandbox's system
//! disk ([`flatten`]), and makes the file system of a kernel's modules ([`module_tree`]).

mod build;
mod copy_file;
mod export;
mod flatten;
mod image_archive;
mod layout;
mod lockdown;
pub mod message;
mod module_tree;
mod relocate;
mod run;
mod spool;
mod unpack;

use std::{
    fs::File,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

#[cfg(feature = "fixtures")]
pub use run::execute_one;
pub use run::run;

use crate::{
    importer::{
        layout::DataLayout,
        message::{Failure, Import, Made},
        spool::Spool,
        unpack::Unpacked,
    },
    rootfs::{
        entry::What,
        tar::Tar,
        tree::{Archive, Content, Tree},
    },
};

/// Counts the progress of the work.
#[derive(Debug, Default)]
pub struct Meter {
    read: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// Returns the bytes read from the archives, and the bytes written.
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
    /// A new file for the file system.
    pub image: File,
    /// A new file for content that is moved.
    pub spool: File,
    /// The archives, the lowest first.
    pub archives: Vec<File>,
}

/// Makes a file system from archives.
pub fn import(order: &Import, mut files: Files, meter: &Meter) -> Result<Made, Failure> {
    let mut tree = Tree::default();
    let places = DataLayout::new(order.size, || build::options(order.size, [0; 16]))
        .map_err(|error| build::failure(error, order.size))?;
    let mut spool = Spool::new(&files.image, &places, order.size, meter);
    let mut diff_ids = Vec::new();
    for (archive, file) in order.archives.iter().zip(files.archives.drain(..)) {
        let layer = if archive.claim.is_some() { Archive::Layer } else { Archive::Whole };
        let diff_id = unpack::with(file, archive, order.size, meter, |unpacked| {
            tree.begin(layer);
            add_entries(unpacked, &mut tree, &mut spool)?;
            tree.end();
            match layer {
                Archive::Whole => image_archive::refuse(&tree),
                Archive::Layer => Ok(()),
            }
        })?;
        diff_ids.push((layer, diff_id));
    }
    if tree.is_empty() {
        return Err(Failure::refused("cannot use the image: there is nothing in it"));
    }
    let end = spool.finish()?;
    build::build(tree, &files, &places, end, order.size, &diff_ids, meter)
}

/// Adds the entries of an archive to the tree, and writes the content of its files.
fn add_entries(unpacked: &mut Unpacked, tree: &mut Tree, spool: &mut Spool<'_>) -> Result<(), Failure> {
    let mut tar = Tar::new(unpacked);
    while let Some(entry) = tar.next_entry()? {
        let content = match &entry.what {
            What::File(shape) => spool.store(&mut tar, shape)?,
            _ => Content::default(),
        };
        tree.put(entry, content)?;
    }
    Ok(())
}
