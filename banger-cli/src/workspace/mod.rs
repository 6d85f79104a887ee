//! A repository of the user in a sandbox: in as files and metadata, out as what has changed.
//!
//! Everything is read and written here, by the user's own process: the service sees a stream of bytes. What
//! was sent is kept as a tree in a small repository of ours ([`snapshot`]), beside a [`record`] of where it
//! came from. What comes back is compared with that tree by git on this side, so that the image needs no git,
//! and what is in the sandbox is only ever read.

pub mod apply;
pub mod bounded;
pub mod changed;
pub mod devcontainer;
pub mod export;
pub mod files;
pub mod git;
mod ignored;
mod jsonc;
mod metadata;
pub mod prepare;
pub mod record;
pub mod sender;
pub mod snapshot;
pub mod source;
mod stamps;
pub mod sync;
pub mod tooling;
mod unfinished;
pub mod untracked;
