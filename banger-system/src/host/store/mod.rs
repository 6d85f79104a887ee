//! The persistent state, in SQLite.
//!
//! Every call is one transaction. Its result survives a crash of the service and, except for the ledger, a power cut.

mod open;
mod row;

use async_trait::async_trait;
use banger_domain::{
    egress::Egress,
    id::{ImageId, KernelId, VmId},
    net::subnet::{NotASubnet, Subnet},
    resource::{Paths, Resource},
    ssh::AuthorizedKey,
    vm::{BootedFrom, Lifetime, Vm},
};
use banger_image::record::{Image, Kernel};
use sqlx::{Connection, Sqlite, SqliteConnection, SqlitePool, pool::PoolConnection};

pub use self::open::Error as OpenError;
use self::row::{ImageRow, KernelRow, LedgerRow, TooLarge, VmRow};

use crate::ports::{
    FromHost as _,
    store::{Error, Result, Store},
};

// Result codes of SQLite, https://www.sqlite.org/rescode.html
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;

/// The database of the service.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
}

impl SqliteStore {
    /// Opens the database, and creates it at the first start.
    pub async fn open(paths: &Paths) -> Result<Self, OpenError> {
        Ok(Self { pool: open::open(paths).await? })
    }

    /// Closes the connection and folds the write-ahead log into the database.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// What a commit survives.
enum Survives {
    /// A crash of the service. That is enough for the ledger: a power cut ends everything that a boot holds, and
    /// disks can be found without it. It saves a boot some flushes of a millisecond or more each.
    Crash,
    /// A power cut. Recovery removes the disks of a sandbox without a row, so a sandbox that was reported to
    /// somebody must have one.
    PowerCut,
}

impl SqliteStore {
    /// Returns the connection, set to flush each commit or not. It is set each time, since the level belongs to the
    /// connection and not to the transaction.
    async fn writer(&self, survives: Survives) -> Result<PoolConnection<Sqlite>> {
        let level = match survives {
            Survives::Crash => "PRAGMA synchronous = NORMAL",
            Survives::PowerCut => "PRAGMA synchronous = FULL",
        };
        let mut connection = self.pool.acquire().await.map_err(unwritten)?;
        sqlx::query(level).execute(&mut *connection).await.map_err(unwritten)?;
        Ok(connection)
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn vms(&self) -> Result<Vec<Vm>> {
        let rows = sqlx::query_as!(
            VmRow,
            "SELECT id, name, owner, vcpus, memory, disk_size, hostname, init, labels, image, kernel, state,
                    reason, lifetime, connection, bus, token, created_at, started_at, ready_at, boot_id,
                    vmm, slot, nat, ports, host_key, authorized_keys, timezone, root_size, booted_from,
                    idle_action, idle_after, restart, autostart, egress, snapshot_of
             FROM vms"
        );
        decode(rows.fetch_all(&self.pool).await)
    }

    async fn put_vm(&self, vm: &Vm) -> Result<()> {
        let (connection, bus) = match &vm.lifetime {
            Lifetime::Caller { connection, bus } => (Some(connection), Some(bus)),
            Lifetime::Persistent | Lifetime::UntilStopped => (None, None),
        };
        let labels = serde_json::to_string(&vm.spec.labels).map_err(|e| Error::other(WRITE, e))?;
        let (id, name, owner, vcpus) = (vm.id.to_string(), vm.name.as_str(), vm.owner.0, vm.spec.vcpus);
        let (memory, disk_size) = (integer(vm.spec.memory.0)?, integer(vm.spec.disk_size.0)?);
        let root_size = integer(vm.spec.root_size.0)?;
        let (hostname, init) = (vm.spec.hostname.as_str(), vm.spec.init.to_string());
        let (image, kernel) = (vm.image.to_string(), vm.kernel.to_string());
        let (state, reason, lifetime) = (vm.state.as_str(), vm.reason.to_string(), vm.lifetime.as_str());
        let (token, boot_id, vmm) = (vm.token.as_str(), &vm.boot_id, vm.spec.vmm.as_str());
        let nat = vm.spec.egress == Egress::Everything;
        let egress = vm.spec.egress.entries().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let ports = vm.spec.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let host_key = vm.host_key.secret();
        let authorized_keys: Vec<&str> = vm.spec.authorized_keys.iter().map(AuthorizedKey::as_str).collect();
        let authorized_keys = authorized_keys.join("\n");
        let timezone = vm.spec.timezone.as_ref().map(ToString::to_string).unwrap_or_default();
        let restart = vm.spec.restart.as_str();
        let created_at = integer(vm.created_at.0)?;
        let started_at = integer(vm.started_at.0)?;
        let ready_at = integer(vm.ready_at.0)?;
        let snapshot_of = vm.snapshot_of.map(|vm| vm.to_string());
        let booted_from = vm.booted_from.map(BootedFrom::as_str).unwrap_or_default();
        let (idle_action, idle_after) = match vm.spec.idle {
            Some(idle) => {
                (idle.action.as_str(), integer(u64::try_from(idle.after.as_micros()).unwrap_or(u64::MAX))?)
            }
            None => ("", 0),
        };
        sqlx::query!(
            "INSERT INTO vms (id, name, owner, vcpus, memory, disk_size, hostname, init, labels, image, kernel,
                              state, reason, lifetime, connection, bus, token, created_at, started_at,
                              ready_at, boot_id, vmm, slot, nat, ports, host_key,
                              authorized_keys, timezone, root_size, booted_from, idle_action, idle_after,
                              restart, autostart, egress, snapshot_of)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
                     ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET
                 name = excluded.name, owner = excluded.owner, vcpus = excluded.vcpus,
                 memory = excluded.memory, disk_size = excluded.disk_size, hostname = excluded.hostname,
                 init = excluded.init, labels = excluded.labels, image = excluded.image,
                 kernel = excluded.kernel, state = excluded.state, reason = excluded.reason,
                 lifetime = excluded.lifetime, connection = excluded.connection, bus = excluded.bus,
                 token = excluded.token, created_at = excluded.created_at,
                 started_at = excluded.started_at, ready_at = excluded.ready_at,
                 boot_id = excluded.boot_id, vmm = excluded.vmm, slot = excluded.slot,
                 nat = excluded.nat, ports = excluded.ports, host_key = excluded.host_key,
                 authorized_keys = excluded.authorized_keys, timezone = excluded.timezone,
                 root_size = excluded.root_size, booted_from = excluded.booted_from,
                 idle_action = excluded.idle_action, idle_after = excluded.idle_after,
                 restart = excluded.restart, autostart = excluded.autostart, egress = excluded.egress,
                 snapshot_of = excluded.snapshot_of",
            id,
            name,
            owner,
            vcpus,
            memory,
            disk_size,
            hostname,
            init,
            labels,
            image,
            kernel,
            state,
            reason,
            lifetime,
            connection,
            bus,
            token,
            created_at,
            started_at,
            ready_at,
            boot_id,
            vmm,
            vm.slot.0,
            nat,
            ports,
            host_key,
            authorized_keys,
            timezone,
            root_size,
            booted_from,
            idle_action,
            idle_after,
            restart,
            vm.spec.autostart,
            egress,
            snapshot_of,
        )
        .execute(&mut *self.writer(Survives::PowerCut).await?)
        .await
        .map_err(unwritten)
        .map(drop)
    }

    async fn delete_vm(&self, vm: VmId) -> Result<()> {
        let id = vm.to_string();
        let delete = sqlx::query!("DELETE FROM vms WHERE id = ?", id);
        delete.execute(&mut *self.writer(Survives::PowerCut).await?).await.map_err(unwritten).map(drop)
    }

    async fn images(&self) -> Result<Vec<Image>> {
        let rows = sqlx::query_as!(
            ImageRow,
            "SELECT id, name, owner, shared, source, kernel, created_at, file, digest, virtual_size, content_size,
                    disk_usage, manifest, config
             FROM images"
        );
        decode(rows.fetch_all(&self.pool).await)
    }

    async fn put_image(&self, image: &Image) -> Result<()> {
        write_image(&mut *self.writer(Survives::PowerCut).await?, image).await
    }

    async fn replace_image(&self, image: &Image, old: ImageId) -> Result<()> {
        let mut connection = self.writer(Survives::PowerCut).await?;
        let mut both = connection.begin().await.map_err(unwritten)?;
        let old = old.to_string();
        sqlx::query!("DELETE FROM images WHERE id = ?", old).execute(&mut *both).await.map_err(unwritten)?;
        write_image(&mut both, image).await?;
        both.commit().await.map_err(unwritten)
    }

    async fn delete_image(&self, image: ImageId) -> Result<()> {
        let id = image.to_string();
        let delete = sqlx::query!("DELETE FROM images WHERE id = ?", id);
        delete.execute(&mut *self.writer(Survives::PowerCut).await?).await.map_err(unwritten).map(drop)
    }

    async fn kernels(&self) -> Result<Vec<Kernel>> {
        let rows = sqlx::query_as!(
            KernelRow,
            "SELECT id, name, owner, shared, source, created_at, digest, release, modules, module_tree, size
             FROM kernels"
        );
        decode(rows.fetch_all(&self.pool).await)
    }

    async fn put_kernel(&self, kernel: &Kernel) -> Result<()> {
        write_kernel(&mut *self.writer(Survives::PowerCut).await?, kernel).await
    }

    async fn replace_kernel(&self, kernel: &Kernel, old: KernelId) -> Result<()> {
        let mut connection = self.writer(Survives::PowerCut).await?;
        let mut both = connection.begin().await.map_err(unwritten)?;
        let old = old.to_string();
        sqlx::query!("DELETE FROM kernels WHERE id = ?", old).execute(&mut *both).await.map_err(unwritten)?;
        write_kernel(&mut both, kernel).await?;
        both.commit().await.map_err(unwritten)
    }

    async fn delete_kernel(&self, kernel: KernelId) -> Result<()> {
        let id = kernel.to_string();
        let delete = sqlx::query!("DELETE FROM kernels WHERE id = ?", id);
        delete.execute(&mut *self.writer(Survives::PowerCut).await?).await.map_err(unwritten).map(drop)
    }

    async fn subnet(&self) -> Result<Option<Subnet>> {
        let row = sqlx::query_scalar!("SELECT subnet FROM network").fetch_optional(&self.pool).await;
        let row = row.map_err(|source| Error::other(READ, source))?;
        row.map(|text| text.parse()).transpose().map_err(|wrong: NotASubnet| Error::other(READ, wrong))
    }

    async fn put_subnet(&self, subnet: Subnet) -> Result<()> {
        let subnet = subnet.to_string();
        let insert = sqlx::query!("INSERT INTO network (id, subnet) VALUES (1, ?)", subnet);
        insert.execute(&mut *self.writer(Survives::PowerCut).await?).await.map_err(unwritten).map(drop)
    }

    async fn record(&self, vm: VmId, resource: Resource) -> Result<()> {
        let (vm, resource) = (vm.to_string(), resource.as_str());
        let insert = sqlx::query!(
            "INSERT INTO ledger (vm, resource) VALUES (?, ?) ON CONFLICT DO NOTHING",
            vm,
            resource
        );
        insert.execute(&mut *self.writer(Survives::Crash).await?).await.map_err(unwritten).map(drop)
    }

    async fn strike(&self, vm: VmId, resource: Resource) -> Result<()> {
        let (vm, resource) = (vm.to_string(), resource.as_str());
        let delete = sqlx::query!("DELETE FROM ledger WHERE vm = ? AND resource = ?", vm, resource);
        delete.execute(&mut *self.writer(Survives::Crash).await?).await.map_err(unwritten).map(drop)
    }

    async fn ledger(&self) -> Result<Vec<(VmId, Resource)>> {
        let rows = sqlx::query_as!(LedgerRow, "SELECT vm, resource FROM ledger");
        decode(rows.fetch_all(&self.pool).await)
    }
}

/// Writes a new or changed image.
async fn write_image(connection: &mut SqliteConnection, image: &Image) -> Result<()> {
    let (id, name, owner) = (image.id.to_string(), image.name.as_str(), image.owner.0);
    let kernel = image.kernel.map(|kernel| kernel.to_string());
    let created_at = integer(image.created_at.0)?;
    let file = image.facts.file.to_string();
    let virtual_size = integer(image.facts.virtual_size.0)?;
    let content_size = integer(image.facts.content_size.0)?;
    let disk_usage = integer(image.facts.disk_usage.0)?;
    let manifest = image.origin.as_ref().map(|origin| origin.manifest.to_string());
    let config = serde_json::to_string(&image.config).map_err(|e| Error::other(WRITE, e))?;
    sqlx::query!(
        "INSERT INTO images (id, name, owner, shared, source, kernel, created_at, file, digest, virtual_size,
                             content_size, disk_usage, manifest, config)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET
             name = excluded.name, owner = excluded.owner, shared = excluded.shared,
             source = excluded.source, kernel = excluded.kernel, created_at = excluded.created_at,
             file = excluded.file, digest = excluded.digest, virtual_size = excluded.virtual_size,
             content_size = excluded.content_size, disk_usage = excluded.disk_usage,
             manifest = excluded.manifest, config = excluded.config",
        id,
        name,
        owner,
        image.shared,
        image.source,
        kernel,
        created_at,
        file,
        image.facts.digest,
        virtual_size,
        content_size,
        disk_usage,
        manifest,
        config,
    )
    .execute(connection)
    .await
    .map_err(unwritten)
    .map(drop)
}

/// Writes a new or changed kernel.
async fn write_kernel(connection: &mut SqliteConnection, kernel: &Kernel) -> Result<()> {
    let (id, name, owner) = (kernel.id.to_string(), kernel.name.as_str(), kernel.owner.0);
    let (created_at, size) = (integer(kernel.created_at.0)?, integer(kernel.facts.size.0)?);
    let module_tree = integer(kernel.facts.module_tree.0)?;
    sqlx::query!(
        "INSERT INTO kernels (id, name, owner, shared, source, created_at, digest, release, modules, module_tree, size)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET
                 name = excluded.name, owner = excluded.owner, shared = excluded.shared,
                 source = excluded.source, created_at = excluded.created_at, digest = excluded.digest,
                 release = excluded.release, modules = excluded.modules, module_tree = excluded.module_tree,
                 size = excluded.size",
        id,
        name,
        owner,
        kernel.shared,
        kernel.source,
        created_at,
        kernel.facts.digest,
        kernel.facts.release,
        kernel.facts.modules,
        module_tree,
        size,
    )
    .execute(connection)
    .await
    .map_err(unwritten)
    .map(drop)
}

const READ: &str = "read the database";
const WRITE: &str = "write to the database";

/// Decodes rows. One unreadable row fails them all: without its row, a sandbox's disks would look like nobody's.
fn decode<Row, T>(rows: Result<Vec<Row>, sqlx::Error>) -> Result<Vec<T>>
where
    T: TryFrom<Row, Error = row::Unreadable>,
{
    let rows = rows.map_err(|source| Error::other(READ, source))?;
    rows.into_iter().map(T::try_from).collect::<Result<_, _>>().map_err(|source| Error::other(READ, source))
}

fn integer(number: u64) -> Result<i64> {
    number.try_into().map_err(|_| Error::other(WRITE, TooLarge(number)))
}

fn unwritten(source: sqlx::Error) -> Error {
    match primary_code(&source) {
        Some(SQLITE_FULL) => Error::no_space(WRITE),
        _ => Error::other(WRITE, source),
    }
}

/// Returns the kind of an error, without the details in the upper bits.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}
