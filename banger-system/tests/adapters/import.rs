//! The import worker on real files: layers and archives become file systems that `e2fsck` accepts. Invalid ones are
//! refused and leave nothing.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use banger_domain::id::{ImageId, Uid};
use banger_image::{
    fixtures::tar::{Tar, digest, pack, sum},
    packing::Packing,
    record::ImageFacts,
};
use banger_proto::size::Bytes;
use banger_system::{
    host::process::worker::{self, Job},
    ports::{
        HostError, NoProgress, Progress,
        image_files::{Content, Error, ImageFiles, Layer, Result},
    },
};
use mkext4::reader::Fs;

use crate::scratch::{self, IMAGE_SIZE, Scratch, is_root, names, require, run};
use crate::tars::{file, in_a_pipe, layer, packed, pipe};

const IMAGE: ImageId = ImageId::from_bits(0xabc);
const PLAIN: Packing = Packing::Plain;

async fn import(scratch: &Scratch, content: Content) -> Result<ImageFacts> {
    let facts = scratch.images().import(IMAGE, Uid(1000), content, Arc::new(NoProgress)).await;
    assert_eq!(names(&scratch.paths.images()).len(), usize::from(facts.is_ok()));
    facts
}

/// Returns the image of these layers, after `e2fsck` found nothing wrong.
async fn image(scratch: &Scratch, layers: Vec<Layer>) -> (ImageFacts, PathBuf) {
    let facts = import(scratch, Content::Layers(layers)).await.unwrap();
    let image = scratch.paths.image(IMAGE);
    clean(&image);
    (facts, image)
}

fn clean(image: &Path) {
    run(Command::new("e2fsck").arg("-fn").arg(image));
}

/// Returns why layers are refused.
async fn refused(layers: Vec<Layer>, why: &str) {
    let scratch = Scratch::new();
    let error = import(&scratch, Content::Layers(layers)).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{why}: {error:?}");
    assert!(error.to_string().contains(why), "{error}");
}

async fn refused_tar(tar: Vec<u8>, why: &str) {
    refused(vec![layer(&tar, PLAIN)], why).await;
}

fn content(image: &Path, path: &str) -> Vec<u8> {
    let bytes = fs::read(image).unwrap();
    let fs = Fs::open(&bytes[..]).unwrap();
    fs.read_file(fs.resolve(path).unwrap()).unwrap()
}

fn sha256(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut sha256 = <sha2::Sha256 as sha2::Digest>::new();
    std::io::copy(&mut file, &mut sha256).unwrap();
    format!("{:x}", sha2::Digest::finalize(sha256))
}

fn small() -> Vec<u8> {
    Tar::default().dir("etc/").file("etc/os-release", b"ID=small\n").end()
}

#[tokio::test]
async fn layers_become_one_file_system() {
    require!(is_root(), "root, for the jail of a worker");
    let scratch = Scratch::new();
    let lower = Tar::default()
        .dir("./")
        .dir("d/")
        .file("d/old", b"old")
        .file("d/kept", &[7; 10_000])
        .link(b'2', "s", "d/kept")
        .end();
    let upper = Tar::default().file("d/.wh.old", b"").link(b'1', "twin", "d/kept").file("new", b"new").end();
    let (facts, image) =
        image(&scratch, vec![layer(&lower, Packing::Gzip), layer(&upper, Packing::Zstd)]).await;
    assert_eq!((content(&image, "/twin"), content(&image, "/new")), (vec![7; 10_000], b"new".to_vec()));
    let bytes = fs::read(&image).unwrap();
    let fs = Fs::open(&bytes[..]).unwrap();
    assert_eq!(fs.resolve("/twin").unwrap(), fs.resolve("/d/kept").unwrap());
    assert!(fs.resolve("/d/old").is_err());
    assert_eq!((facts.virtual_size, bytes.len() as u64), (IMAGE_SIZE, IMAGE_SIZE.0));
    assert_eq!(facts.content_size, Bytes(10_003), "a file with two names counts once");
    assert!(facts.disk_usage < Bytes::mib(8), "{}", facts.disk_usage);
    assert_eq!(scratch::mode(&image), 0o400);
}

#[tokio::test]
async fn the_same_layers_give_the_same_bytes_however_they_come() {
    require!(is_root(), "root, for the jail of a worker");
    let tar = (0..300).fold(Tar::default(), |tar, number| {
        tar.file(&format!("dir{}/file{number}", number % 7), &vec![number as u8; number * 37])
    });
    let (tar, upper) = (tar.end(), Tar::default().file("dir0/.wh.file0", b"").end());
    let mut seen = Vec::new();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        for piped in [false, true] {
            let scratch = Scratch::new();
            let mut layers = vec![layer(&tar, packing), layer(&upper, packing)];
            if piped {
                layers = layers.into_iter().map(in_a_pipe).collect();
            }
            let (facts, image) = image(&scratch, layers).await;
            seen.push((facts.digest, sha256(&image)));
        }
    }
    assert!(seen.iter().all(|pair| *pair == seen[0]), "{seen:?}");
    let scratch = Scratch::new();
    let (other, image) = image(&scratch, vec![layer(&tar, PLAIN)]).await;
    assert!(other.digest != seen[0].0 && sha256(&image) != seen[0].1);
}

/// A change of the bytes needs another `FORMAT` in `importer::build`, since an image is identified by its input.
#[tokio::test]
async fn the_bytes_of_a_format_do_not_change() {
    require!(is_root(), "root, for the jail of a worker");
    let scratch = Scratch::new();
    let (facts, image) = image(&scratch, vec![layer(&small(), PLAIN)]).await;
    assert_eq!(
        (facts.digest.as_str(), sha256(&image).as_str()),
        (
            "sha256:da27b1524568087550edacb1beae6ca97c32189242a2ab79b2d773cadaeb8782",
            "2f69dd541838b7975b03a55d0f5486fe5eef0d4895601c2ca41b2502e69a668a"
        )
    );
}

#[tokio::test]
async fn a_tar_of_a_root_file_system_is_recognised_by_its_first_bytes() {
    require!(is_root(), "root, for the jail of a worker");
    let tar = Tar::default().file(".wh.name", b"whole").end();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let scratch = Scratch::new();
        import(&scratch, Content::File(file(&pack(&tar, packing)))).await.unwrap();
        assert_eq!(content(&scratch.paths.image(IMAGE), "/.wh.name"), b"whole");
    }
    for (bytes, why) in [
        (pack(b"no archive, but compressed", Packing::Gzip), "not a tar archive"),
        (pack(&[0; 100_000], Packing::Zstd), "nothing in it"),
        (b"\x1f\x8b but no more".to_vec(), "not valid gzip data"),
        (b"\x28\xb5\x2f\xfd but no more".to_vec(), "not valid zstd data"),
    ] {
        let scratch = Scratch::new();
        let error = import(&scratch, Content::File(file(&bytes))).await.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn an_import_of_a_file_reports_its_bytes() {
    require!(is_root(), "root, for the jail of a worker");
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let (scratch, watcher) = (Scratch::new(), Arc::new(Watcher::default()));
        let packed = pack(&Tar::default().file("x", &vec![1; 20 << 20]).end(), packing);
        let progress = Arc::clone(&watcher);
        scratch.images().import(IMAGE, Uid(1000), Content::File(file(&packed)), progress).await.unwrap();
        let told = watcher.told.lock().unwrap();
        let size = packed.len() as u64;
        assert!(told.iter().all(|(done, total)| *done <= size && *total == Some(size)), "{told:?}");
        assert_eq!(told.last().map(|told| told.0), Some(size), "{packing:?}");
    }
}

#[tokio::test]
async fn a_layer_with_false_claims_is_refused() {
    require!(is_root(), "root, for the jail of a worker");
    let tar = small();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let good = || layer(&tar, packing);
        let size = good().size.0;
        refused(vec![Layer { size: Bytes(size - 1), ..good() }], "has more than").await;
        refused(vec![Layer { size: Bytes(size + 1), ..good() }], "instead of").await;
        refused(vec![in_a_pipe(Layer { size: Bytes(size - 1), ..good() })], "has more than").await;
        refused(vec![Layer { digest: digest(b"other"), ..good() }], "a layer has the digest").await;
        refused(vec![Layer { diff_id: digest(b"other"), ..good() }], "a layer unpacks to the digest").await;

        let mut bytes = pack(&tar, packing);
        let half = bytes.len() / 2;
        let cut = Layer { blob: file(&bytes[..half]), ..good() };
        refused(vec![cut], &format!("has {half} bytes instead of {size}")).await;
        // An archive whose claims are all false is still reported as invalid.
        let why = if packing == PLAIN { "cut short" } else { "it is not valid" };
        refused(vec![packed(&bytes[..half], digest(&tar))], why).await;
        bytes[half] ^= 0x10;
        refused(vec![Layer { blob: file(&bytes), ..good() }], "a layer has the digest").await;
    }
    refused(Vec::new(), "no layers").await;
    refused((0..128).map(|_| layer(&tar, PLAIN)).collect(), "128 layers").await;
}

#[tokio::test]
async fn an_archive_that_cannot_be_kept_is_refused_by_name() {
    require!(is_root(), "root, for the jail of a worker");
    let tar = Tar::default;
    refused_tar(tar().file("../x", b"").end(), "../x leaves the root").await;
    refused_tar(tar().file("a/../../x", b"").end(), "leaves the root").await;
    refused_tar(tar().file("/../x", b"").end(), "leaves the root").await;
    refused_tar(tar().link(b'1', "a", "b").link(b'1', "b", "a").end(), "a file that is not there").await;
    refused_tar(tar().file("a", b"").link(b'1', "b", "../a").end(), "leaves the root").await;
    refused_tar(tar().link(b'2', "a", "b").link(b'2', "b", "a").file("a/x", b"").end(), "too many symbolic")
        .await;
    refused_tar(tar().dir("lost+found").file("lost+found/x", b"").end(), "lost+found").await;
    refused_tar(tar().entry("x", b'M', b"").end(), "unknown type").await;

    // An invalid map, device, owner or size.
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.map", b"0,4,2,2"), ("GNU.sparse.size", b"9")];
    refused_tar(tar().pax(sparse).file("x", b"123456").end(), "invalid map").await;
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.map", b""), ("GNU.sparse.size", b"9999999999999999")];
    refused_tar(tar().pax(sparse).file("x", b"").end(), "larger than a file").await;
    refused_tar(tar().pax(&[("uid", b"4294967296")]).file("x", b"").end(), "owner that Linux does not allow")
        .await;
    let mut device = Tar::header(b"x", b'3', 0);
    device[329..336].copy_from_slice(b"0010000");
    sum(&mut device);
    refused_tar(tar().raw(device, &[]).end(), "number that Linux does not allow").await;
    refused_tar(tar().raw(Tar::header(b"x", b'0', 7 << 30), b"").end(), "do not fit").await;

    // Names and attributes that are too long.
    let long = "x".repeat(256);
    refused_tar(tar().pax(&[("path", long.as_bytes())]).file("x", b"").end(), "255 bytes").await;
    let deep = "x/".repeat(3000);
    refused_tar(tar().pax(&[("path", deep.as_bytes())]).file("x", b"").end(), "4095 bytes").await;
    let huge: &[(&str, &[u8])] = &[("SCHILY.xattr.user.x", &[b'v'; 4060])];
    refused_tar(tar().pax(huge).file("x", b"").end(), "extended attributes").await;
    let huge: &[(&str, &[u8])] = &[("SCHILY.xattr.user.x", &vec![b'v'; 900_000])];
    refused_tar(tar().pax(huge).file("x", b"").end(), "extended attributes").await;
    refused_tar(tar().raw(Tar::header(b"pax", b'x', 7 << 30), b"").end(), "headers that are too large").await;

    // No archive, a truncated one, and data after the end of one.
    refused_tar(Vec::new(), "nothing in it").await;
    refused_tar(b"hello".repeat(500), "not a tar archive").await;
    refused_tar(tar().file("a", b"").0[..300].to_vec(), "not a tar archive").await;
    refused_tar(tar().file("a", &[1; 2000]).0[..1000].to_vec(), "cut short").await;
    let mut broken = tar().file("a", b"").file("b", b"").end();
    broken[520] ^= 1;
    refused_tar(broken, "checksum").await;
}

#[tokio::test]
async fn bombs_are_refused_before_they_go_off() {
    require!(is_root(), "root, for the jail of a worker");
    // A file of 7 GiB in some KiB.
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(&Tar::header(b"x", b'0', 7 << 30)).unwrap();
    write_zeros(&mut bomb, 7 << 30);
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    refused(vec![packed(&bomb, digest(b""))], "do not fit into 128 MiB").await;

    // Nothing in it is used, but it never ends.
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(&small()).unwrap();
    write_zeros(&mut bomb, 7 << 30);
    let bomb = bomb.finish().unwrap();
    refused(vec![packed(&bomb, digest(b""))], "unpacks to more than 512 MiB").await;
}

#[tokio::test]
async fn a_window_larger_than_the_worker_may_have_is_refused() {
    require!(is_root(), "root, for the jail of a worker");
    for (log, is_taken) in [(27, true), (28, false)] {
        let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
        wide.window_log(log).unwrap();
        wide.write_all(&small()).unwrap();
        let layer = packed(&wide.finish().unwrap(), digest(&small()));
        match is_taken {
            true => drop(image(&Scratch::new(), vec![layer]).await),
            false => refused(vec![layer], "not valid zstd data").await,
        }
    }
}

fn write_zeros(to: &mut impl Write, count: usize) {
    let zeros = vec![0; 1 << 20];
    for _ in 0..count / zeros.len() {
        to.write_all(&zeros).unwrap();
    }
}

#[tokio::test]
async fn ten_million_entries_are_refused() {
    require!(is_root(), "root, for the jail of a worker");
    for (kind, count, why) in [(b'0', 1_010_000, "1000000 names"), (b'5', 151_000, "150000 directories")] {
        let mut many = zstd::Encoder::new(Vec::new(), 1).unwrap();
        for number in 0..count {
            many.write_all(&Tar::header(format!("d{}/{number}", number / 5000).as_bytes(), kind, 0)).unwrap();
        }
        let many = many.finish().unwrap();
        refused(vec![packed(&many, digest(b""))], why).await;
    }
}

#[test]
fn a_full_disk_is_reported_and_leaves_nothing() {
    require!(is_root(), "root, to mount a small file system");
    // Too small for the files, and too small for the file system around them.
    for size in [4 << 20, (12 << 20) + (16 << 10)] {
        let scratch = Scratch::on_small_file_system(size);
        let tar = Tar::default().file("x", &vec![1; 12 << 20]).end();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let error = import(&scratch, Content::Layers(vec![layer(&tar, PLAIN)])).await.unwrap_err();
            assert!(matches!(error, Error::Host(HostError::NoSpace { .. })), "{error:?}");
        });
    }
}

/// Records the progress and requests cancellation.
#[derive(Default)]
struct Watcher {
    told: Mutex<Vec<(u64, Option<u64>)>>,
    canceled: AtomicBool,
}

impl Progress for Watcher {
    fn advanced(&self, done: Bytes, total: Option<Bytes>) {
        self.told.lock().unwrap().push((done.0, total.map(|total| total.0)));
    }

    fn is_canceled(&self) -> bool {
        self.canceled.load(Ordering::Relaxed)
    }
}

/// Returns a layer that stops in the middle, and the end of its pipe that keeps it from ending.
fn halted() -> (Layer, OwnedFd) {
    let tar = Tar::default().file("x", &vec![1; 1 << 20]).end();
    let (reader, writer) = pipe();
    let mut into = File::from(writer.try_clone().unwrap());
    let half = tar[..300_000].to_vec();
    std::thread::spawn(move || into.write_all(&half));
    (Layer { blob: reader, ..layer(&tar, PLAIN) }, writer)
}

/// Returns the workers of this process.
fn workers() -> Vec<i32> {
    let own = std::process::id().to_string();
    let is_ours = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (name, rest) = stat.rsplit_once(") ").unwrap_or_default();
        name.ends_with("(banger-import") && rest.split(' ').nth(1) == Some(&own) && !rest.starts_with('Z')
    };
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_ours(*pid)).collect()
}

async fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    for _ in 0..2400 {
        if look() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} does not come");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_given_up_or_loses_its_worker_leaves_nothing_and_others_go_on() {
    require!(is_root(), "root, for the jail of a worker");
    for killed in [false, true] {
        let scratch = Arc::new(Scratch::new());
        let watcher = Arc::new(Watcher::default());
        let (layer, hold) = halted();
        let images = scratch.images();
        let progress = Arc::clone(&watcher);
        let halted = tokio::spawn(async move {
            images.import(ImageId::from_bits(1), Uid(1000), Content::Layers(vec![layer]), progress).await
        });
        eventually("the half of a layer", || {
            watcher.told.lock().unwrap().iter().any(|told| told.0 == 300_000)
        })
        .await;
        assert_eq!(watcher.told.lock().unwrap()[0].1, Some((1 << 20) + 1536));
        let running = workers();
        assert_eq!(running.len(), 1);

        // Another one finishes meanwhile.
        let facts = import_beside(&scratch).await;
        assert!(facts.is_ok(), "{facts:?}");

        if killed {
            run(Command::new("kill").args(["-9", &running[0].to_string()]));
        } else {
            watcher.canceled.store(true, Ordering::Relaxed);
        }
        let error =
            tokio::time::timeout(Duration::from_secs(120), halted).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, Error::Host(HostError::Other { .. })), "{error:?}");
        if killed {
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("killed:9"), "{source}");
        }
        assert_eq!(workers(), [0; 0]);
        assert_eq!(names(&scratch.paths.images()), [IMAGE.to_string()]);
        drop(hold);
    }
}

async fn import_beside(scratch: &Scratch) -> Result<ImageFacts> {
    scratch
        .images()
        .import(IMAGE, Uid(1000), Content::Layers(vec![layer(&small(), PLAIN)]), Arc::new(NoProgress))
        .await
}

#[tokio::test]
async fn a_worker_can_do_nothing_but_its_work() {
    require!(is_root(), "root, for the jail of a worker");
    let scratch = Scratch::new();
    let attempts = worker::probe(&scratch.workers(), Job { id: IMAGE, owner: Uid(1000) }).await.unwrap();
    assert!(attempts.len() >= 10);
    for attempt in attempts {
        assert!(!attempt.done, "a worker can {}", attempt.what);
        assert!(attempt.how.contains("not permitted"), "{}: {}", attempt.what, attempt.how);
    }
}

#[tokio::test]
async fn a_missing_worker_is_an_error() {
    let scratch = Scratch::new();
    let images = scratch.images();
    fs::remove_file(scratch.paths.program("banger-import")).unwrap();
    let content = Content::Layers(vec![layer(&small(), PLAIN)]);
    let error = images.import(IMAGE, Uid(1000), content, Arc::new(NoProgress)).await.unwrap_err();
    assert!(matches!(error, Error::Host(HostError::Os { .. })), "{error:?}");
    assert_eq!(names(&scratch.paths.images()), [] as [&str; 0]);
}
