//! Errors of the engine, grouped by what the caller can do next. `port_error.rs` puts the errors of ports into these
//! groups.

use banger_domain::{lifecycle::Refused, limits::Exceeded, name};
use banger_proto::{causes::with_causes, count::counted};

use crate::ports::{HostError, disks::MAX_DEPTH};

/// A kind of object that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A sandbox.
    Vm,
    /// An image.
    Image,
    /// A kernel.
    Kernel,
    /// A job.
    Job,
}

impl Kind {
    /// Returns the word for people.
    pub const fn noun(self) -> &'static str {
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
    /// No object that the caller may know of has this reference.
    #[error("there is no {} {reference}", .kind.noun())]
    NoSuch {
        /// The kind of object.
        kind: Kind,
        /// The reference.
        reference: String,
    },
    /// The sandbox has no snapshot of this name.
    #[error("{name} has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// The sandbox's name.
        name: String,
        /// The snapshot's name.
        snapshot: String,
    },
    /// No catalog has it.
    #[error("{name} is in no catalog")]
    NotInCatalogs {
        /// The kind of object.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// A catalog has it, but nothing for this host's architecture.
    #[error("{name} is in the catalog {catalog} and is not published for this host yet{}", with_note(.note))]
    NotPublished {
        /// Its name.
        name: String,
        /// The catalog.
        catalog: String,
        /// What to do instead.
        note: String,
    },
    /// The reference matches several objects.
    #[error("{reference} matches more than one {}", .kind.noun())]
    Ambiguous {
        /// The kind of object.
        kind: Kind,
        /// The reference.
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
    /// The sandbox has a snapshot of this name.
    #[error("{name} already has a snapshot {snapshot}")]
    SnapshotExists {
        /// The sandbox's name.
        name: String,
        /// The snapshot's name.
        snapshot: String,
    },
    /// The snapshots of a sandbox are deleted with it, but only if that was asked for.
    #[error("{name} has {}, which would be deleted with it", counted(*.count, "snapshot"))]
    HasSnapshots {
        /// The sandbox's name.
        name: String,
        /// How many.
        count: usize,
    },
    /// The text is not a valid name or reference.
    #[error(transparent)]
    Name(#[from] name::Error),
    /// An option has an impossible value.
    #[error("{why}")]
    InvalidOption {
        /// Why.
        why: String,
    },
    /// The administrator does not allow that a sandbox reaches this.
    #[error("no sandbox of this host may reach {what}: /etc/banger/config.toml has egress = {ceiling}")]
    BeyondCeiling {
        /// What goes too far.
        what: String,
        /// What is allowed.
        ceiling: String,
    },
    /// A size is impossible, or a quota is used up.
    #[error(transparent)]
    Limit(#[from] Exceeded),
    /// The sandbox's state does not allow it.
    #[error(transparent)]
    State(#[from] Refused),
    /// No address is free.
    #[error("no address is free for another guest; delete sandboxes that are not needed")]
    NoAddress,
    /// The sandbox must be up for this.
    #[error("{name} is not running")]
    NotRunning {
        /// The sandbox's name.
        name: String,
    },
    /// The sandbox is paused.
    #[error("{name} is paused")]
    Paused {
        /// The sandbox's name.
        name: String,
    },
    /// The memory of its guest is on disk.
    #[error("{name} is suspended")]
    Suspended {
        /// The sandbox's name.
        name: String,
    },
    /// The memory of a suspended guest cannot be loaded. It stays on disk.
    #[error("{message}; a cold start keeps the disks")]
    CannotResume {
        /// Why.
        message: String,
    },
    /// The guest was captured for a fork, and does not run again.
    #[error("{name} does not continue after the fork, and banger keeps trying: {message}")]
    DoesNotContinue {
        /// The sandbox's name.
        name: String,
        /// Why.
        message: String,
    },
    /// The guest boots, or does not answer.
    #[error("the guest of {name} does not answer yet")]
    NotReady {
        /// The sandbox's name.
        name: String,
    },
    /// No service listens in the guest, or not yet.
    #[error("{program} does not answer in {name}")]
    NoAnswer {
        /// The service.
        program: &'static str,
        /// The sandbox's name.
        name: String,
    },
    /// All streams stayed in use until the timeout.
    #[error("all streams to {name} are in use, and none became free within {seconds} s")]
    NoFreeStream {
        /// The sandbox's name.
        name: String,
        /// The timeout.
        seconds: u64,
    },
    /// Too many requests wait for a stream already.
    #[error("all streams to {name} are in use, with {} waiting", counted(*.waiting, "request"))]
    QueueFull {
        /// The sandbox's name.
        name: String,
        /// How many wait.
        waiting: usize,
    },
    /// The sandbox must be down for this.
    #[error("{name} is running; stop it first: its processors, memory and disks cannot change while it runs")]
    NotStopped {
        /// The sandbox's name.
        name: String,
    },
    /// The sandbox must be down, so that its disk is complete.
    #[error("{name} is running; stop it first, so that its disk is complete")]
    StillWriting {
        /// The sandbox's name.
        name: String,
    },
    /// A job reads its system disk.
    #[error("an image of {name} is being made; wait until that job has ended, or cancel it")]
    BeingCommitted {
        /// The sandbox's name.
        name: String,
    },
    /// A job forks or replaces its disks.
    #[error("a job uses the disks of {name}; wait until it has ended, or cancel it")]
    DisksBusy {
        /// The sandbox's name.
        name: String,
    },
    /// The memory of a snapshot knows its disks with the sizes that they had.
    #[error(
        "the disks of {name} have grown since its snapshot {snapshot}, whose memory does not fit them; fork the snapshot instead"
    )]
    GrownSince {
        /// The sandbox's name.
        name: String,
        /// The snapshot's name.
        snapshot: String,
    },
    /// A sandbox is deleted when it stops, with its snapshots.
    #[error("{name} is deleted when it stops, with its snapshots; fork the snapshot instead")]
    DeletedAtStop {
        /// The sandbox's name.
        name: String,
    },
    /// Its disks have too many frozen layers.
    #[error("its disks have {MAX_DEPTH} frozen layers, the limit")]
    TooDeep,
    /// Other objects use it.
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
        /// The sandbox's name.
        name: String,
        /// How long it was given.
        seconds: u64,
    },
    /// The VMM ended before the guest was ready.
    #[error("the guest of {name} ended before it was ready ({how})")]
    EndedEarly {
        /// The sandbox's name.
        name: String,
        /// How it ended.
        how: String,
    },
    /// The work of a job has panicked.
    #[error("a bug in banger stopped the job; see the journal of banger-system")]
    Bug,
    /// The job was cancelled.
    #[error("the operation was canceled")]
    Canceled,
    /// The job has ended, or can no longer be undone.
    #[error("the operation can no longer be canceled")]
    NotCancelable,
    /// The object was deleted during the request.
    #[error("{name} was deleted while the request was running")]
    Deleted {
        /// Its name.
        name: String,
    },
    /// Something that the job needs has failed.
    #[error("{why}")]
    Dependency {
        /// Why.
        why: std::sync::Arc<Error>,
    },
    /// A name or a port on the host is taken by something else.
    #[error("{message}")]
    Taken {
        /// What it is, who has it, and what to do about it.
        message: String,
    },
    /// The content of a file or an image is not supported.
    #[error("{message}")]
    Unsupported {
        /// What is wrong with it.
        message: String,
    },
    /// Content does not have the expected digest or size.
    #[error("{message}")]
    Mismatch {
        /// What was compared.
        message: String,
    },
    /// A file descriptor is of the wrong kind, mode or size.
    #[error("{message}")]
    BadFile {
        /// What is wrong with it.
        message: String,
    },
    /// A remote server cannot be reached, or does not answer in time.
    #[error("{message}")]
    Unreachable {
        /// Which one, and why.
        message: String,
    },
    /// A registry requires a login, or refuses this one.
    #[error("{message}")]
    AuthRequired {
        /// Which one, for what.
        message: String,
    },
    /// A registry refuses a request, or sends an invalid response.
    #[error("{message}")]
    Registry {
        /// Which one, and what it said.
        message: String,
    },
    /// A catalog has a bad signature, is too old, or cannot be parsed.
    #[error("{message}")]
    Catalog {
        /// Which one, and why.
        message: String,
    },
    /// The VMM did not start, exited, or refused a request.
    #[error("{message}")]
    Vmm {
        /// What it said.
        message: String,
    },
    /// The guest's agent cannot be reached in time, or sends an invalid reply.
    #[error("{message}")]
    Agent {
        /// What went wrong.
        message: String,
    },
    /// All streams to the guest's agent are in use.
    #[error("all streams to the guest are in use")]
    AllStreamsInUse,
    /// A part of a sandbox could not be removed from the host. It is tried again every minute, and before the next
    /// start.
    #[error("cannot remove the {left} of {name}")]
    NotReleased {
        /// The sandbox's name.
        name: String,
        /// What is left.
        left: String,
        /// Why the first of it could not be removed.
        #[source]
        why: Box<Error>,
    },
    /// A call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Returns the note as a suffix, if there is one.
fn with_note(note: &str) -> String {
    match note.trim_end_matches('.') {
        "" => String::new(),
        note => format!(": {note}"),
    }
}

/// The result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Returns the error with its causes, on one line.
pub(super) fn one_line(error: &dyn std::error::Error) -> String {
    with_causes(error).replace('\n', " ")
}
