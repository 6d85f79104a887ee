//! The times of one pull, for `cargo xtask bench import`: that of the engine, with the worker and its jail, of an
//! image of a registry on this host of which nothing is here yet, and of the same image a second time; or that of
//! fetching it alone. Prints them in seconds.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use banger_domain::{id::Uid, resource::Paths};
use banger_image::oci::{credentials::Credentials, platform::Platform};
use banger_proto::size::Bytes;
use banger_system::{
    config::{Config, Host},
    engine::{
        Engine,
        request::{OnConflict, PullImage, PullSource},
        view::Outcome,
    },
    host::{
        process::worker_process::ProcessWorkers,
        registry::{LocalPorts, Registries, Timeouts},
        storage::image_files::LocalImages,
    },
    ports::{
        NoProgress, Ports,
        registry::{Registry, Source},
    },
    sim::Sim,
    tasks::Tasks,
};

const SIZE: Bytes = Bytes::gib(16);
const CACHE: Bytes = Bytes::gib(16);
const HOST: Host = Host { cpus: 2, memory: Bytes::gib(16) };
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match words[..] {
        ["download", home, layout, manifest] => {
            let source = source(Path::new(layout), manifest)?;
            runtime.block_on(download(Path::new(home), &source))
        }
        ["pull", program, home, layout, manifest] => {
            let source = source(Path::new(layout), manifest)?;
            runtime.block_on(pull(Path::new(program), Path::new(home), source))
        }
        _ => bail!("pull_times download HOME LAYOUT MANIFEST | pull WORKER HOME LAYOUT MANIFEST"),
    }
}

async fn download(home: &Path, source: &Source) -> Result<()> {
    let cache = home.join("cache");
    let registries = Registries::new(&cache, CACHE, Timeouts::default(), LocalPorts::where_port(|_| true));
    let began = Instant::now();
    let image = registries.resolve(source).await?;
    let fetch = registries.fetch(source, &image.layers, Arc::new(NoProgress)).await?;
    let drains: Vec<_> =
        fetch.blobs.into_iter().map(|blob| tokio::task::spawn_blocking(move || drain(blob))).collect();
    fetch.work.await?;
    for drain in drains {
        drain.await??;
    }
    println!("{}", began.elapsed().as_secs_f64());
    Ok(fs::remove_dir_all(cache)?)
}

fn drain(blob: OwnedFd) -> io::Result<u64> {
    io::copy(&mut File::from(blob), &mut io::sink())
}

async fn pull(program: &Path, home: &Path, source: Source) -> Result<()> {
    let libexec = program.parent().context("the worker has no directory")?.to_owned();
    let paths = Paths { state: home.join("state"), runtime: home.join("run"), libexec };
    let cache = home.join("cache");
    let workers = Arc::new(ProcessWorkers::new(paths.clone()));
    let ports = Ports {
        image_files: Arc::new(LocalImages::new(paths.clone(), workers, SIZE)),
        registry: Arc::new(Registries::new(
            &cache,
            CACHE,
            Timeouts::default(),
            LocalPorts::where_port(|_| true),
        )),
        ..Sim::new().ports()
    };
    fs::create_dir_all(paths.images())?;
    let (engine, _events) = Engine::new(ports, Config::default().settings(HOST)?, &Tasks::default());
    let mut times = Vec::new();
    for name in ["first", "second"] {
        let request = PullImage {
            owner: Uid(1000),
            source: source.clone(),
            from: PullSource::Registry,
            name: Some(name.parse()?),
            shared: false,
            kernel: None,
            on_conflict: OnConflict::Fail,
        };
        let began = Instant::now();
        let job = engine.pull_image(request)?;
        let view = engine.wait_job(job, None).await?;
        times.push(began.elapsed().as_secs_f64().to_string());
        match &view.outcome {
            Some(Outcome::Done) => {}
            other => bail!("the pull of {name} ended so: {other:?}"),
        }
    }
    println!("{}", times.join(" "));
    fs::remove_dir_all(&paths.state)?;
    Ok(fs::remove_dir_all(cache)?)
}

/// The image of an OCI layout, in a registry of this process.
fn source(layout: &Path, manifest: &str) -> Result<Source> {
    let port = serve(layout.join("blobs/sha256"), manifest.to_owned()).context("cannot serve")?;
    Ok(Source {
        reference: format!("localhost:{port}/bench:1").parse()?,
        platform: Platform::of_host(std::env::consts::ARCH),
        credentials: Credentials::Anonymous,
    })
}

fn serve(blobs: PathBuf, manifest: String) -> io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (blobs, manifest) = (blobs.clone(), manifest.clone());
            thread::spawn(move || answer(stream, &blobs, &manifest));
        }
    });
    Ok(port)
}

/// Answers one request: for the only manifest, or for a blob.
fn answer(stream: TcpStream, blobs: &Path, manifest: &str) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut request, mut line) = (String::new(), String::new());
    reader.read_line(&mut request)?;
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let is_manifest = path.contains("/manifests/");
    let (name, kind) = match path.rsplit_once("sha256:") {
        Some((_, name)) if !is_manifest => (name, "application/octet-stream"),
        _ => (manifest, MANIFEST),
    };
    let mut file = File::open(blobs.join(name))?;
    let mut stream = reader.into_inner();
    let length = file.metadata()?.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    )?;
    io::copy(&mut file, &mut stream)?;
    stream.shutdown(Shutdown::Both)
}
