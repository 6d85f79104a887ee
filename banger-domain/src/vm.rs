//! A sandbox as the database has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use banger_proto::size::Bytes;

use super::{
    egress::Egress,
    id::{ImageId, KernelId, Timestamp, Uid, VmId},
    idle::{IdleAction, IdlePolicy},
    lifecycle::{Reason, State},
    name::Name,
    net::{port::Port, subnet::Slot},
    restart::RestartPolicy,
    ssh::{AuthorizedKey, HostKey},
    timezone::Timezone,
    vmm::VmmChoice,
};

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Unique among the sandboxes of its owner, or among the snapshots of its sandbox.
    pub name: Name,
    /// Who created it. Never changes.
    pub owner: Uid,
    /// Its sizes and options.
    pub spec: VmSpec,
    /// The image that it was cloned from.
    pub image: ImageId,
    /// The kernel that it boots.
    pub kernel: KernelId,
    /// Its index among the addresses of guests.
    pub slot: Slot,
    /// Its state.
    pub state: State,
    /// Why it is in that state.
    pub reason: Reason,
    /// How long it is kept.
    pub lifetime: Lifetime,
    /// The secret that the agent of the current boot expects.
    pub token: Token,
    /// SSH host key. Stays the same across boots.
    pub host_key: HostKey,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its VMM was last started.
    pub started_at: Timestamp,
    /// When its guest last became ready; 0 if it has not in this boot.
    pub ready_at: Timestamp,
    /// The guest kernel's boot id, while the guest is ready.
    pub boot_id: String,
    /// How the guest began; none while it is down.
    pub booted_from: Option<BootedFrom>,
    /// The sandbox whose snapshot this is. A snapshot has disks, and the memory of a guest if it is suspended, but it never
    /// starts, and its slot, token and host key mean nothing.
    pub snapshot_of: Option<VmId>,
}

/// How a guest began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootedFrom {
    /// It booted.
    Cold,
    /// It continued from a kernel template.
    Template,
    /// It continued where it was suspended.
    Suspension,
}

impl BootedFrom {
    const ALL: [BootedFrom; 3] = [BootedFrom::Cold, BootedFrom::Template, BootedFrom::Suspension];

    /// Returns the word of the D-Bus API and of the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            BootedFrom::Cold => "cold",
            BootedFrom::Template => "template",
            BootedFrom::Suspension => "suspension",
        }
    }

    /// Parses a word of [`BootedFrom::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|from| from.as_str() == word)
    }
}

/// The sizes and options of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Virtual processors, 1 or more.
    pub vcpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Size of the work disk.
    pub disk_size: Bytes,
    /// Size of the system disk, never less than its image's.
    pub root_size: Bytes,
    /// Host name in the guest.
    pub hostname: Name,
    /// What the agent hands over to.
    pub init: Init,
    /// Which VMM to use.
    pub vmm: VmmChoice,
    /// What the guest reaches beyond the host.
    pub egress: Egress,
    /// The guest's time zone; `None` keeps the image's.
    pub timezone: Option<Timezone>,
    /// The SSH keys that it accepts.
    pub authorized_keys: Vec<AuthorizedKey>,
    /// The published ports.
    pub ports: BTreeSet<Port>,
    /// Labels of the user's own.
    pub labels: BTreeMap<String, String>,
    /// What happens when it idles, if anything.
    pub idle: Option<IdlePolicy>,
    /// Which ends start it again.
    pub restart: RestartPolicy,
    /// Whether it starts when the host boots.
    pub autostart: bool,
}

impl VmSpec {
    /// Returns whether it starts when the host boots.
    pub fn starts_with_host(&self) -> bool {
        self.autostart || self.restart == RestartPolicy::Always
    }
}

/// Limit on the labels of a sandbox.
const MAX_LABELS: usize = 32;
/// Limit on a label, its key and its value together, in bytes.
const MAX_LABEL: usize = 256;

/// There are more labels than a sandbox can have, or a longer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox can have at most {MAX_LABELS} labels of {MAX_LABEL} bytes each")]
pub struct TooManyLabels;

/// Checks that a sandbox can have these labels.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), TooManyLabels> {
    let fits = |(key, value): (&String, &String)| key.len() + value.len() <= MAX_LABEL;
    if labels.len() <= MAX_LABELS && labels.iter().all(fits) { Ok(()) } else { Err(TooManyLabels) }
}

/// The first process of the guest after the disks are mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Init {
    /// The image's init if it has one, the agent otherwise.
    #[default]
    Auto,
    /// The agent.
    Agent,
    /// This program of the image, an absolute path.
    Path(String),
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Init::Auto => f.write_str("auto"),
            Init::Agent => f.write_str("agent"),
            Init::Path(path) => f.write_str(path),
        }
    }
}

impl Init {
    /// Parses `auto`, `agent`, or an absolute path.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Init::Auto),
            "agent" => Some(Init::Agent),
            path if path.starts_with('/') && path.len() <= 255 && !path.contains(char::is_control) => {
                Some(Init::Path(path.to_owned()))
            }
            _ => None,
        }
    }
}

/// How long a sandbox is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is deleted.
    Persistent,
    /// Until it stops.
    UntilStopped,
    /// Until the connection with this unique name leaves this bus.
    Caller {
        /// The unique name of the connection.
        connection: String,
        /// The id of the bus: unique names are not reused on one bus, but another bus starts over.
        bus: String,
    },
}

impl Lifetime {
    /// Returns the word used on D-Bus.
    pub fn as_str(&self) -> &'static str {
        use banger_proto::bus::option::lifetime;
        match self {
            Lifetime::Persistent => lifetime::PERSISTENT,
            Lifetime::UntilStopped => lifetime::UNTIL_STOPPED,
            Lifetime::Caller { .. } => lifetime::CALLER,
        }
    }
}

/// A secret that the host and the agent of one boot share.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Returns a new random token.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// Makes a token of the text that was stored.
    pub fn from_text(text: String) -> Self {
        Self(text)
    }

    /// Returns the 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Omits the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Vm {
    /// Returns whether the guest's agent answers. It does not while the guest stands still.
    pub fn is_ready(&self) -> bool {
        let stands_still = matches!(self.state, State::Paused | State::Suspending | State::Resuming);
        self.state.is_up() && !stands_still && self.ready_at != Timestamp::default()
    }

    /// Returns whether it is suspended, or about to be, and wakes when it is used: it has idled, and its policy says so.
    pub fn wakes(&self) -> bool {
        matches!(self.state, State::Suspending | State::Suspended)
            && matches!(self.reason, Reason::Idle(_))
            && self.spec.idle.is_some_and(|policy| policy.action == IdleAction::Suspend)
    }
}
