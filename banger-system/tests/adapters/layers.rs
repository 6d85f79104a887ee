//! Disks that several sandboxes share, on a real file system. QEMU's own tools write to them and read them.

use std::{
    fs,
    os::fd::OwnedFd,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
    sync::Arc,
};

use banger_domain::{
    id::{ImageId, VmId},
    launch_spec::{Drive, Medium},
};
use banger_proto::size::Bytes;
use banger_system::{
    host::storage::disks::FileDisks,
    ports::{
        NoProgress,
        disks::{Disks, Error, MAX_DEPTH, OverlayBy, Parent},
    },
};

use crate::scratch::{self, Scratch, has_program, mode, names, require};
use crate::skip;

const PARENT: VmId = VmId::from_bits(1);
const CHILD: VmId = VmId::from_bits(2);
const LATER: VmId = VmId::from_bits(3);
pub const IMAGE: ImageId = ImageId::from_bits(4);
pub const SIZE: u64 = 64 << 20;

struct Host {
    scratch: Scratch,
    disks: FileDisks,
}

impl Host {
    /// Creates a sandbox whose disks are made in this way.
    async fn new(overlay_by: OverlayBy) -> Self {
        let scratch = Scratch::new();
        let image = scratch.paths.image(IMAGE);
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        fs::write(&image, vec![0xa5; SIZE as usize]).unwrap();
        let disks = FileDisks::new(scratch.paths.clone());
        disks.create_directory(PARENT).await.unwrap();
        disks.clone_image(PARENT, IMAGE, overlay_by, Bytes(0)).await.unwrap();
        disks.create_work_disk(PARENT, Bytes(SIZE)).await.unwrap();
        Self { scratch, disks }
    }

    /// Returns whether the disks are shared. On a file system that shares blocks they are copied.
    fn has_layers(&self) -> bool {
        self.scratch.paths.system_layer(PARENT).exists()
    }

    async fn fork(&self, child: VmId) {
        self.disks.freeze(PARENT).await.unwrap();
        self.disks.create_directory(child).await.unwrap();
        self.disks.create_child(child, PARENT, Parent::Down, Arc::new(NoProgress)).await.unwrap();
    }

    async fn io(&self, vm: VmId, disk: usize, commands: &[&str]) {
        io(&self.disks, vm, disk, commands).await;
    }
}

/// Freezes the disks of a sandbox that runs, and returns its new layers.
pub async fn freeze_running(disks: &FileDisks, vm: VmId) -> Vec<OwnedFd> {
    let layers = disks.prepare_layers(vm).await.unwrap().freeze().await.unwrap();
    // A repeat is safe.
    for _ in 0..2 {
        disks.sync_layers(vm).await.unwrap();
    }
    layers
}

/// Runs commands of qemu-io on a disk of a sandbox. A read fails if it finds anything else.
pub async fn io(disks: &FileDisks, vm: VmId, disk: usize, commands: &[&str]) {
    let drive = &disks.attach(vm, IMAGE).await.unwrap()[disk];
    let mut run = Command::new("qemu-io");
    run.args(["--image-opts", &options(drive)]);
    run.args(commands.iter().flat_map(|command| ["-c", command]));
    let run = run.output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && !said.contains("failed"), "{said}");
}

/// Returns a drive in the words of QEMU's tools.
fn options(drive: &Drive) -> String {
    let file = |driver: &str, path: &Path| format!("driver={driver},file.filename={}", path.display());
    let Medium::Layer { base, frozen } = &drive.medium else { return file("raw", &drive.path) };
    let mut words = file("qcow2", &drive.path);
    let below = frozen.iter().rev().map(|layer| ("qcow2", layer)).chain([("raw", base)]);
    for (depth, (driver, path)) in below.enumerate() {
        let prefix = "backing.".repeat(depth + 1);
        words.push_str(&format!(",{prefix}driver={driver},{prefix}file.filename={}", path.display()));
    }
    words
}

#[tokio::test]
async fn disks_are_exchanged_and_logs_stay() {
    require!(has_program("qemu-io"), "qemu-io");
    for overlay_by in [OverlayBy::Vmm, OverlayBy::Host] {
        let host = Host::new(overlay_by).await;
        host.io(PARENT, 0, &["write -P 7 32M 64k"]).await;
        host.fork(CHILD).await;
        for (disk, pattern) in [(0, 8), (1, 9)] {
            host.io(PARENT, disk, &[&format!("write -P {pattern} 32M 64k")]).await;
        }
        let paths = &host.scratch.paths;
        fs::write(paths.console_log(PARENT), "said").unwrap();
        let facts = host.disks.identity(CHILD).await.unwrap();
        host.disks.exchange(PARENT, CHILD).await.unwrap();
        assert_eq!(host.disks.identity(PARENT).await.unwrap(), facts);
        assert_eq!(fs::read_to_string(paths.console_log(PARENT)).unwrap(), "said");
        host.io(PARENT, 0, &["read -P 7 32M 64k", "write -P 1 32M 64k"]).await;
        host.io(CHILD, 0, &["read -P 8 32M 64k"]).await;
        host.io(CHILD, 1, &["read -P 9 32M 64k"]).await;
        host.disks.remove_directory(CHILD).await.unwrap();
        host.io(PARENT, 0, &["read -P 1 32M 64k"]).await;
        assert!(host.disks.exchange(PARENT, CHILD).await.is_err());
        host.io(PARENT, 0, &["read -P 1 32M 64k"]).await;
    }
}

#[tokio::test]
async fn a_child_that_was_never_started_is_forked_as_often_as_wanted_and_stays_as_it_is() {
    require!(has_program("qemu-io"), "qemu-io");
    let host = Host::new(OverlayBy::Vmm).await;
    if !host.has_layers() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    host.io(PARENT, 0, &["write -P 7 32M 64k"]).await;
    host.fork(CHILD).await;
    host.io(PARENT, 0, &["write -P 8 32M 64k"]).await;
    let (disks, layers) = (&host.disks, host.disks.frozen(CHILD).await.unwrap());
    for round in 0..2 {
        disks.create_directory(LATER).await.unwrap();
        disks.create_child(LATER, CHILD, Parent::Down, Arc::new(NoProgress)).await.unwrap();
        assert_eq!(disks.frozen(LATER).await.unwrap(), layers);
        assert_ne!(disks.identity(LATER).await.unwrap(), disks.identity(CHILD).await.unwrap());
        host.io(LATER, 0, &["read -P 7 32M 64k", "write -P 9 32M 64k"]).await;
        // The last one keeps what it shares.
        if round == 0 {
            disks.remove_directory(LATER).await.unwrap();
        }
    }
    assert_eq!(disks.freezable(CHILD, Parent::Down).await.unwrap(), Bytes(0));
    disks.remove_directory(CHILD).await.unwrap();
    host.io(LATER, 0, &["read -P 9 32M 64k", "read -P 0xa5 0 1M"]).await;
}

#[tokio::test]
async fn a_child_has_what_its_parent_had_and_neither_sees_what_the_other_writes() {
    require!(has_program("qemu-io"), "qemu-io");
    let host = Host::new(OverlayBy::Vmm).await;
    if !host.has_layers() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    let (disks, paths) = (&host.disks, &host.scratch.paths);
    for disk in [0, 1] {
        host.io(PARENT, disk, &["write -P 7 32M 64k"]).await;
    }
    let added = disks.freezable(PARENT, Parent::Down).await.unwrap();
    assert!(added.0 >= 2 << 16, "{added}");
    assert_eq!(disks.frozen(PARENT).await.unwrap(), []);
    host.fork(CHILD).await;
    let layers = disks.frozen(PARENT).await.unwrap();
    assert_eq!(layers.iter().map(|layer| layer.size.0).sum::<u64>(), added.0);
    assert_eq!(disks.frozen(CHILD).await.unwrap(), layers);
    let all = ["base.ext4", "system.1.qcow2", "system.qcow2", "work.ext4", "work.qcow2"];
    assert_eq!(names(&paths.vm_dir(CHILD)), all);
    let shared = ["system.1.qcow2", "work.ext4"].map(|name| paths.vm_dir(PARENT).join(name));
    let before = shared.each_ref().map(|path| fs::read(path).unwrap());
    assert!(shared.iter().all(|path| mode(path) == 0o400));

    for disk in [0, 1] {
        host.io(PARENT, disk, &["read -P 7 32M 64k", "write -P 8 32M 64k"]).await;
        host.io(CHILD, disk, &["read -P 7 32M 64k", "write -P 9 32M 4k", "read -P 7 32772k 60k"]).await;
        host.io(PARENT, disk, &["read -P 8 32M 64k"]).await;
    }
    host.io(CHILD, 0, &["read -P 0xa5 0 1M"]).await;
    // A later child has what the parent has written since; a child that grows does so alone.
    host.fork(LATER).await;
    disks.grow_system_disk(CHILD, IMAGE, Bytes(2 * SIZE)).await.unwrap();
    disks.grow_work_disk(CHILD, Bytes(2 * SIZE)).await.unwrap();
    for disk in [0, 1] {
        host.io(LATER, disk, &["read -P 8 32M 64k"]).await;
        host.io(CHILD, disk, &["read -P 9 32M 4k", "read -P 0 64M 64k", "write -P 5 100M 64k"]).await;
    }
    assert!(before == shared.each_ref().map(|path| fs::read(path).unwrap()), "a frozen layer has changed");

    // Layers stay as long as a sandbox has them.
    disks.remove_directory(PARENT).await.unwrap();
    for disk in [0, 1] {
        host.io(LATER, disk, &["read -P 8 32M 64k"]).await;
        host.io(CHILD, disk, &["read -P 9 32M 4k"]).await;
    }
    for vm in [CHILD, LATER] {
        disks.remove_directory(vm).await.unwrap();
    }
    assert_eq!(names(&paths.vms()), [] as [&str; 0]);
}

#[tokio::test]
async fn disks_are_frozen_only_so_often_and_only_when_they_were_written_to() {
    require!(has_program("qemu-io"), "qemu-io");
    let host = Host::new(OverlayBy::Vmm).await;
    if !host.has_layers() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    let disks = &host.disks;
    let depth = async || {
        let drives = disks.attach(PARENT, IMAGE).await.unwrap();
        drives
            .iter()
            .filter_map(|drive| match &drive.medium {
                Medium::Layer { frozen, .. } => Some(frozen.len()),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    for round in 1..=MAX_DEPTH {
        host.io(PARENT, 0, &[&format!("write -P {round} {round}M 64k")]).await;
        for _ in 0..2 {
            disks.freeze(PARENT).await.unwrap();
            assert_eq!(disks.freezable(PARENT, Parent::Down).await.unwrap(), Bytes(0));
        }
        assert_eq!(depth().await, [round, 0]);
    }
    host.io(PARENT, 0, &["write -P 99 32M 64k"]).await;
    let before = names(&host.scratch.paths.vm_dir(PARENT));
    assert!(matches!(disks.freezable(PARENT, Parent::Down).await, Err(Error::TooDeep)));
    assert!(matches!(disks.freeze(PARENT).await, Err(Error::TooDeep)));
    assert_eq!(names(&host.scratch.paths.vm_dir(PARENT)), before);
    for round in 1..=MAX_DEPTH {
        host.io(PARENT, 0, &[&format!("read -P {round} {round}M 64k"), "read -P 99 32M 64k"]).await;
    }
}

#[tokio::test]
async fn a_freeze_that_a_crash_has_interrupted_is_as_if_it_had_not_begun_and_may_be_repeated() {
    let host = Host::new(OverlayBy::Vmm).await;
    if !host.has_layers() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    let (disks, paths) = (&host.disks, &host.scratch.paths);
    let layer = paths.system_layer(PARENT);
    // As long as after a first write.
    fs::File::options().write(true).open(&layer).unwrap().write_all_at(&[1], 5 << 16).unwrap();
    fs::hard_link(&layer, paths.vm_dir(PARENT).join("system.1.qcow2")).unwrap();
    let below = async || match &disks.attach(PARENT, IMAGE).await.unwrap()[0].medium {
        Medium::Layer { frozen, .. } => frozen.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(below().await, 0);
    assert_eq!(disks.frozen(PARENT).await.unwrap(), []);
    disks.create_directory(CHILD).await.unwrap();
    assert!(
        disks.create_child(CHILD, PARENT, Parent::Down, Arc::new(NoProgress)).await.is_err(),
        "it was not frozen"
    );
    host.fork(LATER).await;
    assert_eq!(below().await, 1);
}

#[tokio::test]
async fn a_disk_stays_writable_if_no_overlay_could_be_put_above_it() {
    let host = Host::new(OverlayBy::Vmm).await;
    if !host.has_layers() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    let (disks, paths) = (&host.disks, &host.scratch.paths);
    let layer = paths.system_layer(PARENT);
    fs::File::options().write(true).open(&layer).unwrap().write_all_at(&[1], 5 << 16).unwrap();
    // A directory cannot be replaced by a file.
    for obstacle in ["work.partial", "system.partial"] {
        let obstacle = paths.vm_dir(PARENT).join(obstacle);
        fs::create_dir(&obstacle).unwrap();
        assert!(disks.freeze(PARENT).await.is_err());
        fs::remove_dir(&obstacle).unwrap();
        assert_eq!((mode(&layer), mode(&paths.work_disk(PARENT))), (0o600, 0o600));
        // All layers are made before the first one is frozen.
        assert_eq!(names(&paths.vm_dir(PARENT)), ["base.ext4", "system.qcow2", "work.ext4"]);
    }
    disks.freeze(PARENT).await.unwrap();
    let frozen = ["system.1.qcow2", "work.ext4"].map(|name| paths.vm_dir(PARENT).join(name));
    assert_eq!(frozen.map(|layer| mode(&layer)), [0o400; 2]);
}

#[tokio::test]
async fn a_disk_that_was_left_read_only_is_writable_before_it_is_used() {
    for overlay_by in [OverlayBy::Vmm, OverlayBy::Host] {
        let host = Host::new(overlay_by).await;
        let (disks, paths) = (&host.disks, &host.scratch.paths);
        let system = match host.has_layers() {
            true => paths.system_layer(PARENT),
            false => paths.system_disk(PARENT),
        };
        let written = [system, paths.work_disk(PARENT)];
        let close = || written.iter().for_each(|file| set_mode(file, 0o400));
        let modes = || written.each_ref().map(|file| mode(file));
        close();
        disks.attach(PARENT, IMAGE).await.unwrap();
        assert_eq!(modes(), [0o600; 2]);
        close();
        disks.grow_system_disk(PARENT, IMAGE, Bytes(2 * SIZE)).await.unwrap();
        disks.grow_work_disk(PARENT, Bytes(2 * SIZE)).await.unwrap();
        assert_eq!(modes(), [0o600; 2]);
    }
}

fn set_mode(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn disks_with_another_file_anywhere_are_other_disks() {
    for overlay_by in [OverlayBy::Vmm, OverlayBy::Host] {
        let host = Host::new(overlay_by).await;
        let (disks, paths) = (&host.disks, &host.scratch.paths);
        if host.has_layers() {
            let layer = paths.system_layer(PARENT);
            fs::File::options().write(true).open(&layer).unwrap().write_all_at(&[1], 5 << 16).unwrap();
            disks.freeze(PARENT).await.unwrap();
            assert_eq!(names(&paths.vm_dir(PARENT)).len(), 5);
        } else {
            for file in [paths.overlay(PARENT), paths.system_tail(PARENT)] {
                fs::write(file, "written").unwrap();
            }
        }
        for name in names(&paths.vm_dir(PARENT)) {
            let file = paths.vm_dir(PARENT).join(&name);
            let before = disks.identity(PARENT).await.unwrap();
            assert_eq!(disks.identity(PARENT).await.unwrap(), before);
            let copy = file.with_extension("copy");
            fs::copy(&file, &copy).unwrap();
            fs::rename(&copy, &file).unwrap();
            let after = disks.identity(PARENT).await.unwrap();
            let differ: Vec<&String> = before.keys().filter(|disk| before[*disk] != after[*disk]).collect();
            let expect = if name.starts_with("work") { "the work disk" } else { "the system disk" };
            assert_eq!(differ, [expect], "{name}");
        }
    }
}

#[tokio::test]
async fn a_damaged_layer_is_not_frozen() {
    let host = Host::new(OverlayBy::Vmm).await;
    if !host.has_layers() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    let layer = host.scratch.paths.system_layer(PARENT);
    // The size of the disk: an overlay of that size would take all memory.
    fs::File::options().write(true).open(&layer).unwrap().write_all_at(&[0x7f], 24).unwrap();
    assert!(matches!(host.disks.freezable(PARENT, Parent::Down).await, Err(Error::Unsupported { .. })));
    assert!(matches!(host.disks.freeze(PARENT).await, Err(Error::Unsupported { .. })));
    assert!(!host.scratch.paths.work_layer(PARENT).exists());
}

#[tokio::test]
async fn disks_without_layers_are_copied() {
    let host = Host::new(OverlayBy::Host).await;
    let (disks, paths) = (&host.disks, &host.scratch.paths);
    // Those of device-mapper as well.
    for file in [paths.overlay(PARENT), paths.system_tail(PARENT)] {
        fs::write(file, "written").unwrap();
    }
    let write = |vm, text: &str| {
        let disk = fs::File::options().write(true).open(paths.system_disk(vm)).unwrap();
        disk.write_all_at(text.as_bytes(), 0).unwrap();
    };
    write(PARENT, "before");
    assert_eq!(disks.freezable(PARENT, Parent::Down).await.unwrap(), Bytes(0));
    host.fork(CHILD).await;
    assert_eq!(disks.frozen(PARENT).await.unwrap(), []);
    assert_eq!(names(&paths.vm_dir(CHILD)), ["system.cow", "system.ext4", "system.tail", "work.ext4"]);
    write(PARENT, "parent");
    write(CHILD, "child ");
    for (vm, expect) in [(PARENT, "parent"), (CHILD, "child ")] {
        assert_eq!(&fs::read(paths.system_disk(vm)).unwrap()[..6], expect.as_bytes());
        assert_eq!(fs::read(paths.overlay(vm)).unwrap(), b"written");
    }
    scratch::run(Command::new("cmp").args([paths.work_disk(PARENT), paths.work_disk(CHILD)]));
}

#[tokio::test]
async fn a_sandbox_that_runs_gets_new_layers_and_its_children_do_not_see_what_it_writes_there() {
    require!(has_program("qemu-io"), "qemu-io");
    let host = Host::new(OverlayBy::Vmm).await;
    let (disks, paths) = (&host.disks, &host.scratch.paths);
    if !host.has_layers() {
        assert!(matches!(disks.freezable(PARENT, Parent::Up).await, Err(Error::NotLayered)));
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    for round in 1..=2u8 {
        for disk in [0, 1] {
            host.io(PARENT, disk, &[&format!("write -P {round} 32M 64k")]).await;
        }
        let added = disks.freezable(PARENT, Parent::Up).await.unwrap();
        assert!(added.0 >= 2 << 16, "{added}");
        let layers = freeze_running(disks, PARENT).await;
        let tops = [paths.system_layer(PARENT), paths.work_layer(PARENT)];
        for (layer, top) in layers.iter().zip(&tops) {
            assert_eq!(rustix::fs::fstat(layer).unwrap().st_ino, fs::metadata(top).unwrap().ino());
            assert!(rustix::fs::fcntl_getfl(layer).unwrap().contains(rustix::fs::OFlags::RDWR));
        }
        assert_eq!((layers.len(), tops.map(|top| mode(&top))), (2, [0o600; 2]));
        // The sandbox runs on, and a child is made of what was frozen.
        for disk in [0, 1] {
            host.io(PARENT, disk, &["write -P 8 32M 64k"]).await;
        }
        assert!(
            disks.create_child(CHILD, PARENT, Parent::Down, Arc::new(NoProgress)).await.is_err(),
            "it was written to"
        );
        disks.create_directory(CHILD).await.unwrap();
        disks.create_child(CHILD, PARENT, Parent::Up, Arc::new(NoProgress)).await.unwrap();
        let identity = disks.identity(CHILD).await.unwrap();
        for disk in [0, 1] {
            let read = format!("read -P {round} 32M 64k");
            host.io(CHILD, disk, &[&read, "write -P 9 32M 64k"]).await;
        }
        // Its first start failed.
        for _ in 0..2 {
            disks.empty(CHILD).await.unwrap();
            assert_eq!(disks.identity(CHILD).await.unwrap(), identity);
        }
        for disk in [0, 1] {
            host.io(CHILD, disk, &[&format!("read -P {round} 32M 64k")]).await;
            host.io(PARENT, disk, &["read -P 8 32M 64k"]).await;
        }
        disks.remove_directory(CHILD).await.unwrap();
    }
}

#[tokio::test]
async fn new_layers_change_nothing_until_they_are_over_the_disks() {
    let host = Host::new(OverlayBy::Vmm).await;
    let (disks, paths) = (&host.disks, &host.scratch.paths);
    if !host.has_layers() {
        assert!(matches!(disks.prepare_layers(PARENT).await.err(), Some(Error::NotLayered)));
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    let before = (names(&paths.vm_dir(PARENT)), disks.identity(PARENT).await.unwrap());
    let now = async || (names(&paths.vm_dir(PARENT)), disks.identity(PARENT).await.unwrap());
    drop(disks.prepare_layers(PARENT).await.unwrap());
    assert_eq!(now().await, before);
    // A service that ends leaves them.
    std::mem::forget(disks.prepare_layers(PARENT).await.unwrap());
    assert_eq!((now().await.1, disks.frozen(PARENT).await.unwrap()), (before.1, Vec::new()));
    assert_eq!(freeze_running(disks, PARENT).await.len(), 2);
    let expect = ["base.ext4", "system.1.qcow2", "system.qcow2", "work.ext4", "work.qcow2"];
    assert_eq!(names(&paths.vm_dir(PARENT)), expect);
}

/// A service that ends after it has named the new layers leaves a VMM that writes to the frozen ones.
#[tokio::test]
async fn a_freeze_after_a_crash_covers_what_was_written_below_the_new_layer() {
    require!(has_program("qemu-io"), "qemu-io");
    let host = Host::new(OverlayBy::Vmm).await;
    if !host.has_layers() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    let (disks, paths) = (&host.disks, &host.scratch.paths);
    let layer = paths.system_layer(PARENT);
    // What the VMM has open.
    host.io(PARENT, 0, &["write -P 1 32M 64k"]).await;
    let open = paths.vm_dir(PARENT).join("open.qcow2");
    fs::hard_link(&layer, &open).unwrap();
    freeze_running(disks, PARENT).await;
    set_mode(&open, 0o600);
    let write = format!("driver=qcow2,file.filename={}", open.display());
    scratch::run(Command::new("qemu-io").args(["--image-opts", &write, "-c", "write -P 2 32M 64k"]));
    fs::remove_file(open).unwrap();
    assert_eq!(freeze_running(disks, PARENT).await.len(), 2);
    disks.create_directory(CHILD).await.unwrap();
    disks.create_child(CHILD, PARENT, Parent::Up, Arc::new(NoProgress)).await.unwrap();
    for vm in [PARENT, CHILD] {
        host.io(vm, 0, &["read -P 2 32M 64k"]).await;
    }
}
