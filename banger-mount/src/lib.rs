//! Serves a directory of the host to the kernel of a guest, which speaks FUSE.
//!
//! ```text
//!  guest: program ──► kernel ──► /dev/fuse ──► agent ══ stream ══ client: Server ──► files of the user
//!                                hostile from here on
//! ```
//!
//! A [`Server`] turns one message into one answer. It knows nothing of the stream, and runs with the rights of the user
//! whose directory it is. It guarantees, whatever bytes come:
//!
//! 1. **No name outside the directory is used.** A file is reached only from its directory's descriptor, by one name
//!    without `/`, `.` and `..`, and openat2(2) neither follows links nor enters other file systems. Symbolic links are text
//!    that the guest's kernel follows in the guest. A file that also has a name elsewhere (a hard link) is that file.
//! 2. **Only regular files and directories are opened.** A FIFO could block, and a device could do anything.
//! 3. **Nothing gets more rights.** Set-user-id bits are dropped, owners stay, no device, FIFO or socket is created, and no
//!    extended attribute is read or written. A read-only server changes nothing.
//! 4. **Its memory and descriptors are bounded** by [`Limits`].
//!
//! The messages are those of `linux/fuse.h`, version 7.31 (Linux 5.4).

mod attributes;
mod directory;
mod files;
mod host;
mod message;
mod names;
mod server;
mod table;

pub use host::open;
pub use message::{HEADER, Violation};
pub use server::{Options, Server};
pub use table::Limits;
