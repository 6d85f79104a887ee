//! Builds images from Debian's packages: the golden image, and small ones for tests.
//!
//! The same packages give the same bytes: all times in the file system are a constant, and the random parts of the
//! ext4 come from the recipe's digest.

pub mod bundle;
mod ext4;
pub mod kernel;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use mkext4::Options;
use sha2::{Digest, Sha256};

use crate::{
    packages,
    run::{cache, command, hex, output, repository, run as shell, say},
    try_it,
};

/// Version of the recipe. Raise it for a change that the other inputs of the digest do not show.
const RECIPE: u32 = 2;
/// The time stamp of every file in an image: the first second of the release's year.
const EPOCH: &str = "1672531200";
/// The sizes of the file systems. Unused blocks take no space, but an import reads all of them.
const SIZE: u64 = 8 << 30;
const SIZE_OF_MINIMAL: u64 = 512 << 20;
/// The release of Debian, unless an image is named after another one.
pub const SUITE: &str = "bookworm";
/// A system of the release after the golden image's, with a newer systemd.
pub const TRIXIE: &str = "debian-trixie";
/// Arguments of GNU tar with which the same files give the same archive.
const TAR: [&str; 6] = [
    "--create",
    "--numeric-owner",
    "--sort=name",
    "--xattrs",
    "--xattrs-include=*",
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
];

/// Arguments of `cargo xtask image`.
#[derive(Parser)]
pub struct Arguments {
    /// Image to build: a list of packages in xtask/images, such as debian-bookworm or minimal
    #[arg(default_value = "debian-bookworm")]
    name: String,
    /// Build the image even if it exists
    #[arg(long)]
    rebuild: bool,
    /// Build a bundle, one file for `banger image register --oci`
    #[arg(long, conflicts_with = "rebuild")]
    bundle: bool,
}

/// Builds the image and returns its path; for a bundle also the digest and the length in bytes.
pub fn run(arguments: &Arguments) -> Result<String> {
    if arguments.bundle {
        let (file, digest, length) = bundle::make(&arguments.name)?;
        return Ok(format!("{}\n{digest}\n{length}", file.display()));
    }
    Ok(make(&arguments.name, arguments.rebuild)?.display().to_string())
}

/// Held while an image is built: other threads that need it wait, and the package manager has one user.
static MAKING: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MAKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the path of the image of this name, and builds it if it is missing.
pub fn ensure(name: &str) -> Result<PathBuf> {
    let _alone = alone();
    make(name, false)
}

/// Returns the path of a tar archive with the root file system of an image, and builds it if it is missing.
pub fn archive(name: &str) -> Result<PathBuf> {
    let included = packages_in(&repository().join("xtask/images").join(format!("{name}.packages")))?;
    let _alone = alone();
    let suite = suite_of(name);
    let digest = Sha256::digest(format!("{RECIPE}\n{suite}\n{}\n{}", TAR.join(" "), included.join("\n")));
    let digest = hex(&digest[..6]);
    let directory = cache().join("images");
    let archive = directory.join(format!("{name}-{digest}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    packages::ensure()?;
    ensure!(rustix::process::geteuid().is_root(), "building an image needs root");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    say(&format!("building an archive of {name}"));
    let scratch = tempfile::tempdir_in(&directory).context("cannot create a temporary directory")?;
    let (root, unfinished) = (scratch.path().join("root"), scratch.path().join("archive"));
    bootstrap(&root, suite, &included)?;
    clean(&root)?;
    shell(command("tar", TAR).arg("--file").arg(&unfinished).arg("--directory").arg(&root).arg("."))?;
    fs::rename(&unfinished, &archive).context("cannot rename the archive")?;
    Ok(archive)
}

/// Builds the images and the kernel of levels 4 and 5 that are missing.
pub fn ensure_all_of_tests() -> Result<()> {
    kernel::ensure()?;
    without_init(try_it::IMAGE)?;
    ensure("minimal")?;
    ensure(TRIXIE)?;
    for name in ["minimal", "network-programs", "containers"] {
        archive(name)?;
    }
    Ok(())
}

/// Returns the path of the image without its init, so that the agent stays the first process in a guest.
pub fn without_init(name: &str) -> Result<PathBuf> {
    let _alone = alone();
    let image = make(name, false)?;
    let without = image.with_extension("without-init.ext4");
    if without.exists() {
        return Ok(without);
    }
    let unfinished = image.with_extension("unfinished");
    shell(command("cp", ["--sparse=always", "--reflink=auto"]).arg(&image).arg(&unfinished))?;
    for program in ["/usr/sbin/init", "/usr/lib/systemd/systemd"] {
        shell(command("debugfs", ["-w", "-R", &format!("rm {program}")]).arg(&unfinished))?;
    }
    run_checked(&mut command("e2fsck", ["-fn"]), &unfinished)?;
    fs::rename(&unfinished, &without).context("cannot rename the image")?;
    Ok(without)
}

fn make(name: &str, rebuild: bool) -> Result<PathBuf> {
    let list = repository().join("xtask/images").join(format!("{name}.packages"));
    let included = packages_in(&list).with_context(|| format!("there is no image {name}"))?;

    let size = if name == "minimal" { SIZE_OF_MINIMAL } else { SIZE };
    let suite = suite_of(name);
    let digest = Sha256::digest(format!("{RECIPE}\n{suite}\n{size}\n{}", included.join("\n")));
    let digest = hex(&digest);
    let directory = cache().join("images");
    let image = directory.join(format!("{name}-{}.ext4", &digest[..12]));
    if image.exists() && !rebuild {
        return Ok(image);
    }
    packages::ensure()?;
    ensure!(rustix::process::geteuid().is_root(), "building an image needs root");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    say(&format!("building the image {name}"));

    let scratch = tempfile::tempdir_in(&directory).context("cannot create a temporary directory")?;
    let root = scratch.path().join("root");
    bootstrap(&root, suite, &included)?;
    clean(&root)?;
    let unfinished = scratch.path().join("image");
    write_ext4(&root, &unfinished, size, &digest)?;
    run_checked(&mut command("e2fsck", ["-fn"]), &unfinished)?;
    fs::rename(&unfinished, &image).context("cannot rename the image")?;
    Ok(image)
}

/// Reads a list of packages: one per line, with comments.
pub fn packages_in(list: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// Returns the release of Debian that an image is made from: the one in its name, else [`SUITE`].
fn suite_of(name: &str) -> &str {
    name.strip_prefix("debian-").unwrap_or(SUITE)
}

/// Unpacks and configures packages of a release of Debian below `root`.
pub fn bootstrap(root: &Path, suite: &str, included: &[String]) -> Result<()> {
    let mut bootstrap = command("mmdebstrap", ["--quiet", "--variant=minbase", "--mode=root"]);
    bootstrap.arg(format!("--include={}", included.join(",")));
    for option in ["APT::Install-Recommends false", "Acquire::Languages none"] {
        bootstrap.arg(format!("--aptopt={option}"));
    }
    for path in ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*"] {
        bootstrap.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    bootstrap.env("SOURCE_DATE_EPOCH", EPOCH).arg(suite).arg(root);
    // Use the developer's package sources, so that a local mirror works.
    let adapted = tempfile::tempdir().context("cannot create a temporary directory")?;
    for file in sources()? {
        if suite == SUITE {
            bootstrap.arg(file);
            continue;
        }
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let copy = adapted.path().join(file.file_name().context("a source of apt has no name")?);
        fs::write(&copy, text.replace(SUITE, suite)).context("cannot write a source of apt")?;
        bootstrap.arg(copy);
    }
    shell(&mut bootstrap)
}

/// Returns the apt source files for Debian's own archive.
fn sources() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let list = Path::new("/etc/apt/sources.list");
    if fs::read_to_string(list).is_ok_and(|text| text.lines().any(|line| line.starts_with("deb "))) {
        files.push(list.to_path_buf());
    }
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        let path = entry.path();
        if fs::read_to_string(&path).is_ok_and(|text| text.contains("debian-archive-keyring")) {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail!("apt has no source for Debian's archive");
    }
    Ok(files)
}

/// Removes files that differ between two builds, or must differ between two sandboxes.
fn clean(root: &Path) -> Result<()> {
    let clean = script!("image/clean.sh", root = root.display(), epoch = EPOCH);
    shell(&mut command(&clean[0], &clean[1..])).context("cannot clean the image")
}

/// Writes the tree below `root` as a sparse ext4. Its random parts come from a digest of at least 32 digits.
pub fn write_ext4(root: &Path, image: &Path, size: u64, digest: &str) -> Result<()> {
    let digits = digest.get(..32).context("the digest is too short")?;
    let mut options = Options::new(size, u128::from_str_radix(digits, 16)?.to_be_bytes(), EPOCH.parse()?);
    options.label = Some("banger-root".to_owned());
    ext4::write(root, image, options).with_context(|| format!("cannot write {}", image.display()))
}

fn run_checked(check: &mut Command, image: &Path) -> Result<()> {
    let text = output(check.arg(image)).with_context(|| format!("{} is not clean", image.display()))?;
    say(text.lines().last().unwrap_or_default());
    Ok(())
}
