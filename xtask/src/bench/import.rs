//! `cargo xtask bench import`: the import worker turns a layer of an OCI layout, a development image compressed by gzip
//! or zstd, into a file system. The peer does the same by `umoci unpack` and `mkfs.ext4 -d`. The floor only unpacks the
//! layer and digests it before and after. Then the image is pulled from a registry on loopback, which is compared with
//! the times of download and import.
//!
//! Ours waits until the image is on the disk, the peer and the floor do not. A cold run reads a layer that is not in
//! the page cache. Each side first removes what another one wrote, which would take memory from it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, fadvise};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    bench::{Effort, Machine, median},
    build, image,
    run::{cache, command, digest_of, hex, output, run as shell, say},
};

const FULL: &str = "development";
const SMALL: &str = "minimal";
/// The size of the file system that the service creates.
const SIZE: &str = "16G";

/// The figures for one compression.
#[derive(Serialize)]
pub struct Report {
    name: String,
    runs: u32,
    machine: Machine,
    /// The size of the layer, uncompressed and compressed.
    tar_mib: u64,
    blob_mib: u64,
    entries: usize,
    ours: Side,
    ours_cold: Side,
    peers: Option<Side>,
    floor: Side,
    /// The layer downloaded from a registry and discarded; the image pulled; and pulled a second time.
    download: Side,
    pull: Side,
    again: Side,
    ours_s: f64,
    ours_cold_s: f64,
    /// `None` if the peer is not installed or cannot unpack this.
    peer_s: Option<f64>,
    floor_s: f64,
    /// The peer's time divided by ours.
    times_faster: Option<f64>,
    /// Our time divided by the floor's.
    of_floor: f64,
    download_s: f64,
    pull_s: f64,
    /// The pull divided by the slower one of download and import.
    pull_of_slower: f64,
    again_ms: f64,
    /// The peak memory of the worker.
    rss_mib: f64,
}

/// One side of the comparison.
#[derive(Serialize)]
struct Side {
    what: &'static str,
    samples_s: Vec<f64>,
}

impl Side {
    fn new(what: &'static str) -> Self {
        Self { what, samples_s: Vec::new() }
    }
}

/// Runs the benchmark. The sides take turns.
pub fn run(effort: Effort) -> Result<Vec<Report>> {
    let worker = effort.programs()?.directory.join("banger-import");
    let examples = build::examples(effort.profile(), &["import_times", "pull_times"])?;
    let programs = Programs { worker, examples };
    let name = if effort.smoke { SMALL } else { FULL };
    let tar = image::archive(name)?;
    ["gzip", "zstd"].into_iter().map(|packing| measure(effort, &programs, name, &tar, packing)).collect()
}

/// The programs that are measured.
#[derive(Clone)]
struct Programs {
    worker: PathBuf,
    /// The directory of the programs that measure.
    examples: PathBuf,
}

fn measure(
    effort: Effort,
    programs: &Programs,
    name: &str,
    tar: &Path,
    packing: &'static str,
) -> Result<Report> {
    let runs = effort.runs;
    let layout = Layout::make(programs.clone(), name, tar, packing)?;
    let scratch = tempfile::tempdir_in(cache()).context("cannot create a temporary directory")?;
    let home = scratch.path();
    let mut ours = Side::new("import of the layer, until the image is on the disk");
    let mut cold = Side::new("the same, with a cold page cache");
    let mut peers = Side::new("umoci unpack, mkfs.ext4 -d");
    let mut floor = Side::new("read, digest, unpack and digest on one thread");
    let mut download = Side::new("download of the layer from a registry on loopback");
    let mut pull = Side::new("pull of the image from there");
    let mut again = Side::new("pull of the same image again");
    let has_peer = packing == "gzip" && ["umoci", "mkfs.ext4"].into_iter().all(is_there);
    if !has_peer {
        say(&format!("no peer: umoci is missing or does not support {packing}"));
    }
    let (mut memory, mut entries) = (0f64, 0);
    // The first turn warms up, and is not counted.
    for turn in 0..=runs {
        say(&format!("{packing}, turn {turn} of {runs}"));
        if turn == 0 {
            entries = count(tar)?;
        }
        let Import { seconds: warm, kib } = layout.import(home, turn == 0)?;
        memory = memory.max(kib / 1024.0);
        let measured_floor = layout.floor()?;
        let peer = if has_peer { Some(layout.peer(home)?) } else { None };
        layout.forget()?;
        let from_disk = layout.import(home, false)?.seconds;
        let fetched = layout.download(home)?;
        let (pulled, pulled_again) = layout.pull(home)?;
        if turn > 0 {
            download.samples_s.push(fetched);
            pull.samples_s.push(pulled);
            again.samples_s.push(pulled_again);
            ours.samples_s.push(warm);
            cold.samples_s.push(from_disk);
            floor.samples_s.push(measured_floor);
            peers.samples_s.extend(peer);
        }
    }
    let (ours_s, floor_s) = (median(&ours.samples_s), median(&floor.samples_s));
    let (download_s, pull_s) = (median(&download.samples_s), median(&pull.samples_s));
    let peer_s = has_peer.then(|| median(&peers.samples_s));
    Ok(Report {
        name: format!("import of {name}, {packing}"),
        runs,
        machine: Machine::this()?,
        tar_mib: fs::metadata(tar)?.len() >> 20,
        blob_mib: fs::metadata(&layout.blob)?.len() >> 20,
        entries,
        ours_s,
        ours_cold_s: median(&cold.samples_s),
        peer_s,
        floor_s,
        times_faster: peer_s.map(|peer| peer / ours_s),
        of_floor: ours_s / floor_s,
        download_s,
        pull_s,
        pull_of_slower: pull_s / download_s.max(ours_s),
        again_ms: median(&again.samples_s) * 1000.0,
        rss_mib: memory,
        download,
        pull,
        again,
        ours,
        ours_cold: cold,
        peers: has_peer.then_some(peers),
        floor,
    })
}

impl Report {
    /// Prints a table.
    pub fn print(&self) {
        println!(
            "{}: {} MiB in {} MiB, {} entries, {} runs",
            self.name, self.tar_mib, self.blob_mib, self.entries, self.runs
        );
        println!("{:>10} {:>10} {:>10}", "median", "best", "worst");
        let sides = [Some(&self.ours), Some(&self.ours_cold), self.peers.as_ref(), Some(&self.floor)];
        let of_registry = [&self.download, &self.pull, &self.again].map(Some);
        for side in sides.into_iter().chain(of_registry).flatten() {
            let best = side.samples_s.iter().copied().fold(f64::INFINITY, f64::min);
            let worst = side.samples_s.iter().copied().fold(0.0, f64::max);
            println!("{:>8.2} s {best:>8.2} s {worst:>8.2} s  {}", median(&side.samples_s), side.what);
        }
        match self.times_faster {
            Some(times) => println!("times faster than the peer: {times:.1}"),
            None => println!("times faster than the peer: not measured, there is no peer"),
        }
        println!("ours by the floor: {:.2}; memory of the worker: {:.1} MiB", self.of_floor, self.rss_mib);
        println!(
            "pull by the slower one of download and import: {:.2}; pull again: {:.1} ms",
            self.pull_of_slower, self.again_ms
        );
    }
}

/// The cost of one import.
struct Import {
    seconds: f64,
    /// Memory of the worker.
    kib: f64,
}

/// An OCI layout with one layer.
struct Layout {
    programs: Programs,
    directory: PathBuf,
    blob: PathBuf,
    packing: &'static str,
    digest: String,
    diff_id: String,
    manifest: String,
}

impl Layout {
    /// Creates the layout of an archive.
    fn make(programs: Programs, name: &str, tar: &Path, packing: &'static str) -> Result<Self> {
        let directory = cache().join("layouts").join(format!("{name}-{packing}"));
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
        let packed = directory.join("packed");
        say(&format!("compressing {name} with {packing}"));
        let pack = match packing {
            "gzip" => "gzip -n -6 < \"$1\" > \"$2\"",
            _ => "zstd -q -3 < \"$1\" > \"$2\"",
        };
        shell(command("sh", ["-euc", pack, "pack"]).arg(tar).arg(&packed))?;
        let (digest, diff_id) = (digest_of(&packed)?, digest_of(tar)?);
        let size = fs::metadata(&packed)?.len();
        let blob = blobs.join(&digest);
        fs::rename(&packed, &blob)?;
        let put = |content: String| -> Result<(String, usize)> {
            let digest = hex(&Sha256::digest(&content));
            fs::write(blobs.join(&digest), &content)?;
            Ok((digest, content.len()))
        };
        let (config, config_size) = put(format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}}}"#
        ))?;
        let media = "application/vnd.oci.image";
        let (manifest, manifest_size) = put(format!(
            r#"{{"schemaVersion":2,"mediaType":"{media}.manifest.v1+json","config":{{"mediaType":"{media}.config.v1+json","digest":"sha256:{config}","size":{config_size}}},"layers":[{{"mediaType":"{media}.layer.v1.tar+{packing}","digest":"sha256:{digest}","size":{size}}}]}}"#
        ))?;
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        fs::write(
            directory.join("index.json"),
            format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{media}.manifest.v1+json","digest":"sha256:{manifest}","size":{manifest_size},"annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}]}}"#
            ),
        )?;
        Ok(Self { programs, directory, blob, packing, digest, diff_id, manifest })
    }

    fn import(&self, home: &Path, is_checked: bool) -> Result<Import> {
        let mut import = self.program("import_times");
        import.arg("import").arg(&self.programs.worker).arg(home).arg(self.packing).arg(&self.blob);
        import.arg(format!("sha256:{}", self.digest)).arg(format!("sha256:{}", self.diff_id));
        let said = output(&mut import)?;
        let figures: Vec<&str> = said.split_whitespace().collect();
        let [seconds, kib, image] = figures[..] else { bail!("the import did not print three figures") };
        if is_checked {
            shell(&mut command("e2fsck", ["-fn", image])).context("the image is not clean")?;
        }
        fs::remove_dir_all(home.join("state"))?;
        Ok(Import { seconds: seconds.parse()?, kib: kib.parse()? })
    }

    /// Measures a download of the layer, in seconds.
    fn download(&self, home: &Path) -> Result<f64> {
        let said = self.pull_times(&["download".as_ref(), home])?;
        said.parse().context("the download printed no figure")
    }

    /// Measures the first and the second pull of the image, in seconds.
    fn pull(&self, home: &Path) -> Result<(f64, f64)> {
        let said = self.pull_times(&["pull".as_ref(), &self.programs.worker, home])?;
        let (first, second) = said.split_once(' ').context("the pull printed no figures")?;
        Ok((first.parse()?, second.parse()?))
    }

    fn pull_times(&self, words: &[&Path]) -> Result<String> {
        let mut program = self.program("pull_times");
        let said = output(program.args(words).arg(&self.directory).arg(&self.manifest))?;
        Ok(said.trim().to_owned())
    }

    fn program(&self, name: &str) -> Command {
        Command::new(self.programs.examples.join(name))
    }

    fn floor(&self) -> Result<f64> {
        let mut floor = self.program("import_times");
        let said = output(floor.arg("floor").arg(self.packing).arg(&self.blob))?;
        said.trim().parse().context("the floor printed no figure")
    }

    fn peer(&self, home: &Path) -> Result<f64> {
        let (bundle, image) = (home.join("bundle"), home.join("peer.ext4"));
        let began = Instant::now();
        let layout = format!("{}:latest", self.directory.display());
        shell(command("umoci", ["unpack", "--image", &layout]).arg(&bundle))?;
        File::create(&image)?;
        let mut mkfs = command("mkfs.ext4", ["-q", "-F", "-d"]);
        shell(mkfs.arg(bundle.join("rootfs")).arg(&image).arg(SIZE))?;
        let took = began.elapsed().as_secs_f64();
        fs::remove_dir_all(&bundle)?;
        fs::remove_file(&image)?;
        Ok(took)
    }

    /// Drops the layer from the page cache.
    fn forget(&self) -> Result<()> {
        let file = File::open(&self.blob)?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed).context("cannot drop the layer from the page cache")
    }
}

fn count(tar: &Path) -> Result<usize> {
    Ok(output(command("tar", ["--list", "--file"]).arg(tar))?.lines().count())
}

fn is_there(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|at| at.join(program).is_file()))
}
