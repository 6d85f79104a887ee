//! The library: the images and kernels of all users, and the catalogs that offer more of them.
//!
//! Unlike a sandbox, an image or a kernel has no task. It is a row in the store, files on the host, and an entry of
//! the [inventory](super::inventory), and it never changes, except that an image can be shared. So its whole life
//! is how it comes to be. There are five ways, and all go through the same steps:
//!
//! ```text
//!                  reserve              resolve                  materialise                   commit
//!
//!  import image  ┐ name and number    ┌ the user's file          worker, import, quota,      ┐
//!                │ in the quota,      │                          share an identical file     │ store the row,
//!  commit a disk ┤                    ├ the disk of a sandbox    the same                    │
//!  import kernel ┤ a job,             ├ the user's files         worker, import              ├ publish,
//!                │ the job's turn     │                                                      │ remove what it
//!  pull image    ┤                    ├ catalogs, its kernel,    worker, content lock,       │ replaces
//!                │ pulls: one job     │ registry                 quota, share or import      │
//!  pull kernel   ┘ for each request   └ catalogs                 fetch, worker, import       ┘
//! ```
//!
//! - **reserve** (`pipeline.rs`, `single_flight.rs`): nothing else gets the name, and the same request again gets the
//!   same job.
//! - **resolve** (`image_pull.rs`, `kernel_pull.rs`, `catalog.rs`): it is known what to fetch, and that it may replace
//!   what has the name.
//! - **materialise** (`image_content.rs`, and the files of the five ways): the files exist under a new id, within the
//!   owner's quota.
//! - **commit** (`pipeline.rs`): the object is stored, then published; else its files are gone.
//!
//! What differs between images and kernels for the last step is in `item.rs`. Only images are shared, exported and
//! counted in bytes.
//!
//! **Order of waits.** A job waits for its turn among its user's jobs, then for one of the host's workers, then for the
//! lock of its content, always in this order: the holder of a content lock has a worker already, so it never waits for
//! a job that waits for it. A kernel that a running image pull needs skips the first queue, because the image's job
//! holds a turn until the kernel is there. It is a job of its own, which its owner sees.
//!
//! **Cancelling.** Every wait ends when the job is cancelled. A running import sees it in its progress, and is
//! awaited: its files must be gone before the job ends. After the import, cancelling is checked once more in `commit`.
//! An object that is stored stays.
//!
//! **Failing.** The name is released and the job ends, whatever happens. A crash leaves files without a row, which
//! recovery removes, or a row whose replaced predecessor still has files, which it removes as well. Files that cannot be
//! removed are a problem, which `doctor` shows and recovery tries again. A job whose work panics fails like any other,
//! and becomes a problem as well: recovery compares rows, inventory and files as soon as no import runs.

mod cache;
pub(in crate::engine) mod catalog;
pub(in crate::engine) mod host_kernel;
mod image;
mod image_commit;
mod image_content;
mod image_export;
mod image_pull;
pub(in crate::engine) mod item;
mod kernel;
mod kernel_pull;
mod offers;
mod pipeline;
mod single_flight;

pub(in crate::engine) use self::image_commit::reserve_commit;
use self::{
    catalog::CatalogCache,
    host_kernel::FailedImport,
    single_flight::{ContentLocks, RunningPulls},
};
pub use self::{
    host_kernel::NAME as HOST_KERNEL,
    offers::{Offer, Offers},
};
use super::{Engine, Shared, error, inventory, job, now, problems, request, view};

/// What the library keeps in memory, beside the inventory.
#[derive(Default)]
pub(super) struct Library {
    running_pulls: RunningPulls,
    content_locks: ContentLocks,
    catalogs: CatalogCache,
    failed_import: FailedImport,
    /// Held while an object is replaced, shared or removed, in the inventory and in the store.
    pub(super) lock: tokio::sync::Mutex<()>,
}
