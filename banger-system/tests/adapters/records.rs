//! Databases that earlier versions wrote are opened, migrated and read.
//!
//! `tests/records` has the database of each version that was released. `BANGER_RECORD=0.2.0 cargo nextest run -p
//! banger-system --test adapters records` writes that of a release.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use banger_domain::{
    digest::Digest,
    egress::Egress,
    id::{ImageId, KernelId, Timestamp, Uid},
    lifecycle::State,
    net::subnet::{Slot, Subnet},
    resource::Resource,
    restart::RestartPolicy,
    vm::{Lifetime, Vm, VmSpec},
    vmm::VmmChoice,
};
use banger_proto::size::Bytes;
use banger_system::{host::store::SqliteStore, ports::store::Store};
use sha2::{Digest as _, Sha256};
use sqlx::{Connection, SqliteConnection, migrate::Migrator};

use crate::{
    scratch::Scratch,
    store::{filled, image, kernel, pulled_image, tamper, vm},
};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Rows as a service with the first schema wrote them.
const FIRST_ROWS: &str = r#"
INSERT INTO kernels VALUES ('00000000000000000000000000000001', 'debian', 0, 1, 'file', 1, 'sha256:00', '6.1.0', 7, 9);
INSERT INTO images VALUES ('00000000000000000000000000000002', 'bookworm', 1000, 0, 'file',
    '00000000000000000000000000000001', 2, 'sha256:ff', 4096, 1024);
INSERT INTO vms VALUES ('00000000000000000000000000000003', 'calm-otter', 1000, 2, 2048, 8192, 'calm-otter', 'auto',
    '{"a":"b"}', '00000000000000000000000000000002', '00000000000000000000000000000001', 'running', '', 'caller', ':1.7',
    'abc', '0123456789abcdef0123456789abcdef', 1, 2, 3, 'boot');
INSERT INTO vms VALUES ('00000000000000000000000000000004', 'brave-heron', 1000, 1, 2048, 8192, 'brave-heron',
    '/sbin/init', '{}', '00000000000000000000000000000002', '00000000000000000000000000000001', 'stopped',
    'user-request', 'persistent', NULL, NULL, '0123456789abcdef0123456789abcdef', 1, 0, 0, '');
INSERT INTO ledger VALUES ('00000000000000000000000000000003', 'disks');
"#;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/records")
}

/// Writes the database of this version.
async fn record(version: &str) {
    let scratch = Scratch::new();
    let store = filled(&scratch).await;
    store.put_image(&pulled_image()).await.unwrap();
    store.put_subnet(subnet()).await.unwrap();
    store.record(vm().id, Resource::Disks).await.unwrap();
    store.close().await;
    // No secret key belongs in a repository. A sandbox without one gets it when it is read.
    tamper(&scratch.paths.database(), "UPDATE vms SET host_key = ''; VACUUM; PRAGMA journal_mode = DELETE;")
        .await;
    fs::copy(scratch.paths.database(), directory().join(format!("{version}.sqlite"))).unwrap();
}

fn subnet() -> Subnet {
    Subnet::choose(&[], [1, 2, 3, 4, 5]).unwrap()
}

/// Returns the VM as it is in the database of a version, which may lack newer settings.
fn vm_in(file: &Path) -> Vm {
    let vm = vm();
    match file.file_stem().is_some_and(|version| version == "0.1.0") {
        true => {
            let spec = VmSpec {
                egress: Egress::Everything,
                idle: None,
                restart: RestartPolicy::No,
                autostart: false,
                ..vm.spec
            };
            Vm { spec, booted_from: None, ..vm }
        }
        false => vm,
    }
}

#[tokio::test]
async fn a_database_of_each_released_version_is_migrated_and_read() {
    if let Ok(version) = env::var("BANGER_RECORD") {
        record(&version).await;
    }
    let files: Vec<PathBuf> = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.contains(&directory().join("0.1.0.sqlite")));
    for file in files {
        let scratch = Scratch::new();
        fs::create_dir_all(scratch.paths.database().parent().unwrap()).unwrap();
        fs::copy(&file, scratch.paths.database()).unwrap();
        let store = SqliteStore::open(&scratch.paths).await.unwrap();
        let vms = store.vms().await.unwrap();
        let host_key = vms[0].host_key.clone();
        assert_eq!(vms, [Vm { host_key, ..vm_in(&file) }], "{}", file.display());
        let mut images = store.images().await.unwrap();
        images.sort_by_key(|image| image.id);
        assert_eq!(images, [image(), pulled_image()], "{}", file.display());
        assert_eq!(store.kernels().await.unwrap(), [kernel()], "{}", file.display());
        assert_eq!(store.ledger().await.unwrap(), [(vm().id, Resource::Disks)]);
        assert_eq!(store.subnet().await.unwrap(), Some(subnet()));
    }
}

/// Marks the database of the installed service as one of a newer version, or takes the mark away, and prints a digest of
/// all that is in it.
#[tokio::test]
#[ignore = "level 5 runs it in the test host"]
async fn edit() {
    let database = Path::new("/var/lib/banger/db/banger.sqlite");
    match env::var("BANGER_EDIT").unwrap().as_str() {
        "mark" => {
            let columns = "version, description, checksum, success, execution_time";
            let values = "9999, 'of a newer version', x'00', 1, 0";
            let row = format!("INSERT INTO _sqlx_migrations ({columns}) VALUES ({values})");
            tamper(database, &row).await;
        }
        "unmark" => tamper(database, "DELETE FROM _sqlx_migrations WHERE version = 9999").await,
        _ => {}
    }
    // The files differ by what is still in the log.
    let scratch = Scratch::new();
    let copy = scratch.home.path().join("copy");
    tamper(database, &format!("VACUUM INTO '{}'", copy.display())).await;
    println!("digest {}", Digest::from_bytes(Sha256::digest(fs::read(copy).unwrap()).into()));
}

#[tokio::test]
async fn rows_of_the_first_schema_come_through_all_migrations() {
    let scratch = Scratch::new();
    let path = scratch.paths.database();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let address = format!("sqlite://{}?mode=rwc", path.display());
    let mut connection = SqliteConnection::connect(&address).await.unwrap();
    MIGRATIONS.run_to(1, &mut connection).await.unwrap();
    sqlx::raw_sql(FIRST_ROWS).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();

    let store = SqliteStore::open(&scratch.paths).await.unwrap();
    let mut vms = store.vms().await.unwrap();
    vms.sort_by_key(|vm| vm.id);
    let [otter, heron] = &vms[..] else { panic!("{vms:?}") };
    assert_eq!((otter.name.as_str(), otter.owner, otter.state), ("calm-otter", Uid(1000), State::Running));
    assert_eq!((otter.slot, heron.slot), (Slot(0), Slot(1)));
    assert_eq!((otter.spec.vmm, otter.spec.egress.clone()), (VmmChoice::Auto, Egress::Nothing));
    assert_eq!((otter.spec.memory, otter.spec.disk_size), (Bytes(2048), Bytes(8192)));
    assert_eq!(otter.spec.labels.get("a").map(String::as_str), Some("b"));
    assert_eq!(otter.lifetime, Lifetime::Caller { connection: ":1.7".into(), bus: "abc".into() });
    assert_eq!((otter.started_at, otter.boot_id.as_str()), (Timestamp(2), "boot"));
    assert_eq!((heron.state, heron.lifetime.clone()), (State::Stopped, Lifetime::Persistent));
    // What came later is what it was for all sandboxes before.
    assert_eq!((otter.spec.root_size, otter.spec.timezone.clone()), (Bytes(4096), None));
    assert!(otter.spec.ports.is_empty() && otter.spec.authorized_keys.is_empty());
    let images = store.images().await.unwrap();
    assert_eq!((images[0].facts.file, images[0].facts.content_size), (ImageId::from_bits(2), Bytes(1024)));
    let kernels = store.kernels().await.unwrap();
    assert_eq!((kernels[0].id, kernels[0].facts.module_tree), (KernelId::from_bits(1), Bytes(0)));
    assert_eq!(store.ledger().await.unwrap(), [(otter.id, Resource::Disks)]);
}
