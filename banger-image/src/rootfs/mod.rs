//! Root file systems as archives: what a tar holds, and the tree that the layers of an image make when stacked
//! on each other. The archives are hostile; nothing here reads more than it has room for, and whatever
//! cannot be kept exactly is refused with the name of the entry.
//!
//! [`tar`] reads an archive, [`tree`] merges the entries of several, [`write`] writes one.

pub mod acl;
mod attribute;
pub mod entry;
pub mod error;
mod header;
pub mod limits;
pub mod path;
mod pax;
pub mod sparse;
pub mod tar;
pub mod tree;
pub mod write;

pub use error::Error;
