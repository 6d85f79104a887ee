//! The database in real files.

use std::{collections::BTreeMap, fs, path::Path, sync::OnceLock, time::Duration};

use banger_domain::{
    digest::Digest,
    egress::Egress,
    id::{ImageId, KernelId, Timestamp, Uid, VmId},
    idle::IdlePolicy,
    lifecycle::{Reason, State},
    net::subnet::{Slot, Subnet},
    resource::Resource,
    restart::RestartPolicy,
    ssh::HostKey,
    vm::{BootedFrom, Init, Lifetime, Token, Vm, VmSpec},
    vmm::{VmmChoice, VmmKind},
};
use banger_image::{
    oci::config::ImageConfig,
    record::{Image, ImageFacts, Kernel, KernelFacts, Origin},
};
use banger_proto::size::Bytes;
use banger_system::{
    host::store::{OpenError, SqliteStore},
    ports::store::{Error, Store},
};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use crate::scratch::{Scratch, is_root, mode, names, require};

pub fn kernel() -> Kernel {
    Kernel {
        id: KernelId::from_bits(1),
        name: "debian".parse().unwrap(),
        owner: Uid::ROOT,
        shared: true,
        source: "file".into(),
        created_at: Timestamp(1),
        facts: KernelFacts {
            digest: "sha256:00".into(),
            release: "6.1.0-cloud".into(),
            modules: 7,
            module_tree: Bytes::mib(90),
            size: Bytes::mib(9),
        },
    }
}

pub fn image() -> Image {
    Image {
        id: ImageId::from_bits(2),
        name: "bookworm".parse().unwrap(),
        owner: Uid(u32::MAX),
        shared: false,
        source: "file".into(),
        kernel: Some(kernel().id),
        created_at: Timestamp(1_795_000_000_000_000),
        facts: ImageFacts {
            file: ImageId::from_bits(3),
            digest: "sha256:ff".into(),
            virtual_size: Bytes::gib(16 << 10),
            content_size: Bytes(7),
            disk_usage: Bytes(0),
        },
        origin: None,
        config: ImageConfig::default(),
    }
}

pub fn pulled_image() -> Image {
    let origin =
        Origin { reference: "localhost:5000/a/b:1".parse().unwrap(), manifest: Digest::from_bytes([7; 32]) };
    let config = ImageConfig {
        env: vec!["A=b".into()],
        labels: BTreeMap::from([("k".into(), "v".into())]),
        ..ImageConfig::default()
    };
    let name = "b-1".parse().unwrap();
    let source = origin.reference.to_string();
    Image { id: ImageId::from_bits(9), name, source, origin: Some(origin), config, ..image() }
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
static HOST_KEY: OnceLock<HostKey> = OnceLock::new();

pub fn vm() -> Vm {
    Vm {
        id: VmId::from_bits(u128::MAX),
        name: "calm-otter".parse().unwrap(),
        owner: Uid(1000),
        spec: VmSpec {
            vmm: VmmChoice::Only(VmmKind::Qemu),
            egress: Egress::parse(&["git", "*.example.com:443", "10.0.0.0/8:53/udp"]).unwrap(),
            timezone: Some("Europe/Berlin CET-1CEST,M3.5.0,M10.5.0/3".parse().unwrap()),
            authorized_keys: vec![KEY.parse().unwrap(), format!("{KEY} alice at home").parse().unwrap()],
            ports: ["all/udp/5353/53", "loopback/tcp/8080/80"].map(|port| port.parse().unwrap()).into(),
            vcpus: 2,
            memory: Bytes::gib(2),
            disk_size: Bytes::gib(8),
            root_size: Bytes::gib(20),
            hostname: "calm-otter".parse().unwrap(),
            init: Init::Path("/sbin/init".into()),
            labels: BTreeMap::from([("a \"quote\"".into(), "ünïcode\n".into()), ("".into(), "".into())]),
            idle: IdlePolicy::new("suspend", Duration::from_secs(1800)).ok(),
            restart: RestartPolicy::OnFailure,
            autostart: true,
        },
        image: image().id,
        kernel: kernel().id,
        slot: Slot(65_000),
        state: State::Running,
        reason: Reason::StartFailed("it: did not".into()),
        lifetime: Lifetime::Caller { connection: ":1.7".into(), bus: "abc".into() },
        token: Token::from_text("0123456789abcdef0123456789abcdef".into()),
        created_at: Timestamp(1),
        started_at: Timestamp(2),
        ready_at: Timestamp(3),
        boot_id: "boot".into(),
        booted_from: Some(BootedFrom::Suspension),
        snapshot_of: None,
        host_key: HOST_KEY.get_or_init(|| HostKey::random().unwrap()).clone(),
    }
}

#[tokio::test]
async fn the_subnet_is_kept_and_no_two_vms_share_a_slot() {
    let scratch = Scratch::new();
    let store = filled(&scratch).await;
    assert_eq!(store.subnet().await.unwrap(), None);
    let subnet = Subnet::choose(&[], [1, 2, 3, 4, 5]).unwrap();
    store.put_subnet(subnet).await.unwrap();
    assert_eq!(store.subnet().await.unwrap(), Some(subnet));
    let second = Vm { id: VmId::from_bits(3), ..vm() };
    assert!(store.put_vm(&second).await.is_err());
    // Snapshots have none, and so they share one with anybody.
    let snapshots = [4, 5].map(|id| Vm { id: VmId::from_bits(id), snapshot_of: Some(vm().id), ..vm() });
    for snapshot in &snapshots {
        store.put_vm(snapshot).await.unwrap();
    }
    let mut stored = store.vms().await.unwrap();
    stored.retain(|vm| vm.snapshot_of.is_some());
    stored.sort_by_key(|vm| vm.id);
    assert_eq!(stored, snapshots);
}

/// Returns a store with the kernel, the image and the sandbox.
pub async fn filled(scratch: &Scratch) -> SqliteStore {
    let store = SqliteStore::open(&scratch.paths).await.unwrap();
    store.put_kernel(&kernel()).await.unwrap();
    store.put_image(&image()).await.unwrap();
    store.put_vm(&vm()).await.unwrap();
    store
}

/// Does what no version of ours does.
pub async fn tamper(path: &Path, sql: &str) {
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// Checks that opening is refused with this message, and that the file is unchanged.
async fn refused(scratch: &Scratch, expect: &str) -> OpenError {
    let path = scratch.paths.database();
    let before = fs::read(&path).ok();
    let error = SqliteStore::open(&scratch.paths).await.unwrap_err();
    assert!(error.to_string().contains(expect), "{error}");
    assert_eq!(fs::read(&path).ok(), before, "the database was changed");
    error
}

#[tokio::test]
async fn a_row_survives_a_restart() {
    let scratch = Scratch::new();
    let store = filled(&scratch).await;
    store.record(vm().id, Resource::Disks).await.unwrap();
    let persistent = Vm { id: VmId::from_bits(3), slot: Slot(3), lifetime: Lifetime::Persistent, ..vm() };
    let until_stopped =
        Vm { id: VmId::from_bits(4), slot: Slot(4), lifetime: Lifetime::UntilStopped, ..vm() };
    let plain = Image { id: ImageId::from_bits(5), kernel: None, shared: true, ..image() };
    store.put_vm(&persistent).await.unwrap();
    store.put_vm(&until_stopped).await.unwrap();
    store.put_image(&plain).await.unwrap();
    let older = Image { id: ImageId::from_bits(8), ..pulled_image() };
    store.put_image(&older).await.unwrap();
    store.replace_image(&pulled_image(), older.id).await.unwrap();
    // An image that a sandbox uses is not replaced, and the new one is not added either.
    let newer = Image { id: ImageId::from_bits(10), ..image() };
    assert!(store.replace_image(&newer, image().id).await.is_err());
    let other = Kernel { id: KernelId::from_bits(20), ..kernel() };
    store.put_kernel(&other).await.unwrap();
    let newest = Kernel { id: KernelId::from_bits(21), ..kernel() };
    store.replace_kernel(&newest, other.id).await.unwrap();
    // The same for a kernel.
    let newer = Kernel { id: KernelId::from_bits(22), ..kernel() };
    assert!(store.replace_kernel(&newer, kernel().id).await.is_err());
    store.close().await;

    let store = SqliteStore::open(&scratch.paths).await.unwrap();
    let mut vms = store.vms().await.unwrap();
    vms.sort_by_key(|vm| vm.id);
    assert_eq!(vms, [persistent, until_stopped, vm()]);
    let mut images = store.images().await.unwrap();
    images.sort_by_key(|image| image.id);
    assert_eq!(images, [image(), plain, pulled_image()]);
    let mut kernels = store.kernels().await.unwrap();
    kernels.sort_by_key(|kernel| kernel.id);
    assert_eq!(kernels.iter().map(|kernel| kernel.id).collect::<Vec<_>>(), [kernel().id, newest.id]);
    assert_eq!(store.ledger().await.unwrap(), [(vm().id, Resource::Disks)]);
}

#[tokio::test]
async fn a_row_survives_a_kill() {
    let scratch = Scratch::new();
    let store = filled(&scratch).await;
    // A killed process leaves the files as they are while it runs.
    let copy = Scratch::new();
    let (from, to) = (scratch.paths.state.join("db"), copy.paths.state.join("db"));
    fs::create_dir_all(&to).unwrap();
    for name in names(&from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
    assert_eq!(SqliteStore::open(&copy.paths).await.unwrap().vms().await.unwrap(), [vm()]);
    drop(store);
}

#[tokio::test]
async fn putting_again_changes_the_row() {
    let scratch = Scratch::new();
    let store = filled(&scratch).await;
    let stopped = Vm {
        name: "brave-heron".parse().unwrap(),
        state: State::Stopped,
        reason: Reason::UserRequest,
        lifetime: Lifetime::Persistent,
        ready_at: Timestamp::default(),
        boot_id: String::new(),
        ..vm()
    };
    let renamed_image = Image { name: "trixie".parse().unwrap(), ..image() };
    let renamed_kernel = Kernel { name: "newer".parse().unwrap(), ..kernel() };
    for _ in 0..2 {
        store.put_vm(&stopped).await.unwrap();
        store.put_image(&renamed_image).await.unwrap();
        store.put_kernel(&renamed_kernel).await.unwrap();
    }
    assert_eq!(store.vms().await.unwrap(), [stopped]);
    assert_eq!(store.images().await.unwrap(), [renamed_image]);
    assert_eq!(store.kernels().await.unwrap(), [renamed_kernel]);
}

#[tokio::test]
async fn deleting_works_twice_and_takes_nothing_else_along() {
    let scratch = Scratch::new();
    let store = filled(&scratch).await;
    for _ in 0..2 {
        store.delete_vm(vm().id).await.unwrap();
        assert_eq!(store.vms().await.unwrap(), []);
    }
    assert_eq!(store.images().await.unwrap(), [image()]);
    for _ in 0..2 {
        store.delete_image(image().id).await.unwrap();
        assert_eq!(store.images().await.unwrap(), []);
    }
    assert_eq!(store.kernels().await.unwrap(), [kernel()]);
    for _ in 0..2 {
        store.delete_kernel(kernel().id).await.unwrap();
        assert_eq!(store.kernels().await.unwrap(), []);
    }
}

#[tokio::test]
async fn an_object_in_use_cannot_be_deleted() {
    let scratch = Scratch::new();
    let store = filled(&scratch).await;
    assert!(store.delete_image(image().id).await.is_err());
    assert!(store.delete_kernel(kernel().id).await.is_err());
    let homeless = Vm { id: VmId::from_bits(9), image: ImageId::from_bits(9), ..vm() };
    assert!(store.put_vm(&homeless).await.is_err());
    assert_eq!(store.vms().await.unwrap(), [vm()]);
    assert_eq!(store.images().await.unwrap(), [image()]);
    assert_eq!(store.kernels().await.unwrap(), [kernel()]);
}

#[tokio::test]
async fn the_ledger_knows_what_the_vms_table_does_not() {
    let scratch = Scratch::new();
    let store = SqliteStore::open(&scratch.paths).await.unwrap();
    for _ in 0..2 {
        for resource in Resource::ALL {
            store.record(vm().id, resource).await.unwrap();
        }
    }
    let mut ledger = store.ledger().await.unwrap();
    ledger.sort();
    assert_eq!(ledger, Resource::ALL.map(|resource| (vm().id, resource)));
    store.delete_vm(vm().id).await.unwrap();
    assert_eq!(store.ledger().await.unwrap().len(), Resource::ALL.len());
    for _ in 0..2 {
        for resource in Resource::ALL {
            store.strike(vm().id, resource).await.unwrap();
        }
    }
    assert_eq!(store.ledger().await.unwrap(), []);
}

#[tokio::test]
async fn the_files_are_accessible_to_their_owner_alone() {
    let scratch = Scratch::new();
    let _store = filled(&scratch).await;
    let directory = scratch.paths.state.join("db");
    assert_eq!(mode(&directory), 0o700);
    let files = names(&directory);
    assert_eq!(files, ["banger.sqlite", "banger.sqlite-shm", "banger.sqlite-wal"]);
    for file in files {
        assert_eq!(mode(&directory.join(&file)), 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_number_beyond_63_bits_is_refused() {
    let scratch = Scratch::new();
    let store = filled(&scratch).await;
    let forever = Vm { created_at: Timestamp(u64::MAX), ..vm() };
    assert!(matches!(store.put_vm(&forever).await, Err(Error::Other { .. })));
    assert_eq!(store.vms().await.unwrap(), [vm()]);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_named_without_its_content() {
    let scratch = Scratch::new();
    filled(&scratch).await.close().await;
    tamper(&scratch.paths.database(), "UPDATE vms SET state = 'secret'").await;
    let store = SqliteStore::open(&scratch.paths).await.unwrap();
    let error = store.vms().await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("state") && cause.contains(&vm().id.to_string()), "{cause}");
    assert!(!cause.contains("secret"), "{cause}");
}

#[tokio::test]
async fn a_file_that_is_not_a_database_is_refused() {
    let scratch = Scratch::new();
    filled(&scratch).await.close().await;
    fs::write(scratch.paths.database(), "not a database at all, however long it may be ".repeat(100))
        .unwrap();
    assert!(matches!(refused(&scratch, "damaged").await, OpenError::Damaged { .. }));
}

#[tokio::test]
async fn a_damaged_database_is_refused_wherever_the_damage_is() {
    for page in [1, 2, 5] {
        let scratch = Scratch::new();
        filled(&scratch).await.close().await;
        let path = scratch.paths.database();
        let mut bytes = fs::read(&path).unwrap();
        let start = page * 4096;
        assert!(bytes.len() > start + 4096, "page {page} of {} bytes", bytes.len());
        bytes[start..start + 4096].fill(0xa5);
        fs::write(&path, bytes).unwrap();
        assert!(matches!(refused(&scratch, "damaged").await, OpenError::Damaged { .. }), "page {page}");
    }
}

#[tokio::test]
async fn a_database_that_is_cut_short_is_refused() {
    let scratch = Scratch::new();
    filled(&scratch).await.close().await;
    let file = fs::File::options().write(true).open(scratch.paths.database()).unwrap();
    file.set_len(3 * 4096).unwrap();
    assert!(matches!(refused(&scratch, "damaged").await, OpenError::Damaged { .. }));
}

#[tokio::test]
async fn the_database_of_another_program_is_refused() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.paths.database().parent().unwrap()).unwrap();
    fs::write(scratch.paths.database(), "").unwrap();
    tamper(&scratch.paths.database(), "CREATE TABLE bookmarks (url TEXT)").await;
    assert!(matches!(refused(&scratch, "not a database of banger").await, OpenError::Foreign { .. }));
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let scratch = Scratch::new();
    filled(&scratch).await.close().await;
    let future = "INSERT INTO _sqlx_migrations VALUES (9999, 'future', '2030-01-01', 1, x'00', 1)";
    tamper(&scratch.paths.database(), future).await;
    assert!(matches!(refused(&scratch, "newer banger").await, OpenError::Newer { version: 9999, .. }));
}

#[tokio::test]
async fn a_missing_database_is_not_replaced_while_there_are_disks() {
    let scratch = Scratch::new();
    let disks = scratch.paths.vm_dir(vm().id);
    fs::create_dir_all(&disks).unwrap();
    assert!(matches!(refused(&scratch, "missing").await, OpenError::Missing { .. }));
    assert!(!scratch.paths.database().exists());
    fs::remove_dir(&disks).unwrap();
    SqliteStore::open(&scratch.paths).await.unwrap();
}

#[tokio::test]
async fn an_empty_file_is_a_first_start_that_was_cut_short() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.paths.database().parent().unwrap()).unwrap();
    fs::write(scratch.paths.database(), "").unwrap();
    assert_eq!(filled(&scratch).await.vms().await.unwrap(), [vm()]);
    assert_eq!(mode(&scratch.paths.database()), 0o600);
}

#[test]
fn a_full_disk_is_reported_and_existing_content_stays() {
    require!(is_root(), "root, to mount a small file system");
    let scratch = Scratch::on_small_file_system(2 << 20);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let store = filled(&scratch).await;
        scratch.fill_up(64 << 10);
        let large = Image { id: ImageId::from_bits(7), source: "x".repeat(1 << 20), ..image() };
        assert!(matches!(store.put_image(&large).await, Err(Error::NoSpace { .. })));
        assert_eq!(store.images().await.unwrap(), [image()]);
        fs::remove_file(scratch.paths.state.join("filler")).unwrap();
        store.put_image(&Image { source: "shorter".into(), ..large }).await.unwrap();
        assert_eq!(store.images().await.unwrap().len(), 2);
    });
}
