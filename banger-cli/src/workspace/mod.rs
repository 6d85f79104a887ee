//! Workspaces: a repository of the user in a sandbox. It goes in as files and git metadata, and comes back as changes.
//!
//! Everything is read and written by the user's own process; the service only passes a stream of bytes. The image needs
//! no git, because `.git` is built on the host, and differences are computed on the host. The repository on the host is
//! only changed by an export with `--apply` or `--branch`.
//!
//! ```text
//!   host                                                          sandbox
//!   ─────────────────────────────────────────────────────────────┬───────────────────────
//!   source, untracked, unfinished   what the repository contains │
//!         │                                                      │
//!         ▼                                                      │
//!   prepare::Plan ──► sender ──► tar ───────────────────────────►│ /root/repo
//!                       │   metadata: .git with one commit ─────►│ /root/repo/.git
//!                       ▼                                        │
//!   snapshot: refs/banger/sent      what was sent                │
//!   record, stamps                  from where, and when         │
//!         │                                                      │
//!         ├──► changed ──► sync ──► tar: host's changes ────────►│  before a command
//!         │                                                      │
//!         └──► export ◄── listing, digests, tar ◄────────────────┤  what has changed there
//!                │          ignored, bounded                     │
//!                ▼                                               │
//!   snapshot: refs/banger/came      what came back               │
//!         │                                                      │
//!         ├──► apply: patch, work tree, or a new branch          │
//!         └──► commits: refs/banger/NAME/* ◄── git upload-pack ◄─┤  its branches
//! ```
//!
//! 1. **Send** ([`prepare`], [`sender`]). A plan is made before a sandbox is created, so that mistakes cost nothing.
//!    Each file is read once; its bytes go to the sandbox and into the snapshot. Filters and programs of the
//!    repository never run.
//! 2. **Keep in sync** ([`changed`], [`sync`]). Before a command runs, files on the host are compared with what was
//!    sent, by their stamps first. Differences are reported, or sent if `auto_prepare` is set. A file that has changed
//!    in the sandbox, too, is not overwritten. [`watch`] waits for the next change.
//! 3. **Bring back** ([`export`], [`apply`]). The agent lists the files with their digests, and sends those that
//!    differ. They become a commit next to what was sent. `apply` plans every step before it touches a file; a conflict
//!    changes nothing. [`commits`] fetches the branches themselves, if the sandbox has git.
//!
//! The sandbox is not trusted: names from it are checked ([`files`]), archives are bounded, and what it says about
//! where a workspace came from is ignored in favour of the [`record`] in the user's home. Ignored files are sent only
//! by name (`--include`), never come back, and no copy of them is kept ([`untracked`]).
//!
//! A repository can also ask for an environment: [`devcontainer`] reads `devcontainer.json`, and [`tooling`] installs
//! tools with mise. Both run in the sandbox only.

pub mod apply;
pub mod bounded;
pub mod changed;
pub mod commits;
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
pub mod stop;
pub mod sync;
pub mod tooling;
mod unfinished;
pub mod untracked;
pub mod watch;
