//! Disks of sandboxes on real file systems, checked by `e2fsck`.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use banger_domain::{
    id::{ImageId, VmId},
    launch_spec::{Access, Medium},
};
use banger_proto::size::Bytes;
use banger_system::{
    host::storage::disks::FileDisks,
    ports::{
        HostError,
        disks::{Disks, Error, OverlayBy},
    },
};

use crate::scratch::{self, Scratch, has_program, is_root, mode, names, require};
use crate::skip;

const VM: VmId = VmId::from_bits(1);
const IMAGE: ImageId = ImageId::from_bits(2);

/// Returns an image of 1 GiB with a little data at its beginning, in its middle and at its end.
fn put_image(scratch: &Scratch) -> File {
    let path = scratch.paths.image(IMAGE);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::create(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    for at in [0, 512 << 20, (1 << 30) - 4096] {
        file.write_all_at(&[0xa5; 4096], at).unwrap();
    }
    fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
    File::open(&path).unwrap()
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn read_at<const N: usize>(file: &File, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn e2fsck_is_content(path: &Path) {
    let run = Command::new("e2fsck").args(["-f", "-n"]).arg(path).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}

#[tokio::test]
async fn a_clone_has_the_content_of_the_image_and_leaves_it_alone() {
    let scratch = Scratch::new();
    let image = put_image(&scratch);
    let before = image.metadata().unwrap();
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes(0)).await.unwrap();

    let disk = scratch.paths.system_disk(VM);
    assert_eq!(names(&scratch.paths.vm_dir(VM)), ["system.ext4"]);
    assert_eq!((mode(&scratch.paths.vm_dir(VM)), mode(&disk)), (0o700, 0o600));
    assert_eq!(fs::metadata(&disk).unwrap().len(), 1 << 30);
    assert!(allocated(&disk) < 1 << 20, "{} bytes are allocated", allocated(&disk));
    let clone = File::options().read(true).write(true).open(&disk).unwrap();
    for at in [0, 512 << 20, (1 << 30) - 4096] {
        assert_eq!(read_at(&clone, at), [0xa5; 4096], "at {at}");
    }

    clone.write_all_at(b"the guest writes", 0).unwrap();
    assert_eq!(read_at(&image, 0), [0xa5; 4096]);
    let after = image.metadata().unwrap();
    assert_eq!((after.mtime_nsec(), after.mode()), (before.mtime_nsec(), before.mode()));
}

#[tokio::test]
async fn an_existing_disk_is_kept() {
    let scratch = Scratch::new();
    put_image(&scratch);
    let disks = FileDisks::new(scratch.paths.clone());
    let make = async || {
        disks.create_directory(VM).await.unwrap();
        disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes(0)).await.unwrap();
        disks.create_work_disk(VM, Bytes::mib(64)).await.unwrap();
    };
    make().await;
    for drive in disks.attach(VM, IMAGE).await.unwrap() {
        File::options().write(true).open(&drive.path).unwrap().write_all_at(b"work of a user", 0).unwrap();
    }
    make().await;
    for drive in disks.attach(VM, IMAGE).await.unwrap() {
        assert_eq!(&read_at::<14>(&File::open(&drive.path).unwrap(), 0), b"work of a user");
    }
}

#[tokio::test]
async fn where_blocks_cannot_be_shared_a_vmm_gets_an_empty_layer_over_the_image() {
    let scratch = Scratch::new();
    let image = put_image(&scratch);
    let disks = FileDisks::new(scratch.paths.clone());
    let make = async || {
        disks.create_directory(VM).await.unwrap();
        disks.clone_image(VM, IMAGE, OverlayBy::Vmm, Bytes(0)).await.unwrap();
    };
    make().await;
    let (layer, base) = (scratch.paths.system_layer(VM), scratch.paths.system_base(VM));
    if scratch.paths.system_disk(VM).exists() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    assert_eq!(names(&scratch.paths.vm_dir(VM)), ["base.ext4", "system.qcow2"]);
    assert_eq!(mode(&layer), 0o600);
    assert_eq!(fs::metadata(&base).unwrap().ino(), image.metadata().unwrap().ino());
    let system = disks.attach(VM, IMAGE).await.unwrap().remove(0);
    assert_eq!(
        (system.path, system.medium),
        (layer.clone(), Medium::Layer { base: base.clone(), frozen: Vec::new() })
    );

    // QEMU's own tool accepts it, and reads the image through it.
    require!(has_program("qemu-img"), "qemu-img");
    scratch::run(Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&layer));
    let below = format!(
        "driver=qcow2,file.filename={},backing.driver=raw,backing.file.filename={}",
        layer.display(),
        base.display()
    );
    scratch::run(
        Command::new("qemu-img")
            .args(["compare", "-q", "--image-opts", &below])
            .arg(format!("driver=raw,file.filename={}", scratch.paths.image(IMAGE).display())),
    );

    // An overlay that was written to is kept, and the image below it survives its own deletion.
    File::options().write(true).open(&layer).unwrap().write_all_at(b"work", 1 << 20).unwrap();
    fs::remove_file(scratch.paths.image(IMAGE)).unwrap();
    assert_eq!(read_at(&File::open(&base).unwrap(), 0), [0xa5; 4096]);
    put_image(&scratch);
    make().await;
    assert_eq!(&read_at::<4>(&File::open(&layer).unwrap(), 1 << 20), b"work");
    disks.remove_directory(VM).await.unwrap();
    assert_eq!(read_at(&image, 0), [0xa5; 4096]);
}

#[tokio::test]
async fn an_image_on_another_file_system_is_copied() {
    require!(is_root(), "root, to mount a file system");
    let scratch = Scratch::on_small_file_system(64 << 20);
    put_image(&scratch);
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    let vms = std::ffi::CString::new("size=16m").unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", scratch.paths.vm_dir(VM), "tmpfs", flags, vms.as_c_str()).unwrap();
    disks.clone_image(VM, IMAGE, OverlayBy::Vmm, Bytes(0)).await.unwrap();
    assert_eq!(names(&scratch.paths.vm_dir(VM)), ["system.ext4"]);
    rustix::mount::unmount(scratch.paths.vm_dir(VM), rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[tokio::test]
async fn what_a_crash_left_half_done_is_done_again() {
    let scratch = Scratch::new();
    put_image(&scratch);
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    for half in ["system.partial", "work.partial"] {
        fs::write(scratch.paths.vm_dir(VM).join(half), vec![7; 1 << 20]).unwrap();
    }
    disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes(0)).await.unwrap();
    disks.create_work_disk(VM, Bytes::mib(64)).await.unwrap();
    assert_eq!(names(&scratch.paths.vm_dir(VM)), ["system.ext4", "work.ext4"]);
    e2fsck_is_content(&scratch.paths.work_disk(VM));
    assert_eq!(fs::metadata(scratch.paths.system_disk(VM)).unwrap().len(), 1 << 30);
}

#[tokio::test]
async fn a_clone_that_fails_leaves_nothing() {
    let scratch = Scratch::new();
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    match disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes(0)).await {
        Err(Error::Host(HostError::NotReady { message })) => assert!(message.contains("gone"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert!(names(&scratch.paths.vm_dir(VM)).is_empty());

    put_image(&scratch);
    disks.remove_directory(VM).await.unwrap();
    assert!(matches!(
        disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes(0)).await,
        Err(Error::Host(HostError::Os { .. }))
    ));
    assert!(matches!(
        disks.create_work_disk(VM, Bytes::mib(64)).await,
        Err(Error::Host(HostError::Os { .. }))
    ));
    assert!(!scratch.paths.vm_dir(VM).exists());
}

#[test]
fn a_full_disk_is_reported_as_such_and_leaves_nothing() {
    require!(is_root(), "root, to mount a small file system");
    let scratch = Scratch::on_small_file_system(8 << 20);
    put_image(&scratch).sync_all().unwrap();
    scratch.fill_up(0);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let disks = FileDisks::new(scratch.paths.clone());
        disks.create_directory(VM).await.unwrap();
        assert!(matches!(
            disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes(0)).await,
            Err(Error::Host(HostError::NoSpace { .. }))
        ));
        assert!(matches!(
            disks.create_work_disk(VM, Bytes::mib(64)).await,
            Err(Error::Host(HostError::NoSpace { .. }))
        ));
        assert!(names(&scratch.paths.vm_dir(VM)).is_empty());
        fs::remove_file(scratch.paths.state.join("filler")).unwrap();
        disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes(0)).await.unwrap();
        disks.create_work_disk(VM, Bytes::mib(64)).await.unwrap();
    });
}

#[tokio::test]
async fn work_disks_of_every_size_are_clean_and_sparse() {
    let scratch = Scratch::new();
    let disks = FileDisks::new(scratch.paths.clone());
    let sizes = [
        Bytes::mib(64),
        Bytes::mib(128),
        // A number of blocks just above and just below a whole block group.
        Bytes(Bytes::mib(256).0 + 4096),
        Bytes(Bytes::mib(256).0 - 4096),
        // Not a whole number of blocks.
        Bytes(100_000_001),
        Bytes::gib(8),
        Bytes::gib(200),
        Bytes::gib(1 << 10),
    ];
    for (number, size) in (0..).zip(sizes) {
        let vm = VmId::from_bits(number);
        disks.create_directory(vm).await.unwrap();
        disks.create_work_disk(vm, size).await.unwrap();
        let disk = scratch.paths.work_disk(vm);
        assert_eq!(mode(&disk), 0o600);
        let length = fs::metadata(&disk).unwrap().len();
        assert!(length >= size.0 && length < size.0 + 4096, "{size} became {length} bytes");
        // Two bitmaps in each block group, and copies of the table of groups.
        let most = (1 << 20) + size.0 / 8192;
        assert!(allocated(&disk) < most, "{size}: {} bytes are allocated", allocated(&disk));
        e2fsck_is_content(&disk);
        disks.remove_directory(vm).await.unwrap();
    }
}

#[tokio::test]
async fn a_work_disk_is_empty_and_says_what_it_is() {
    let scratch = Scratch::new();
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    disks.create_work_disk(VM, Bytes::gib(8)).await.unwrap();
    let ask = |program: &str, arguments: &[&str]| {
        let run = Command::new(program).args(arguments).arg(scratch.paths.work_disk(VM)).output().unwrap();
        assert!(run.status.success());
        String::from_utf8(run.stdout).unwrap()
    };
    let listing = ask("debugfs", &["-R", "ls -p /"]);
    let entries: Vec<_> = listing.lines().filter_map(|line| line.split('/').nth(5)).collect();
    assert_eq!(entries, [".", "..", "lost+found"]);
    let superblock = ask("dumpe2fs", &["-h"]);
    for line in [
        "Filesystem volume name:   banger-work",
        "Reserved block count:     0",
        "Block size:               4096",
    ] {
        assert!(superblock.contains(line), "{superblock}");
    }
    assert!(superblock.contains("has_journal"), "{superblock}");
}

#[tokio::test]
async fn an_impossible_work_disk_leaves_nothing() {
    let scratch = Scratch::new();
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    for size in [Bytes(0), Bytes::mib(1), Bytes::gib(16 << 10), Bytes(u64::MAX)] {
        let refused = disks.create_work_disk(VM, size).await;
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{size}: {refused:?}");
        assert!(names(&scratch.paths.vm_dir(VM)).is_empty());
    }
}

#[tokio::test]
async fn a_removed_object_is_gone_and_may_be_removed_again() {
    let scratch = Scratch::new();
    put_image(&scratch);
    let disks = FileDisks::new(scratch.paths.clone());
    assert_eq!(disks.found().await.unwrap(), []);
    let other = VmId::from_bits(9);
    for vm in [VM, other] {
        disks.create_directory(vm).await.unwrap();
    }
    disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes(0)).await.unwrap();
    fs::write(scratch.paths.console_log(VM), "log").unwrap();
    assert_eq!(disks.found().await.unwrap(), [VM, other]);
    for _ in 0..2 {
        disks.remove_directory(VM).await.unwrap();
        assert_eq!(disks.found().await.unwrap(), [other]);
    }
    assert!(scratch.paths.image(IMAGE).exists());
}

#[tokio::test]
async fn the_system_disk_comes_first_and_both_are_writable() {
    let scratch = Scratch::new();
    let disks = FileDisks::new(scratch.paths.clone());
    let drives = disks.attach(VM, IMAGE).await.unwrap();
    let paths: Vec<_> = drives.iter().map(|drive| drive.path.clone()).collect();
    assert_eq!(paths, [scratch.paths.system_disk(VM), scratch.paths.work_disk(VM)]);
    assert!(drives.iter().all(|drive| drive.access == Access::ReadWrite));
    assert!(disks.attached().await.unwrap().is_empty());
    for _ in 0..2 {
        disks.detach(VM).await.unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_without_device_mapper_names_what_the_kernel_lacks() {
    let scratch = Scratch::new();
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    fs::write(scratch.paths.overlay(VM), "").unwrap();
    match disks.attach(VM, IMAGE).await {
        Err(Error::Host(HostError::NotReady { message })) => {
            assert!(message.contains("modprobe"), "{message}")
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        disks.grow_system_disk(VM, IMAGE, Bytes::gib(2)).await,
        Err(Error::Host(HostError::NotReady { .. }))
    ));
}

#[tokio::test]
async fn a_system_disk_is_larger_than_its_image_where_that_is_wanted_and_grows() {
    let scratch = Scratch::new();
    put_image(&scratch);
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    assert!(matches!(
        disks.grow_system_disk(VM, IMAGE, Bytes::gib(2)).await,
        Err(Error::Host(HostError::Os { .. }))
    ));
    disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes::mib(1500)).await.unwrap();
    let disk = scratch.paths.system_disk(VM);
    assert_eq!(fs::metadata(&disk).unwrap().len(), 1500 << 20);
    assert!(allocated(&disk) < 1 << 20, "{} bytes are allocated", allocated(&disk));
    for (wanted, length) in
        [(Bytes(Bytes::gib(2).0 + 1), (2 << 30) + 4096), (Bytes::gib(1), (2 << 30) + 4096)]
    {
        for _ in 0..2 {
            disks.grow_system_disk(VM, IMAGE, wanted).await.unwrap();
            assert_eq!(fs::metadata(&disk).unwrap().len(), length);
        }
    }
    let file = File::open(&disk).unwrap();
    assert_eq!(read_at(&file, (1 << 30) - 4096), [0xa5; 4096]);
    assert_eq!(read_at(&file, 1 << 30), [0; 4096]);
}

#[tokio::test]
async fn a_layer_that_qemu_has_written_to_grows_and_keeps_what_is_in_it() {
    require!(has_program("qemu-img") && has_program("qemu-io"), "qemu-img and qemu-io");
    let scratch = Scratch::new();
    put_image(&scratch);
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    disks.clone_image(VM, IMAGE, OverlayBy::Vmm, Bytes::mib(1500)).await.unwrap();
    let (layer, base) = (scratch.paths.system_layer(VM), scratch.paths.system_base(VM));
    if !layer.exists() {
        return skip::skipped("this test needs a file system that cannot share blocks");
    }
    let both = format!(
        "driver=qcow2,file.filename={},backing.driver=raw,backing.file.filename={}",
        layer.display(),
        base.display()
    );
    // Each fails if it reads anything else.
    let qemu_io = |command: &str| {
        scratch::run(Command::new("qemu-io").args(["-c", command, "--image-opts", &both]));
    };
    let length = || {
        let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&layer).output().unwrap();
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        info["virtual-size"].as_u64().unwrap()
    };
    assert_eq!(length(), 1500 << 20);
    qemu_io("write -P 7 512M 64k");
    qemu_io("write -P 8 1400M 64k");
    for _ in 0..2 {
        disks.grow_system_disk(VM, IMAGE, Bytes::gib(100)).await.unwrap();
        assert_eq!(length(), 100 << 30);
    }
    scratch::run(Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&layer));
    qemu_io("write -P 9 99G 64k");
    for (pattern, at) in [("0xa5", "0"), ("7", "512M"), ("8", "1400M"), ("0", "1500M"), ("9", "99G")] {
        qemu_io(&format!("read -P {pattern} {at} 4k"));
    }
    scratch::run(Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&layer));

    // A file that neither we nor QEMU made is left alone.
    File::options().write(true).open(&layer).unwrap().write_all_at(b"none", 0).unwrap();
    let refused = disks.grow_system_disk(VM, IMAGE, Bytes::gib(200)).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_work_disk_grows_and_never_shrinks() {
    let scratch = Scratch::new();
    let disks = FileDisks::new(scratch.paths.clone());
    disks.create_directory(VM).await.unwrap();
    assert!(matches!(disks.grow_work_disk(VM, Bytes::mib(64)).await, Err(Error::Host(HostError::Os { .. }))));
    disks.create_work_disk(VM, Bytes::mib(64)).await.unwrap();
    let disk = scratch.paths.work_disk(VM);
    for _ in 0..2 {
        disks.grow_work_disk(VM, Bytes(Bytes::mib(100).0 + 1)).await.unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), (100 << 20) + 4096);
    }
    disks.grow_work_disk(VM, Bytes::mib(64)).await.unwrap();
    assert_eq!(fs::metadata(&disk).unwrap().len(), (100 << 20) + 4096);
    e2fsck_is_content(&disk);
}

#[test]
fn a_clone_shares_blocks_where_the_file_system_can() {
    require!(is_root(), "root, to mount a file system");
    require!(has_program("mkfs.xfs"), "mkfs.xfs");
    require!(skip::has_device("/dev/loop-control"), "loop devices");
    let scratch = Scratch::on_xfs();
    let image = put_image(&scratch);
    fs::set_permissions(scratch.paths.image(IMAGE), PermissionsExt::from_mode(0o600)).unwrap();
    let writable = File::options().write(true).open(scratch.paths.image(IMAGE)).unwrap();
    writable.write_all_at(&[1; 64 << 20], 1 << 20).unwrap();
    image.sync_all().unwrap();
    let free = || {
        rustix::fs::sync();
        let stat = rustix::fs::statvfs(&scratch.paths.state).unwrap();
        stat.f_bfree * stat.f_frsize
    };
    let before = free();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let disks = FileDisks::new(scratch.paths.clone());
        disks.create_directory(VM).await.unwrap();
        disks.clone_image(VM, IMAGE, OverlayBy::Host, Bytes(0)).await.unwrap();
    });
    let taken = before.saturating_sub(free());
    assert!(taken < 1 << 20, "the clone of 64 MiB took {taken} bytes");
    let clone = File::open(scratch.paths.system_disk(VM)).unwrap();
    assert_eq!(read_at(&clone, 32 << 20), [1; 4096]);
}
