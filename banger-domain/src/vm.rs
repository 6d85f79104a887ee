//! A machine as it is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use banger_proto::size::Bytes;

use super::{
    id::{ImageId, KernelId, Timestamp, Uid, VmId},
    lifecycle::{Reason, State},
    monitor::Wish,
    name::Name,
    net::{nic::Nat, port::Port, subnet::Slot},
    ssh::{AuthorizedKey, HostKey},
    timezone::Timezone,
};

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Unique per owner.
    pub name: Name,
    /// Who made it, for ever.
    pub owner: Uid,
    /// What it is to be.
    pub spec: VmSpec,
    /// What it is cloned from.
    pub image: ImageId,
    /// What it boots.
    pub kernel: KernelId,
    /// Its place among the addresses of guests.
    pub slot: Slot,
    /// Where it is in its life.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// How long it is to be kept.
    pub lifetime: Lifetime,
    /// What the agent of the present boot wants to hear.
    pub token: Token,
    /// By which its ssh server shows who it is, for ever.
    pub host_key: HostKey,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its monitor last started.
    pub started_at: Timestamp,
    /// When its guest last became ready; never, while this boot's has not.
    pub ready_at: Timestamp,
    /// The guest kernel's boot id, while it is ready.
    pub boot_id: String,
}

/// The sizes and choices of a machine.
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
    /// The monitor that it is to run under.
    pub vmm: Wish,
    /// Whether the guest reaches what lies beyond the host.
    pub nat: Nat,
    /// The guest's time zone; the image's own when absent.
    pub timezone: Option<Timezone>,
    /// Whom its ssh server lets in.
    pub authorized_keys: Vec<AuthorizedKey>,
    /// The ports of the host that lead to the guest.
    pub ports: BTreeSet<Port>,
    /// Words of the user's own.
    pub labels: BTreeMap<String, String>,
}

/// What runs as the first process of the guest once the disks are mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Init {
    /// The image's init where it has one, else the agent.
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
    /// `auto`, `agent`, or an absolute path; `None` for anything else.
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

/// How long a machine is to be kept.
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
        /// The id of the bus: unique names are never used again on one bus, but another bus begins anew.
        bus: String,
    },
}

impl Lifetime {
    /// The word on the bus.
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
    /// A token that nobody knows.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// The token with this text, as it was stored.
    pub fn from_text(text: String) -> Self {
        Self(text)
    }

    /// 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A token is never printed.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Vm {
    /// Whether the guest's agent answers.
    pub fn is_ready(&self) -> bool {
        self.state.is_up() && self.ready_at != Timestamp::default()
    }
}
