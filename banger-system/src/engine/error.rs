//! What can go wrong in the engine, grouped by what the caller can do next.

use banger_domain::{causes::with_causes, lifecycle::Refused, limits::Exceeded, name};

use crate::ports;

/// A kind of object that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A machine.
    Vm,
    /// An image.
    Image,
    /// A kernel.
    Kernel,
    /// A job.
    Job,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Kind::Vm => "sandbox",
            Kind::Image => "image",
            Kind::Kernel => "kernel",
            Kind::Job => "job",
        }
    }

    fn article(self) -> &'static str {
        if self == Kind::Image { "an" } else { "a" }
    }
}

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing that the caller may know of has this reference.
    #[error("there is no {} {reference}", .kind.noun())]
    NoSuch {
        /// What was looked for.
        kind: Kind,
        /// How the caller called it.
        reference: String,
    },
    /// No catalog has it.
    #[error("{name} is in no catalog")]
    NotInCatalogs {
        /// What was looked for.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// A catalog has it, and nothing was published for the processors of this host.
    #[error("{name} is in the catalog {catalog} and is not published for this host yet{}", and(.note))]
    NotPublished {
        /// Its name.
        name: String,
        /// The catalog.
        catalog: String,
        /// What to do instead.
        note: String,
    },
    /// The reference fits several objects.
    #[error("{reference} fits more than one {}", .kind.noun())]
    Ambiguous {
        /// What was looked for.
        kind: Kind,
        /// How the caller called it.
        reference: String,
    },
    /// The caller has an object of this name.
    #[error("you already have {} {} {name}", .kind.article(), .kind.noun())]
    NameTaken {
        /// What it is.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// The text is no name or reference.
    #[error(transparent)]
    Name(#[from] name::Error),
    /// An option has an impossible value.
    #[error("{why}")]
    InvalidOption {
        /// Why.
        why: String,
    },
    /// A size is impossible, or the caller's share is used up.
    #[error(transparent)]
    Limit(#[from] Exceeded),
    /// The machine's state does not allow it.
    #[error(transparent)]
    State(#[from] Refused),
    /// Every address that a guest can have is taken.
    #[error("all addresses for guests are taken; delete sandboxes that nobody needs")]
    NoAddress,
    /// The machine must be up for this.
    #[error("{name} is not running")]
    NotRunning {
        /// The machine's name.
        name: String,
    },
    /// Nothing listens in the guest, or not yet.
    #[error("{program} does not answer in {name}")]
    NoAnswer {
        /// What was to answer.
        program: &'static str,
        /// The machine's name.
        name: String,
    },
    /// As many commands or connections as there can be at once did not end in time.
    #[error("all streams to {name} are in use, and none was given back within {seconds} s")]
    NoFreeStream {
        /// The machine's name.
        name: String,
        /// How long that was waited for.
        seconds: u64,
    },
    /// Too many wait for a stream already.
    #[error("all streams to {name} are in use, and {waiting} others wait for one")]
    LongLine {
        /// The machine's name.
        name: String,
        /// How many wait.
        waiting: usize,
    },
    /// The machine must be down for this.
    #[error(
        "{name} is running: stop it first; its processors, memory and disks are changed while it is down"
    )]
    NotStopped {
        /// The machine's name.
        name: String,
    },
    /// The object is needed by others.
    #[error("the {} {name} is used by {users}", .kind.noun())]
    InUse {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// Who uses it.
        users: String,
    },
    /// The guest did not become ready in time; it is still up.
    #[error("the guest of {name} did not become ready within {seconds} s; it is still up")]
    GuestTimeout {
        /// The machine's name.
        name: String,
        /// How long it was given.
        seconds: u64,
    },
    /// The monitor ended before the guest was ready.
    #[error("the guest of {name} ended before it was ready ({how})")]
    EndedEarly {
        /// The machine's name.
        name: String,
        /// How it ended.
        how: String,
    },
    /// The job was canceled.
    #[error("the operation was canceled")]
    Canceled,
    /// The job has ended, or is past the point of no return.
    #[error("the operation can no longer be canceled")]
    NotCancelable,
    /// The object went away while the request was under way.
    #[error("{name} was deleted meanwhile")]
    Vanished {
        /// Its name.
        name: String,
    },
    /// What it needs first has failed.
    #[error("{why}")]
    Because {
        /// Why.
        why: std::sync::Arc<Error>,
    },
    /// The host could not do it.
    #[error(transparent)]
    Port(#[from] ports::Error),
}

/// A sentence more, if there is one.
fn and(note: &str) -> String {
    match note.trim_end_matches('.') {
        "" => String::new(),
        note => format!(": {note}"),
    }
}

/// The result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error with its causes, on one line.
pub(super) fn one_line(error: &dyn std::error::Error) -> String {
    with_causes(error).replace('\n', " ")
}
