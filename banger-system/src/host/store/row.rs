//! Rows of the tables, and how they are decoded.

use std::{str::FromStr, time::Duration};

use banger_domain::{
    egress::Egress,
    id::{Timestamp, Uid, VmId},
    idle::IdlePolicy,
    lifecycle::{Reason, State},
    net::subnet::Slot,
    resource::Resource,
    restart::RestartPolicy,
    ssh::{AuthorizedKey, HostKey},
    vm::{BootedFrom, Init, Lifetime, Token, Vm, VmSpec},
    vmm::VmmChoice,
};
use banger_image::record::{Image, ImageFacts, Kernel, KernelFacts, Origin};
use banger_proto::{bus::option::lifetime, size::Bytes};

/// A row has a value that we never wrote.
#[derive(Debug, thiserror::Error)]
#[error("the {column} of {id} in the database is not readable")]
pub(super) struct Unreadable {
    id: String,
    column: &'static str,
}

/// A row of `vms`.
pub(super) struct VmRow {
    pub id: String,
    pub name: String,
    pub owner: i64,
    pub vcpus: i64,
    pub memory: i64,
    pub disk_size: i64,
    pub root_size: i64,
    pub hostname: String,
    pub init: String,
    pub vmm: String,
    pub slot: i64,
    pub nat: i64,
    pub egress: String,
    pub ports: String,
    pub host_key: String,
    pub authorized_keys: String,
    pub timezone: String,
    pub labels: String,
    pub image: String,
    pub kernel: String,
    pub state: String,
    pub reason: String,
    pub lifetime: String,
    pub connection: Option<String>,
    pub bus: Option<String>,
    pub token: String,
    pub created_at: i64,
    pub started_at: i64,
    pub ready_at: i64,
    pub boot_id: String,
    pub booted_from: String,
    pub idle_action: String,
    pub idle_after: i64,
    pub restart: String,
    pub autostart: i64,
    pub snapshot_of: Option<String>,
}

impl TryFrom<VmRow> for Vm {
    type Error = Unreadable;

    fn try_from(row: VmRow) -> Result<Self, Unreadable> {
        let read = Reader { id: &row.id };
        Ok(Vm {
            id: read.text("id", &row.id)?,
            name: read.text("name", &row.name)?,
            owner: Uid(read.number("owner", row.owner)?),
            spec: VmSpec {
                vcpus: read.number("vcpus", row.vcpus)?,
                memory: Bytes(read.number("memory", row.memory)?),
                disk_size: Bytes(read.number("disk_size", row.disk_size)?),
                root_size: Bytes(read.number("root_size", row.root_size)?),
                hostname: read.text("hostname", &row.hostname)?,
                init: read.known("init", Init::parse(&row.init))?,
                vmm: read.known("vmm", VmmChoice::parse(&row.vmm))?,
                egress: egress(row.nat != 0, &row.egress),
                ports: read
                    .known("ports", row.ports.split_whitespace().map(|port| port.parse().ok()).collect())?,
                authorized_keys: {
                    let lines: Vec<&str> = row.authorized_keys.lines().collect();
                    read.known("authorized_keys", AuthorizedKey::parse_all(&lines).ok())?
                },
                timezone: match row.timezone.as_str() {
                    "" => None,
                    text => Some(read.text("timezone", text)?),
                },
                labels: read.known("labels", serde_json::from_str(&row.labels).ok())?,
                idle: match row.idle_action.as_str() {
                    "" => None,
                    action => {
                        let after = Duration::from_micros(read.number("idle_after", row.idle_after)?);
                        Some(read.known("idle_action", IdlePolicy::new(action, after).ok())?)
                    }
                },
                restart: read.known("restart", RestartPolicy::parse(&row.restart))?,
                autostart: row.autostart != 0,
            },
            image: read.text("image", &row.image)?,
            kernel: read.text("kernel", &row.kernel)?,
            slot: Slot(read.number("slot", row.slot)?),
            state: read.known("state", State::parse(&row.state))?,
            reason: Reason::parse(&row.reason),
            lifetime: read.known(
                "lifetime",
                match (row.lifetime.as_str(), row.connection, row.bus) {
                    (lifetime::PERSISTENT, None, None) => Some(Lifetime::Persistent),
                    (lifetime::UNTIL_STOPPED, None, None) => Some(Lifetime::UntilStopped),
                    (lifetime::CALLER, Some(connection), Some(bus)) => {
                        Some(Lifetime::Caller { connection, bus })
                    }
                    _ => None,
                },
            )?,
            token: Token::from_text(row.token),
            host_key: match row.host_key.as_str() {
                // Older than the key. It is stored before the next boot, and not needed sooner.
                "" => read.known("host_key", HostKey::random().ok())?,
                text => read.text("host_key", text)?,
            },
            created_at: Timestamp(read.number("created_at", row.created_at)?),
            started_at: Timestamp(read.number("started_at", row.started_at)?),
            ready_at: Timestamp(read.number("ready_at", row.ready_at)?),
            boot_id: row.boot_id,
            booted_from: match row.booted_from.as_str() {
                "" => None,
                word => Some(read.known("booted_from", BootedFrom::parse(word))?),
            },
            snapshot_of: row.snapshot_of.as_deref().map(|id| read.text("snapshot_of", id)).transpose()?,
        })
    }
}

/// Returns the policy of a row. Entries that this version does not accept are left out: the sandbox reaches less, and the
/// service starts.
fn egress(has_nat: bool, entries: &str) -> Egress {
    if has_nat {
        return Egress::Everything;
    }
    let (entries, wrong): (Vec<&str>, Vec<&str>) =
        entries.split_whitespace().partition(|entry| Egress::parse(&[*entry]).is_ok());
    if !wrong.is_empty() {
        tracing::warn!(?wrong, "an egress policy has entries that are not accepted any more");
    }
    Egress::parse(&entries).unwrap_or_default()
}

/// A row of `images`.
pub(super) struct ImageRow {
    pub id: String,
    pub name: String,
    pub owner: i64,
    pub shared: i64,
    pub source: String,
    pub kernel: Option<String>,
    pub created_at: i64,
    pub file: String,
    pub digest: String,
    pub virtual_size: i64,
    pub content_size: i64,
    pub disk_usage: i64,
    pub manifest: Option<String>,
    pub config: String,
}

impl TryFrom<ImageRow> for Image {
    type Error = Unreadable;

    fn try_from(row: ImageRow) -> Result<Self, Unreadable> {
        let read = Reader { id: &row.id };
        let origin = |manifest: &String| {
            let manifest = read.text("manifest", manifest)?;
            Ok(Origin { reference: read.text("source", &row.source)?, manifest })
        };
        Ok(Image {
            origin: row.manifest.as_ref().map(origin).transpose()?,
            config: read.known("config", serde_json::from_str(&row.config).ok())?,
            id: read.text("id", &row.id)?,
            name: read.text("name", &row.name)?,
            owner: Uid(read.number("owner", row.owner)?),
            shared: row.shared != 0,
            source: row.source,
            kernel: row.kernel.as_deref().map(|kernel| read.text("kernel", kernel)).transpose()?,
            created_at: Timestamp(read.number("created_at", row.created_at)?),
            facts: ImageFacts {
                file: read.text("file", &row.file)?,
                digest: row.digest,
                virtual_size: Bytes(read.number("virtual_size", row.virtual_size)?),
                content_size: Bytes(read.number("content_size", row.content_size)?),
                disk_usage: Bytes(read.number("disk_usage", row.disk_usage)?),
            },
        })
    }
}

/// A row of `kernels`.
pub(super) struct KernelRow {
    pub id: String,
    pub name: String,
    pub owner: i64,
    pub shared: i64,
    pub source: String,
    pub created_at: i64,
    pub digest: String,
    pub release: String,
    pub modules: i64,
    pub module_tree: i64,
    pub size: i64,
}

impl TryFrom<KernelRow> for Kernel {
    type Error = Unreadable;

    fn try_from(row: KernelRow) -> Result<Self, Unreadable> {
        let read = Reader { id: &row.id };
        Ok(Kernel {
            id: read.text("id", &row.id)?,
            name: read.text("name", &row.name)?,
            owner: Uid(read.number("owner", row.owner)?),
            shared: row.shared != 0,
            source: row.source,
            created_at: Timestamp(read.number("created_at", row.created_at)?),
            facts: KernelFacts {
                digest: row.digest,
                release: row.release,
                modules: read.number("modules", row.modules)?,
                module_tree: Bytes(read.number("module_tree", row.module_tree)?),
                size: Bytes(read.number("size", row.size)?),
            },
        })
    }
}

/// A row of `ledger`.
pub(super) struct LedgerRow {
    pub vm: String,
    pub resource: String,
}

impl TryFrom<LedgerRow> for (VmId, Resource) {
    type Error = Unreadable;

    fn try_from(row: LedgerRow) -> Result<Self, Unreadable> {
        let read = Reader { id: &row.vm };
        Ok((read.text("vm", &row.vm)?, read.known("resource", Resource::parse(&row.resource))?))
    }
}

/// Decodes the columns of the row with this id.
struct Reader<'a> {
    id: &'a str,
}

impl Reader<'_> {
    fn text<T: FromStr>(&self, column: &'static str, text: &str) -> Result<T, Unreadable> {
        self.known(column, text.parse().ok())
    }

    fn number<T: TryFrom<i64>>(&self, column: &'static str, number: i64) -> Result<T, Unreadable> {
        self.known(column, number.try_into().ok())
    }

    fn known<T>(&self, column: &'static str, value: Option<T>) -> Result<T, Unreadable> {
        value.ok_or_else(|| Unreadable { id: self.id.to_owned(), column })
    }
}

/// A number that SQLite cannot store: it has 63 bits.
#[derive(Debug, thiserror::Error)]
#[error("{0} does not fit into the database")]
pub(super) struct TooLarge(pub u64);
