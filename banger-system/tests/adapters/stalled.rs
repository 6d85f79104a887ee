//! A user's file on a file system that never answers: only the worker waits for it, and nothing of the service does.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::AsRawFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use banger_domain::id::{ImageId, Uid};
use banger_proto::size::Bytes;
use banger_system::ports::{
    Progress,
    image_files::{Content, ImageFiles},
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::scratch::{Scratch, is_root, names, require};
use crate::skip;

const TIMEOUT: Duration = Duration::from_secs(120);

/// A file system with one file, whose content never arrives. It implements as much of FUSE's protocol as that needs
/// (linux/fuse.h).
struct Stalled {
    place: std::path::PathBuf,
    reads: Arc<AtomicUsize>,
}

impl Stalled {
    fn mount(place: &Path) -> Self {
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        mount("stalled", place, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        // It ends when the file system is unmounted.
        std::thread::spawn(move || serve(device, &counted));
        Self { place: place.to_owned(), reads }
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        unmount(&self.place, UnmountFlags::FORCE | UnmountFlags::DETACH).unwrap();
    }
}

fn serve(mut device: File, reads: &AtomicUsize) {
    const LOOKUP: u32 = 1;
    const GETATTR: u32 = 3;
    const OPEN: u32 = 14;
    const READ: u32 = 15;
    const INIT: u32 = 26;
    const SILENT: [u32; 3] = [2, 36, 42];
    let mut request = vec![0; 1 << 20];
    while let Ok(length) = device.read(&mut request) {
        let number = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let (what, node) = (number(4), number(16));
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let attributes = |is_file: bool| {
            let (mode, size): (u32, u64) = if is_file { (0o100_644, 1 << 20) } else { (0o040_755, 0) };
            let mut all = words(&[u64::from(is_file) + 1, size, 0, 0, 0, 0]);
            for number in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
                all.extend(number.to_le_bytes());
            }
            all
        };
        let body: Result<Vec<u8>, i32> = match what {
            INIT => {
                let mut body = Vec::new();
                for number in [7u32, 31, 0, 0, 0, 64 << 10, 1] {
                    body.extend(number.to_le_bytes());
                }
                body.resize(64, 0);
                Ok(body)
            }
            LOOKUP => Ok([words(&[2, 0, 1000, 1000, 0]), attributes(true)].concat()),
            GETATTR => Ok([words(&[1000, 0]), attributes(node != 1)].concat()),
            OPEN => Ok(words(&[1, 0])),
            READ => {
                reads.fetch_add(1, Relaxed);
                continue;
            }
            _ if SILENT.contains(&what) => continue,
            _ => Err(-38),
        };
        assert!(length >= 40);
        let (error, body) = body.map_or_else(|error| (error, Vec::new()), |body| (0, body));
        let mut answer = (16 + body.len() as u32).to_le_bytes().to_vec();
        answer.extend(error.to_le_bytes());
        answer.extend(&request[8..16]);
        answer.extend(body);
        // The process that asked may be gone.
        let _ = device.write_all(&answer);
    }
}

struct GivenUp(AtomicBool);

impl Progress for GivenUp {
    fn advanced(&self, _done: Bytes, _total: Option<Bytes>) {}

    fn is_canceled(&self) -> bool {
        self.0.load(Relaxed)
    }
}

#[test]
fn a_file_that_never_answers_keeps_nothing_of_the_service() {
    require!(is_root() && skip::has_device("/dev/fuse"), "root and FUSE");
    let scratch = Scratch::on_small_file_system(64 << 20);
    let place = scratch.home.path().join("served");
    fs::create_dir(&place).unwrap();
    let stalled = Stalled::mount(&place);
    let file = File::open(place.join("file")).unwrap();
    let images = scratch.images();
    let given_up = Arc::new(GivenUp(AtomicBool::new(false)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let import = {
        let (progress, image) = (Arc::clone(&given_up), ImageId::from_bits(1));
        runtime
            .spawn(async move { images.import(image, Uid(1000), Content::File(file.into()), progress).await })
    };
    runtime.block_on(async {
        let waits = async {
            while stalled.reads.load(Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, waits).await.unwrap();
        given_up.0.store(true, Relaxed);
        let ended = tokio::time::timeout(TIMEOUT, import).await.unwrap().unwrap();
        assert!(ended.is_err(), "{ended:?}");
    });
    // Dropping the runtime waits for every blocking thread, and would wait forever for one that waits for the file.
    drop(runtime);
    assert!(names(&scratch.paths.images()).is_empty());
}
