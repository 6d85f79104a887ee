//! The import of images: file systems of `mkfs.ext4` and of our own writer are accepted, everything else is refused.

use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use banger_domain::id::{ImageId, Uid, VmId};
use banger_image::record::ImageFacts;
use banger_proto::size::Bytes;
use banger_system::{
    host::storage::{disks::FileDisks, image_files::LocalImages},
    ports::{
        HostError, NoProgress,
        disks::{Disks, OverlayBy},
        image_files::{Content, Error, ImageFiles, Result},
    },
};
use rustix::fs::{Mode, OFlags};

use crate::scratch::{self, Scratch, is_root, mode, names, require, run};
use crate::skip;

const IMAGE: ImageId = ImageId::from_bits(0xabc);

fn mkfs(scratch: &Scratch, size: Bytes, options: &[&str]) -> PathBuf {
    let path = scratch.home.path().join("rootfs");
    let _ = fs::remove_file(&path);
    File::create(&path).unwrap().set_len(size.0).unwrap();
    run(Command::new("mkfs.ext4").arg("-q").args(options).arg(&path));
    path
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

async fn import(images: &LocalImages, file: OwnedFd) -> Result<ImageFacts> {
    images.import(IMAGE, Uid(1000), Content::File(file), Arc::new(NoProgress)).await
}

/// Returns the error of a refused import, after which nothing is left.
async fn refused(scratch: &Scratch, file: OwnedFd) -> Error {
    let images = scratch.images();
    let error = import(&images, file).await.unwrap_err();
    assert_eq!(names(&scratch.paths.images()), [] as [&str; 0]);
    assert_eq!(images.found().await.unwrap(), []);
    error
}

fn message(error: Error, expect: &str) {
    let message = error.to_string();
    assert!(message.contains(expect), "{message}");
}

#[tokio::test]
async fn an_image_is_copied_digested_and_never_written_to_again() {
    let scratch = Scratch::new();
    let rootfs = mkfs(&scratch, Bytes::mib(256), &[]);
    // Allocated zeros in a hole.
    File::options().write(true).open(&rootfs).unwrap().write_all_at(&[0; 8 << 20], 128 << 20).unwrap();
    let images = scratch.images();
    let facts = import(&images, open(&rootfs)).await.unwrap();

    let sum = Command::new("sha256sum").arg(&rootfs).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert_eq!(facts.digest, format!("sha256:{}", &sum[..64]));
    assert_eq!(facts.virtual_size, Bytes::mib(256));
    assert!(facts.disk_usage > Bytes(0) && facts.disk_usage < Bytes::mib(8), "{}", facts.disk_usage);
    let copy = scratch.paths.image(IMAGE);
    assert_eq!((mode(&copy), mode(copy.parent().unwrap())), (0o400, 0o700));
    run(Command::new("cmp").arg(&rootfs).arg(&copy));
    assert_eq!(images.found().await.unwrap(), [IMAGE]);
    for _ in 0..2 {
        images.remove(IMAGE).await.unwrap();
        assert_eq!(names(&scratch.paths.images()), [] as [&str; 0]);
    }
}

#[tokio::test]
async fn the_usual_kinds_of_ext4_are_accepted() {
    let kinds: [&[&str]; 9] = [
        &["-b", "1024"],
        &["-b", "2048"],
        &["-b", "4096"],
        &["-O", "^metadata_csum"],
        &["-O", "64bit,metadata_csum,metadata_csum_seed"],
        &["-O", "bigalloc"],
        &["-O", "inline_data,large_dir,ea_inode"],
        &["-O", "encrypt,verity,quota,project"],
        &["-O", "^has_journal"],
    ];
    for options in kinds {
        let scratch = Scratch::new();
        let rootfs = mkfs(&scratch, Bytes::mib(64), options);
        let images = scratch.images();
        let facts = import(&images, open(&rootfs)).await;
        assert_eq!(facts.map(|facts| facts.virtual_size).unwrap(), Bytes::mib(64), "{options:?}");
    }
}

#[tokio::test]
async fn a_file_system_of_our_own_writer_is_accepted() {
    let scratch = Scratch::new();
    let (vm, disks) = (VmId::from_bits(1), FileDisks::new(scratch.paths.clone()));
    disks.create_directory(vm).await.unwrap();
    disks.create_work_disk(vm, Bytes::gib(1)).await.unwrap();
    let images = scratch.images();
    let facts = import(&images, open(&scratch.paths.work_disk(vm))).await.unwrap();
    assert_eq!(facts.virtual_size, Bytes::gib(1));
}

#[tokio::test]
async fn a_file_system_may_be_smaller_than_its_file() {
    let scratch = Scratch::new();
    let rootfs = mkfs(&scratch, Bytes::mib(64), &[]);
    File::options().write(true).open(&rootfs).unwrap().set_len(100_000_001).unwrap();
    let images = scratch.images();
    let facts = import(&images, open(&rootfs)).await.unwrap();
    assert_eq!(facts.virtual_size, Bytes::mib(64));
    // The rest would not count against anybody's quota.
    assert_eq!(fs::metadata(scratch.paths.image(IMAGE)).unwrap().len(), 64 << 20);
}

#[tokio::test]
async fn a_file_system_that_guests_cannot_mount_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new();
    let rootfs = mkfs(&scratch, Bytes::mib(64), &[]);
    File::options().write(true).open(&rootfs).unwrap().set_len((64 << 20) - 1).unwrap();
    message(refused(&scratch, open(&rootfs)).await, "cut short");

    let rootfs = mkfs(&scratch, Bytes::mib(64), &["-b", "65536", "-F"]);
    message(refused(&scratch, open(&rootfs)).await, "blocks of more than 4 KiB");

    for (request, expect) in [
        ("feature needs_recovery", "unmounted cleanly"),
        ("set_super_value state 0", "unmounted cleanly"),
        ("set_super_value state 3", "having errors"),
        ("feature read-only", "read-only"),
        ("set_super_value feature_incompat 0x100000", "features"),
    ] {
        let rootfs = mkfs(&scratch, Bytes::mib(64), &[]);
        run(Command::new("debugfs").args(["-w", "-R", request]).arg(&rootfs));
        let error = refused(&scratch, open(&rootfs)).await;
        assert!(matches!(error, Error::Unsupported { .. }), "{request}: {error}");
        message(error, expect);
    }
}

#[tokio::test]
async fn other_formats_are_refused_by_name_and_leave_nothing() {
    let scratch = Scratch::new();
    let check = async |content: &[u8], expect| {
        let path = scratch.home.path().join("file");
        fs::write(&path, content).unwrap();
        let error = refused(&scratch, open(&path)).await;
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        message(error, expect);
    };
    check(b"root:x:0:0", "the file is not an ext4 file system").await;
    check(&[0; 1 << 20], "the file is not an ext4 file system").await;
    check(&fs::read("/proc/self/exe").unwrap(), "an ELF file").await;
}

#[tokio::test]
async fn a_descriptor_that_its_user_could_not_read_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new();
    let rootfs = mkfs(&scratch, Bytes::mib(64), &[]);
    let with = |path: &Path, flags| rustix::fs::open(path, flags, Mode::empty()).unwrap();
    for (descriptor, expect) in [
        (with(&rootfs, OFlags::PATH), "O_PATH"),
        (with(&rootfs, OFlags::WRONLY), "writing only"),
        (with(scratch.home.path(), OFlags::RDONLY), "regular file"),
        (with(Path::new("/dev/zero"), OFlags::RDONLY), "regular file"),
    ] {
        let error = refused(&scratch, descriptor).await;
        assert!(matches!(error, Error::BadFile { .. }), "{error}");
        message(error, expect);
    }
    File::create(&rootfs).unwrap();
    message(refused(&scratch, open(&rootfs)).await, "empty");
    File::create(&rootfs).unwrap().set_len(Bytes::gib(257).0).unwrap();
    message(refused(&scratch, open(&rootfs)).await, "256 GiB");
}

#[test]
fn a_full_disk_is_reported_as_such_and_leaves_nothing() {
    require!(is_root(), "root, to mount a small file system");
    let scratch = Scratch::on_small_file_system(1 << 20);
    let rootfs = mkfs(&scratch, Bytes::mib(256), &[]);
    File::options().write(true).open(&rootfs).unwrap().write_all_at(&[1; 8 << 20], 128 << 20).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let error = refused(&scratch, open(&rootfs)).await;
        assert!(matches!(error, Error::Host(HostError::NoSpace { .. })), "{error}");
    });
}

#[tokio::test]
async fn an_existing_image_is_kept() {
    let scratch = Scratch::new();
    let images = scratch.images();
    let first = import(&images, open(&mkfs(&scratch, Bytes::mib(64), &[]))).await.unwrap();
    let again = import(&images, open(&mkfs(&scratch, Bytes::mib(128), &[]))).await;
    assert!(matches!(again, Err(Error::Host(HostError::Os { .. }))));
    assert_eq!(names(&scratch.paths.images()), [IMAGE.to_string()]);
    let length = fs::metadata(scratch.paths.image(IMAGE)).unwrap().len();
    assert_eq!(Bytes(length), first.virtual_size);
}

#[tokio::test]
async fn what_a_crash_left_is_found_and_can_be_removed() {
    let scratch = Scratch::new();
    let images = scratch.images();
    let staged = scratch.paths.images().join(format!(".staging-{IMAGE}"));
    fs::create_dir_all(&staged).unwrap();
    fs::write(staged.join("rootfs.ext4"), "half").unwrap();
    assert_eq!(images.found().await.unwrap(), [IMAGE]);
    images.remove(IMAGE).await.unwrap();
    assert_eq!(names(&scratch.paths.images()), [] as [&str; 0]);
}

#[test]
fn an_import_shares_blocks_where_the_file_system_can() {
    require!(is_root(), "root, to mount a file system");
    require!(scratch::has_program("mkfs.xfs"), "mkfs.xfs");
    require!(skip::has_device("/dev/loop-control"), "loop devices");
    let scratch = Scratch::on_xfs();
    let made = mkfs(&scratch, Bytes::mib(128), &[]);
    let rootfs = scratch.paths.state.join("rootfs");
    fs::copy(made, &rootfs).unwrap();
    let file = File::options().write(true).open(&rootfs).unwrap();
    file.write_all_at(&[1; 32 << 20], 64 << 20).unwrap();
    let free = || {
        rustix::fs::sync();
        let stat = rustix::fs::statvfs(&scratch.paths.state).unwrap();
        stat.f_bfree * stat.f_frsize
    };
    let before = free();
    let facts: Result<_> = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(import(&scratch.images(), open(&rootfs)));
    let taken = before.saturating_sub(free());
    assert!(taken < 1 << 20, "the copy took {taken} bytes");
    let sum = Command::new("sha256sum").arg(&rootfs).output().unwrap();
    assert_eq!(facts.unwrap().digest[7..], String::from_utf8(sum.stdout).unwrap()[..64]);
}

#[tokio::test]
async fn a_shared_file_is_there_once_and_for_as_long_as_somebody_has_it() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new();
    let images = scratch.images();
    let rootfs = mkfs(&scratch, Bytes::mib(64), &[]);
    import(&images, open(&rootfs)).await.unwrap();
    let twin = ImageId::from_bits(0xdef);
    images.share(twin, IMAGE).await.unwrap();
    let inode = |image| fs::metadata(scratch.paths.image(image)).unwrap().ino();
    assert_eq!(inode(IMAGE), inode(twin));
    let content = fs::read(scratch.paths.image(IMAGE)).unwrap();
    images.remove(IMAGE).await.unwrap();
    assert_eq!(fs::read(scratch.paths.image(twin)).unwrap(), content);
    assert_eq!(images.found().await.unwrap(), [twin]);
    // A missing image cannot be shared, and the attempt leaves nothing.
    assert!(images.share(ImageId::from_bits(7), IMAGE).await.is_err());
    assert_eq!(images.found().await.unwrap(), [twin]);
}

#[tokio::test]
async fn the_system_disk_of_a_sandbox_becomes_an_image() {
    let scratch = Scratch::new();
    let (images, disks) = (scratch.images(), FileDisks::new(scratch.paths.clone()));
    // Without checksums, so that the test can change the superblock.
    let rootfs = mkfs(&scratch, Bytes::mib(64), &["-O", "^metadata_csum"]);
    let digest = import(&images, open(&rootfs)).await.unwrap().digest;
    for (number, overlay_by) in [(1, OverlayBy::Host), (2, OverlayBy::Vmm)] {
        let (vm, image) = (VmId::from_bits(number), ImageId::from_bits(0x100 + number));
        disks.create_directory(vm).await.unwrap();
        disks.clone_image(vm, IMAGE, overlay_by, Bytes::mib(96)).await.unwrap();
        disks.create_work_disk(vm, Bytes::mib(64)).await.unwrap();
        let drive = disks.attach(vm, IMAGE).await.unwrap().remove(0);
        let content = Content::Disk { drive, room: Bytes::mib(64) };
        let facts = images.import(image, Uid(1000), content, Arc::new(NoProgress)).await.unwrap();
        // The disk is larger than its file system, and the rest is left out.
        assert_eq!((facts.virtual_size, facts.digest == digest), (Bytes::mib(64), true), "{overlay_by:?}");
        let copy = fs::read(scratch.paths.image(image)).unwrap();
        assert!(copy == fs::read(&rootfs).unwrap(), "{overlay_by:?}");
        images.remove(image).await.unwrap();
    }
    // A guest that has crashed leaves its file system mounted.
    let vm = VmId::from_bits(1);
    let disk = File::options().write(true).open(scratch.paths.system_disk(vm)).unwrap();
    disk.write_all_at(&[0], 1024 + 0x3a).unwrap();
    let drive = disks.attach(vm, IMAGE).await.unwrap().remove(0);
    let content = Content::Disk { drive, room: Bytes::mib(64) };
    let refused = images.import(ImageId::from_bits(9), Uid(1000), content, Arc::new(NoProgress));
    message(refused.await.unwrap_err(), "has not unmounted its system disk; start the sandbox");
    assert_eq!(images.found().await.unwrap(), [IMAGE]);
}
