//! System disks as snapshots on a kernel with device-mapper, as in the test host. `dmsetup`, `losetup` and the
//! kernel's own tables show the results.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use banger_domain::{
    id::{ImageId, VmId},
    launch_spec::{Drive, Medium},
    resource::mapper_name,
};
use banger_proto::size::Bytes;
use banger_system::{
    host::storage::{disks::FileDisks, mapper::MapperDisks},
    ports::{
        HostError, NoProgress, Status,
        disks::{Disks, Error, OverlayBy, Parent},
    },
};

use crate::scratch::{Scratch, has_program, is_root, names, require, run};
use crate::skip;

const IMAGE: ImageId = ImageId::from_bits(2);
const SIZE: u64 = 256 << 20;
/// For effects that the kernel delays a little.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Sandboxes of this process: several tests run at once, and the kernel has one list of nodes.
fn vm(number: u128) -> VmId {
    VmId::from_bits((u128::from(std::process::id()) << 64) | number)
}

/// Disks in a directory of the test's own. Their nodes are removed when the test ends.
struct Host {
    scratch: Scratch,
    disks: MapperDisks,
    vms: Vec<VmId>,
}

impl Host {
    fn new(scratch: Scratch, vms: impl IntoIterator<Item = VmId>) -> Self {
        put_image(&scratch);
        let disks = MapperDisks::new(scratch.paths.clone()).unwrap();
        Self { scratch, disks, vms: vms.into_iter().collect() }
    }

    async fn create(&self, vm: VmId) {
        self.create_sized(vm, Bytes(0)).await;
    }

    async fn create_sized(&self, vm: VmId, size: Bytes) {
        self.disks.create_directory(vm).await.unwrap();
        self.disks.clone_image(vm, IMAGE, OverlayBy::Host, size).await.unwrap();
        self.disks.create_work_disk(vm, Bytes::mib(64)).await.unwrap();
    }

    async fn start(&self, vm: VmId) -> Drive {
        self.disks.attach(vm, IMAGE).await.unwrap().remove(0)
    }

    /// Returns the loop devices of our files, by file.
    fn loops(&self) -> Vec<String> {
        let listing = output("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]);
        let home = self.scratch.home.path().to_str().unwrap().to_owned();
        let mut loops: Vec<String> = listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix(&home))
            .map(|file| file.rsplit('/').next().unwrap().to_owned())
            .collect();
        loops.sort();
        loops
    }

    /// Waits until loop devices are gone: they go with their last user, which may be udev for a moment.
    fn await_loops(&self, expected: &[&str]) {
        let deadline = Instant::now() + TIMEOUT;
        while self.loops() != expected {
            assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", self.loops());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for vm in &self.vms {
            let _ = Command::new("dmsetup").args(["remove", &mapper_name(*vm)]).output();
        }
    }
}

/// Returns an image with data at its beginning, in its middle and at its end.
fn put_image(scratch: &Scratch) {
    let path = scratch.paths.image(IMAGE);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    for at in [0, SIZE / 2, SIZE - 4096] {
        file.write_all_at(&[0xa5; 4096], at).unwrap();
    }
    fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn read_at<const N: usize>(file: &File, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

/// Returns the two devices in the table of a node, as major:minor.
fn table(vm: VmId) -> (String, String) {
    let table = output("dmsetup", &["table", &mapper_name(vm)]);
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(words[2], "snapshot", "{table}");
    assert_eq!(words[5..7], ["P", "8"], "{table}");
    (words[3].to_owned(), words[4].to_owned())
}

fn has_snapshots() -> bool {
    let _ = Command::new("modprobe").arg("dm_snapshot").output();
    skip::has_device("/dev/mapper/control") && has_program("dmsetup")
}

/// Skips the test if the kernel lacks device-mapper.
macro_rules! require_snapshots {
    () => {
        require!(is_root(), "root");
        require!(has_snapshots(), "device-mapper with snapshots");
    };
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_fork_has_a_copy_of_its_parents_overlay() {
    require_snapshots!();
    let (parent, child) = (vm(41), vm(42));
    let host = Host::new(Scratch::new(), [parent, child]);
    let write = async |vm, text: &str| {
        let disk = File::options().write(true).open(host.start(vm).await.path).unwrap();
        disk.write_all_at(text.as_bytes(), 4096).unwrap();
        disk.sync_all().unwrap();
    };
    let read = async |vm| {
        let mut bytes = [0; 6];
        File::open(host.start(vm).await.path).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
        bytes
    };
    block_on(async {
        host.create(parent).await;
        write(parent, "before").await;
        host.disks.detach(parent).await.unwrap();
        host.disks.freeze(parent).await.unwrap();
        assert_eq!(host.disks.frozen(parent).await.unwrap(), []);
        host.disks.create_directory(child).await.unwrap();
        host.disks.create_child(child, parent, Parent::Down, Arc::new(NoProgress)).await.unwrap();
        assert_eq!(&read(child).await, b"before");
        write(parent, "parent").await;
        assert_eq!((&read(parent).await, &read(child).await), (b"parent", b"before"));
        for vm in [parent, child] {
            host.disks.detach(vm).await.unwrap();
            host.disks.remove_directory(vm).await.unwrap();
        }
        host.await_loops(&[]);
    });
}

#[test]
fn a_snapshot_has_the_content_of_the_image_and_keeps_what_is_written() {
    require_snapshots!();
    let vm = vm(1);
    let host = Host::new(Scratch::new(), [vm]);
    block_on(async {
        host.create(vm).await;
        assert_eq!(names(&host.scratch.paths.vm_dir(vm)), ["system.cow", "work.ext4"]);
        let overlay = fs::metadata(host.scratch.paths.overlay(vm)).unwrap();
        assert!(overlay.len() > SIZE && overlay.blocks() == 0, "{} blocks", overlay.blocks());
        assert_eq!(overlay.mode() & 0o777, 0o600);

        let drives = host.disks.attach(vm, IMAGE).await.unwrap();
        assert_eq!(
            drives.iter().map(|drive| drive.medium.clone()).collect::<Vec<_>>(),
            [Medium::BlockDevice, Medium::File]
        );
        assert!(fs::metadata(&drives[0].path).unwrap().file_type().is_block_device());
        assert!(host.disks.attached().await.unwrap().contains(&vm));
        {
            let disk = open(&drives[0].path);
            for at in [0, SIZE / 2, SIZE - 4096] {
                assert_eq!(read_at(&disk, at), [0xa5; 4096], "at {at}");
            }
            disk.write_all_at(b"the guest writes", SIZE / 2 + 5).unwrap();
            disk.sync_all().unwrap();
        }
        host.disks.detach(vm).await.unwrap();
        host.await_loops(&[]);

        let disk = open(&host.start(vm).await.path);
        assert_eq!(&read_at::<16>(&disk, SIZE / 2 + 5), b"the guest writes");
        assert_eq!(read_at(&disk, SIZE / 2), [0xa5; 5]);
        drop(disk);
        let image = File::open(host.scratch.paths.image(IMAGE)).unwrap();
        assert_eq!(read_at(&image, SIZE / 2), [0xa5; 4096]);
        host.disks.detach(vm).await.unwrap();
    });
}

#[test]
fn a_system_disk_that_is_larger_than_its_image_goes_on_behind_the_snapshot() {
    require_snapshots!();
    let (made, grown) = (vm(1), vm(2));
    let host = Host::new(Scratch::new(), [made, grown]);
    let length = |drive: &Drive| File::open(&drive.path).unwrap().seek(SeekFrom::End(0)).unwrap();
    block_on(async {
        host.create_sized(made, Bytes(SIZE + (64 << 20))).await;
        assert_eq!(names(&host.scratch.paths.vm_dir(made)), ["system.cow", "system.tail", "work.ext4"]);
        // A disk that was made before this feature existed.
        host.create(grown).await;
        open(&host.start(grown).await.path).write_all_at(b"early", 7).unwrap();
        host.disks.detach(grown).await.unwrap();
        for _ in 0..2 {
            host.disks.grow_system_disk(grown, IMAGE, Bytes(SIZE + (64 << 20))).await.unwrap();
        }
        assert_eq!(&read_at::<5>(&open(&host.start(grown).await.path), 7), b"early");

        for vm in [made, grown] {
            let drive = host.start(vm).await;
            assert_eq!(length(&drive), SIZE + (64 << 20));
            let disk = open(&drive.path);
            assert_eq!(read_at(&disk, SIZE - 4096), [0xa5; 4096]);
            assert_eq!(read_at(&disk, SIZE), [0; 4096]);
            // Across the seam, and at the end.
            disk.write_all_at(&[7; 8192], SIZE - 4096).unwrap();
            disk.write_all_at(&[8; 4096], SIZE + (64 << 20) - 4096).unwrap();
            disk.sync_all().unwrap();
            drop(disk);
            host.disks.detach(vm).await.unwrap();
        }
        host.await_loops(&[]);
        for vm in [made, grown] {
            // Disks never shrink.
            for size in [Bytes::gib(2), Bytes(SIZE)] {
                host.disks.grow_system_disk(vm, IMAGE, size).await.unwrap();
            }
            let drive = host.start(vm).await;
            assert_eq!(length(&drive), 2 << 30);
            let disk = open(&drive.path);
            assert_eq!(read_at(&disk, SIZE - 4096), [7; 8192]);
            assert_eq!(read_at(&disk, SIZE + (64 << 20) - 4096), [8; 4096]);
            assert_eq!(read_at(&disk, (2 << 30) - 4096), [0; 4096]);
        }
        let all = ["rootfs.ext4", "system.cow", "system.cow", "system.tail", "system.tail"];
        assert_eq!(host.loops(), all);
        let image = File::open(host.scratch.paths.image(IMAGE)).unwrap();
        assert_eq!(read_at(&image, SIZE - 4096), [0xa5; 4096]);
        for vm in [made, grown] {
            host.disks.detach(vm).await.unwrap();
        }
        host.await_loops(&[]);
    });
}

#[test]
fn vms_of_one_image_share_its_device_and_nothing_is_left_of_them() {
    require_snapshots!();
    let vms = [vm(1), vm(2), vm(3)];
    let host = Host::new(Scratch::new(), vms);
    block_on(async {
        for vm in vms {
            host.create(vm).await;
        }
        let (one, two) = (host.disks.clone(), host.disks.clone());
        let (first, second) = tokio::join!(one.attach(vms[0], IMAGE), two.attach(vms[1], IMAGE));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_ne!(first[0].path, second[0].path);
        host.start(vms[2]).await;
        let tables = vms.map(table);
        assert!(tables.iter().all(|(origin, _)| *origin == tables[0].0), "{tables:?}");
        assert_ne!(tables[0].1, tables[1].1);
        assert_eq!(host.loops(), ["rootfs.ext4", "system.cow", "system.cow", "system.cow"]);

        open(&first[0].path).write_all_at(b"one", 0).unwrap();
        open(&second[0].path).write_all_at(b"two", 0).unwrap();
        assert_eq!(&read_at::<3>(&open(&first[0].path), 0), b"one");

        host.disks.detach(vms[0]).await.unwrap();
        host.await_loops(&["rootfs.ext4", "system.cow", "system.cow"]);
        assert_eq!(&read_at::<3>(&open(&second[0].path), 0), b"two");
        for vm in [vms[0], vms[1], vms[2], vms[1]] {
            host.disks.detach(vm).await.unwrap();
        }
        host.await_loops(&[]);
        let left = host.disks.attached().await.unwrap();
        assert!(vms.iter().all(|vm| !left.contains(vm)), "{left:?}");
    });
}

#[test]
fn what_a_crash_left_is_found_by_its_name_and_made_again() {
    require_snapshots!();
    let vm = vm(1);
    let host = Host::new(Scratch::new(), [vm]);
    block_on(async {
        host.create(vm).await;
        // A node without a table: a crash between the two steps.
        run(Command::new("dmsetup").args(["create", &mapper_name(vm), "--notable"]));
        assert!(host.disks.attached().await.unwrap().contains(&vm));
        let drive = host.start(vm).await;
        open(&drive.path).write_all_at(b"kept", 0).unwrap();
        // Another run of the service does not know about this one.
        let again = MapperDisks::new(host.scratch.paths.clone()).unwrap();
        let drive = again.attach(vm, IMAGE).await.unwrap().remove(0);
        assert_eq!(&read_at::<4>(&open(&drive.path), 0), b"kept");
        assert_eq!(host.loops(), ["rootfs.ext4", "system.cow"]);
        again.detach(vm).await.unwrap();
        host.await_loops(&[]);
    });
}

#[test]
fn a_disk_that_is_in_use_is_not_taken_away() {
    require_snapshots!();
    let vm = vm(1);
    let host = Host::new(Scratch::new(), [vm]);
    block_on(async {
        host.create(vm).await;
        let drive = host.start(vm).await;
        let user = open(&drive.path);
        match host.disks.detach(vm).await {
            Err(Error::Host(HostError::Os { doing, .. })) => {
                assert!(doing.contains("has it open"), "{doing}")
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(read_at(&user, 0), [0xa5; 4096]);
        drop(user);
        host.disks.detach(vm).await.unwrap();
    });
}

#[test]
fn an_attachment_that_fails_leaves_nothing() {
    require_snapshots!();
    let vm = vm(1);
    let host = Host::new(Scratch::new(), [vm]);
    let refused = async || match host.disks.attach(vm, IMAGE).await {
        Err(Error::Host(HostError::NotReady { message })) => message,
        other => panic!("{other:?}"),
    };
    block_on(async {
        host.disks.create_directory(vm).await.unwrap();
        assert!(refused().await.contains("delete the sandbox"));
        host.create(vm).await;
        fs::remove_file(host.scratch.paths.image(IMAGE)).unwrap();
        assert!(refused().await.contains("register the image again"));
        // An empty image cannot be a device in a table.
        File::create(host.scratch.paths.image(IMAGE)).unwrap();
        assert!(host.disks.attach(vm, IMAGE).await.is_err());
        host.await_loops(&[]);
        assert!(!host.disks.attached().await.unwrap().contains(&vm));
    });
}

#[test]
fn running_vms_keep_a_deleted_image() {
    require_snapshots!();
    let (old, new) = (vm(1), vm(2));
    let host = Host::new(Scratch::new(), [old, new]);
    block_on(async {
        host.create(old).await;
        host.create(new).await;
        let running = host.start(old).await;
        let image = host.scratch.paths.image(IMAGE);
        fs::remove_file(&image).unwrap();
        assert_eq!(read_at(&open(&running.path), SIZE / 2), [0xa5; 4096]);
        // Another file of the same name is another image.
        put_image(&host.scratch);
        host.start(new).await;
        assert_ne!(table(old).0, table(new).0);
        host.disks.detach(old).await.unwrap();
        host.disks.detach(new).await.unwrap();
        host.await_loops(&[]);
    });
}

#[test]
fn a_full_file_system_refuses_the_start_and_a_lost_snapshot_is_reported() {
    require_snapshots!();
    let vm = vm(1);
    let host = Host::new(Scratch::on_small_file_system(160 << 20), [vm]);
    block_on(async {
        host.create(vm).await;
        host.scratch.fill_up(32 << 20);
        assert!(matches!(host.disks.attach(vm, IMAGE).await, Err(Error::Host(HostError::NoSpace { .. }))));
        host.await_loops(&[]);

        let filler = host.scratch.paths.state.join("filler");
        fs::remove_file(&filler).unwrap();
        let drive = host.start(vm).await;
        host.scratch.fill_up(1 << 20);
        // More than fits. The kernel reports it at the flush, or when a write meets the lost snapshot.
        let disk = open(&drive.path);
        let written = (0..64u64).try_for_each(|at| disk.write_all_at(&[7; 1 << 20], at << 20));
        assert!(written.and_then(|()| disk.sync_all()).is_err());
        drop(disk);
        host.disks.detach(vm).await.unwrap();

        fs::remove_file(&filler).unwrap();
        match host.disks.attach(vm, IMAGE).await {
            Err(Error::Unsupported { message }) => assert!(message.contains("is lost"), "{message}"),
            other => panic!("{other:?}"),
        }
        host.await_loops(&[]);
    });
}

#[test]
fn a_disk_made_without_device_mapper_stays_as_it_is() {
    require_snapshots!();
    let vm = vm(1);
    let host = Host::new(Scratch::new(), [vm]);
    block_on(async {
        let files = FileDisks::new(host.scratch.paths.clone());
        files.create_directory(vm).await.unwrap();
        files.clone_image(vm, IMAGE, OverlayBy::Host, Bytes(0)).await.unwrap();
        let drive = host.start(vm).await;
        assert_eq!((drive.path, drive.medium), (host.scratch.paths.system_disk(vm), Medium::File));
        host.disks.detach(vm).await.unwrap();
        assert_eq!(host.disks.checks().await[0].status, Status::Pass);
    });
}

#[test]
fn nothing_of_the_host_looks_into_a_disk() {
    require_snapshots!();
    require!(Path::new("/run/udev/control").exists(), "udev");
    let vm = vm(1);
    let host = Host::new(Scratch::new(), [vm]);
    block_on(async {
        // Signatures that a prober would find and trust.
        let image = host.scratch.paths.image(IMAGE);
        fs::set_permissions(&image, PermissionsExt::from_mode(0o600)).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-L", "guest-says"]).arg(&image));
        host.create(vm).await;
        let drive = host.start(vm).await;
        run(Command::new("udevadm").args(["settle"]));
        let node = drive.path.to_str().unwrap();
        let properties = output("udevadm", &["info", "--query=property", node]);
        assert!(!properties.contains("ID_FS_"), "{properties}");
        assert!(properties.contains("DM_UDEV_DISABLE_OTHER_RULES_FLAG=1"), "{properties}");
        // udev may create a link for the loop device below: its rules only know the usual directory of the service.
        let link = fs::canonicalize("/dev/disk/by-label/guest-says");
        assert!(link.map_or(true, |target| target != drive.path));
        assert!(!Path::new("/dev/mapper").join(mapper_name(vm)).exists());
        host.disks.detach(vm).await.unwrap();
    });
}

/// Not a test: `cargo xtask bench disk` runs it in the test host and reads its output, in milliseconds.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let runs: u128 = std::env::var("BANGER_BENCH_RUNS").map_or(5, |runs| runs.parse().unwrap());
    let host = Host::new(Scratch::new(), (0..runs).map(vm));
    let image = host.scratch.paths.image(IMAGE);
    fs::set_permissions(&image, PermissionsExt::from_mode(0o600)).unwrap();
    open(&image).set_len(4 << 30).unwrap();
    let origin = output("losetup", &["--find", "--show", "--read-only", image.to_str().unwrap()]);
    let milliseconds = |from: Instant| from.elapsed().as_secs_f64() * 1000.0;
    for number in 0..runs {
        let vm = vm(number);
        block_on(async {
            host.disks.create_directory(vm).await.unwrap();
            let start = Instant::now();
            host.disks.clone_image(vm, IMAGE, OverlayBy::Host, Bytes(0)).await.unwrap();
            host.disks.attach(vm, IMAGE).await.unwrap();
            println!("ours {}", milliseconds(start));
            host.disks.detach(vm).await.unwrap();
        });
        let overlay = host.scratch.home.path().join(format!("peer-{number}"));
        File::create(&overlay).unwrap().set_len(4 << 30).unwrap();
        let overlay = output("losetup", &["--find", "--show", overlay.to_str().unwrap()]);
        let table = format!("0 {} snapshot {} {} P 8", (4u64 << 30) / 512, origin.trim(), overlay.trim());
        let start = Instant::now();
        run(Command::new("dmsetup").args(["create", "banger-peer", "--table", &table]));
        println!("peer {}", milliseconds(start));
        run(Command::new("dmsetup").args(["remove", "banger-peer"]));
        run(Command::new("losetup").args(["--detach", overlay.trim()]));
    }
    run(Command::new("losetup").args(["--detach", origin.trim()]));
}
