//! Root file systems as archives: reads tar files, and merges the layers of an image into a tree. The archives are
//! hostile: nothing here reads more than it has room for, and an entry that cannot be kept exactly is refused by
//! name.
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
