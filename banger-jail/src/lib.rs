//! Confines the programs that strangers may take over, and starts VMMs: the program `banger-shim`.
//!
//! A guest may break out of its VMM. What it then finds is a process with a user of its own, no capability, and a short list
//! of system calls; it sees a few files of the host, and the directory of its sandbox. Where systemd runs, the unit sets
//! the users and the file system; elsewhere [`walls`] does the same. [`filter`] is ours in both cases.
//!
//! ```text
//!   banger-system (root)                         one unit per sandbox
//!
//!   supervisor ── message: arguments, files ──► banger-shim ── walls, without systemd ── filter
//!        ▲                                          │
//!        │◄──────── message: started, or why not ───┤
//!        │                                          ├─ starts ──► VMM: inherits the files and the filter
//!        │                                          │              │ console and log, by pipes
//!   log files ◄───────── ring ──────────────────────┴◄─────────────┘
//! ```
//!
//! - The shim is the first process of the unit. It gets the arguments and files of the VMM over a socket, its standard
//!   input, and starts the VMM with exactly these. It opens nothing itself.
//! - It copies the VMM's output into logs of fixed size ([`ring`]), so that a guest cannot fill the disk. The service reads
//!   these logs and believes no number in them.
//! - It lives as long as the VMM, passes signals on to it, and ends as it ended.
//! - `banger-shim --proof` ([`proof`]) tries the forbidden system calls and shows that the kernel refuses them.
//!
//! The import worker (the crate banger-image) is confined by the same [`walls`] and by a shorter filter of its own, built by
//! [`filter::allow`], and speaks by the same [`message`]s.
//!
//! It depends on no other crate of banger, and may not have a runtime, a bus, a database or a client of the network: the
//! shim is the only code of ours that stays in the unit beside a hostile VMM, and is small so that it can be read whole.
//! `unsafe` is allowed here, one operation per block with its reason, since the kernel's calls for confinement need it.

pub mod filter;
pub mod message;
pub mod proof;
pub mod ring;
mod run;
pub mod walls;

pub use run::run;
