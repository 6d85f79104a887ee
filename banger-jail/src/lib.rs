//! Confines programs that an attacker may take over, and starts VMMs: the program `banger-shim`.
//!
//! A guest may break out of its VMM. It then finds a process with a user of its own, no capability and a short list
//! of system calls, which sees a few files of the host and the directory of its sandbox. With systemd, the unit sets
//! the user and the file system; without it, [`jail`] does the same. The system call [`filter`] is ours in both
//! cases.
//!
//! ```text
//!   banger-system (root)                         one unit per sandbox
//!
//!   supervisor ── message: arguments, files ──► banger-shim ── jail, without systemd ── filter
//!        ▲                                          │
//!        │◄──────── message: started, or why not ───┤
//!        │                                          ├─ starts ──► VMM: inherits the files and the filter
//!        │                                          │              │ console and log, by pipes
//!   log files ◄───────── ring ──────────────────────┴◄─────────────┘
//! ```
//!
//! - The shim is the first process of the unit. It receives the VMM's arguments and files over a socket, its standard
//!   input, and starts the VMM with exactly these. It opens no files itself.
//! - It copies the VMM's output into logs of fixed size ([`ring`]), so that a guest cannot fill the disk. The service reads
//!   these logs and trusts no number in them.
//! - It lives as long as the VMM, forwards signals to it, and exits with its status.
//! - `banger-shim --proof` ([`proof`]) tries the forbidden system calls and shows that the kernel refuses them.
//!
//! The import worker (the crate banger-image) uses the same [`jail`] and [`message`]s, and a shorter filter of its
//! own, built by [`filter::allow_only`].
//!
//! This crate depends on no other crate of banger, and may not have a runtime, a bus, a database or a network client:
//! the shim is the only code of ours that stays in the unit beside a hostile VMM, and is small enough to be read
//! whole. `unsafe` is allowed here, one operation per block with its reason, since the system calls for confinement
//! need it.

pub mod capabilities;
pub mod filter;
pub mod jail;
pub mod message;
pub mod proof;
pub mod ring;
mod run;

pub use run::run;
