//! The times of one import, for `cargo xtask bench import`: that of a layer which a confined worker makes an
//! image, until the image is on the disk, and that of what no import can do without. Prints them in seconds, and what
//! the bench wants to know.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use banger_domain::{
    id::{ImageId, Uid},
    resource::Paths,
};
use banger_image::packing::Packing;
use banger_proto::size::Bytes;
use banger_system::{
    host::{process::worker_process::ProcessWorkers, storage::image_files::LocalImages},
    ports::{
        NoProgress,
        image_files::{Content, ImageFiles, Layer},
    },
};
use sha2::{Digest, Sha256};

const IMAGE: ImageId = ImageId::from_bits(1);
const SIZE: Bytes = Bytes::gib(16);
const POLL: Duration = Duration::from_millis(5);
const CHUNK: usize = 256 << 10;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["floor", packing, blob] => floor(parse(packing)?, Path::new(blob)),
        ["import", program, home, blob, digest, diff_id] => {
            import(Path::new(program), Path::new(home), Path::new(blob), digest, diff_id)
        }
        _ => bail!("import_times floor PACKING BLOB | import WORKER HOME BLOB DIGEST DIFF-ID"),
    }
}

fn parse(packing: &str) -> Result<Packing> {
    Ok(match packing {
        "plain" => Packing::Plain,
        "gzip" => Packing::Gzip,
        "zstd" => Packing::Zstd,
        other => bail!("there is no packing {other}"),
    })
}

/// Prints how long it took, the memory of the worker in KiB, and where the image is.
fn import(program: &Path, home: &Path, blob: &Path, digest: &str, diff_id: &str) -> Result<()> {
    let libexec = program.parent().context("the worker has no directory")?.to_owned();
    let paths = Paths { state: home.join("state"), runtime: home.join("run"), libexec };
    let images = LocalImages::new(paths.clone(), Arc::new(ProcessWorkers::new(paths.clone())), SIZE);
    let layer = Layer {
        blob: File::open(blob)?.into(),
        offset: None,
        size: Bytes(fs::metadata(blob)?.len()),
        digest: digest.parse()?,
        diff_id: diff_id.parse()?,
    };
    let (done, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let watcher = {
        let (done, most) = (Arc::clone(&done), Arc::clone(&most));
        thread::spawn(move || {
            while !done.load(Relaxed) {
                most.fetch_max(memory_of_workers(), Relaxed);
                thread::sleep(POLL);
            }
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let began = Instant::now();
    let made =
        runtime.block_on(images.import(IMAGE, Uid(1000), Content::Layers(vec![layer]), Arc::new(NoProgress)));
    let took = began.elapsed();
    done.store(true, Relaxed);
    let _ = watcher.join();
    made?;
    println!("{} {} {}", took.as_secs_f64(), most.load(Relaxed), paths.image(IMAGE).display());
    Ok(())
}

/// The most that a worker of this process ever had in memory, in KiB.
fn memory_of_workers() -> u64 {
    let path = format!("/proc/self/task/{}/children", std::process::id());
    let children = fs::read_to_string(path).unwrap_or_default();
    let status = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    children.split_whitespace().filter_map(|pid| peak(status(pid))).max().unwrap_or(0)
}

/// Prints how long one thread takes to read the blob, to digest it, to unpack it and to digest that.
fn floor(packing: Packing, blob: &Path) -> Result<()> {
    let began = Instant::now();
    let mut packed = Digested { file: File::open(blob)?, digest: Sha256::new() };
    let mut digest = Sha256::new();
    {
        let mut unpacked: Box<dyn Read + '_> = match packing {
            Packing::Plain => Box::new(&mut packed),
            Packing::Gzip => {
                Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(CHUNK, &mut packed)))
            }
            Packing::Zstd => Box::new(zstd::Decoder::new(&mut packed)?),
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            match unpacked.read(&mut chunk)? {
                0 => break,
                count => digest.update(&chunk[..count]),
            }
        }
    }
    let digests = (packed.digest.finalize(), digest.finalize());
    let took = began.elapsed();
    // Nothing of it may be left out as unused.
    ensure!(digests.0 != digests.1 || packing == Packing::Plain);
    println!("{}", took.as_secs_f64());
    Ok(())
}

struct Digested {
    file: File,
    digest: Sha256,
}

impl Read for Digested {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.digest.update(&buffer[..count]);
        Ok(count)
    }
}
