//! The Debian packages that banger and its tests need, and their installation.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::run::{cache, command, output, run, say};

/// The packages for VMMs, for a host of banger, for building images, and for the tests.
const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "qemu-utils",
    "systemd",
    "libpam-systemd",
    "dbus",
    "polkitd",
    "pkexec",
    "sudo",
    "nftables",
    "iproute2",
    "util-linux",
    "passwd",
    "mmdebstrap",
    "e2fsprogs",
    "zstd",
    "python3-gi",
    "python3-venv",
    "gir1.2-glib-2.0",
    "binutils",
    "gcc",
    "libc6-dev",
    "sqlite3",
    "cpio",
    "xfsprogs",
    // The host's list of virtual machines.
    "systemd-container",
    // To read our tables of modules, and to make others for comparison.
    "kmod",
    // For the crates that talk to device-mapper.
    "libdevmapper-dev",
    "libclang-dev",
    "pkg-config",
    "openssh-client",
    // For the server of ssh that is unpacked.
    "libwrap0",
    "rsync",
    "curl",
    // Other programs that read and write archives, and that write and push images.
    "libarchive-tools",
    "skopeo",
    "umoci",
    // A resolver that tests use instead of the host's.
    "dnsmasq-base",
    // A terminal for tests.
    "tmux",
    // For completions and manual pages.
    "fish",
    "mandoc",
    "zsh",
];

/// Emulates arm64 guests in tests, which are skipped by name without it.
const ARM64_EMULATOR: &[&str] = &["qemu-system-arm"];

/// Other clients of the D-Bus API, and a desktop around them.
const DESKTOP: &[&str] = &["gjs", "python3-dbus-fast", "cockpit-ws", "cockpit-system", "chromium"];

/// The official client of MCP for Python, and its version.
const MCP_CLIENT: &str = "mcp==2.3.0";

/// E2B's SDK for Python, and its version.
const E2B_SDK: &str = "e2b==2.63.0";
/// The Python that users of the private host run.
const PYTHON: &str = "/usr/bin/python3";

/// What checks and compiles the SDKs: from PyPI, and from npm.
const SDK_PYTHON: &[&str] = &["mypy==2.4.1", "build==1.6.1", "hatchling==1.33.0"];
const SDK_NODE: &[&str] = &["typescript@5.9.3", "@types/node@18.19.130"];
/// The oldest Node.js that runs the SDK.
const NODE: u32 = 18;

/// What reads the scripts of this repository in `cargo xtask tidy`.
const LINTERS: &[&str] = &["shellcheck", "pyflakes3"];

/// What checks the packages of `cargo xtask dist`.
const PACKAGE_CHECKERS: &[&str] = &["lintian", "rpmlint", "rpm"];

/// What compiles C and reads headers for arm64 in `cargo xtask cross`.
const CROSS_COMPILER: &[&str] = &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];

/// Installs the packages that are missing.
pub fn ensure() -> Result<()> {
    install(PACKAGES)
}

/// Installs the programs of a desktop that are missing.
pub fn ensure_desktop() -> Result<()> {
    install(DESKTOP)
}

/// Installs the client of MCP for Python. Returns its interpreter; none if it cannot be installed, which the tests that
/// need it then report.
pub fn mcp_client() -> Result<Option<PathBuf>> {
    let environment = cache().join(MCP_CLIENT);
    let python = environment.join("bin/python");
    let has_client = || {
        let check = Command::new(&python).args(["-c", "import mcp"]).output();
        check.is_ok_and(|output| output.status.success())
    };
    if !has_client() {
        say("installing the client of MCP for Python");
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        // Without a network, only its tests are skipped.
        let _ = run(Command::new(&python).args(["-m", "pip", "install", "--quiet", MCP_CLIENT]));
    }
    Ok(has_client().then_some(python))
}

/// Installs E2B's SDK for the Python of this system. Returns the directory of its modules; none if it cannot be installed,
/// which the check that needs it then reports.
pub fn e2b_sdk() -> Result<Option<PathBuf>> {
    let modules = cache().join(E2B_SDK);
    let has_sdk = || {
        let check = Command::new(PYTHON).args(["-c", "import e2b"]).env("PYTHONPATH", &modules).output();
        check.is_ok_and(|output| output.status.success())
    };
    if !has_sdk() {
        say("installing E2B's SDK for Python");
        let environment = cache().join("e2b-pip");
        run(Command::new(PYTHON).args(["-m", "venv"]).arg(&environment))?;
        let mut install = Command::new(environment.join("bin/python"));
        install.args(["-m", "pip", "install", "--quiet", E2B_SDK, "--target"]).arg(&modules);
        // Without a network, only its check is skipped.
        let _ = run(&mut install);
    }
    Ok(has_sdk().then_some(modules))
}

/// Installs what checks and compiles the SDKs. Returns its directory; what cannot be installed is missing there, which the
/// tests that need it then report.
pub fn sdk_tools() -> Result<PathBuf> {
    if !has_node() {
        install(&["nodejs", "npm"])?;
    }
    let tools = cache().join(format!("sdk-{}", [SDK_PYTHON, SDK_NODE].concat().join("-").replace('/', "-")));
    let python = tools.join("bin/python");
    if !tools.join("bin/mypy").exists() {
        say("installing mypy and hatchling");
        run(Command::new("python3").args(["-m", "venv"]).arg(&tools))?;
        // Without a network, only its tests are skipped.
        let _ = run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(SDK_PYTHON));
    }
    if !tools.join("node_modules/typescript").exists() {
        say("installing TypeScript");
        let options =
            ["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"];
        let _ = run(Command::new("npm").args(options).arg("--prefix").arg(&tools).args(SDK_NODE));
    }
    Ok(tools)
}

/// Returns whether there is a Node.js that is new enough.
fn has_node() -> bool {
    let version = output(&mut command("node", ["--version"])).unwrap_or_default();
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= NODE) && command("npm", ["--version"]).output().is_ok()
}

/// Installs the linters that are missing.
pub fn ensure_linters() -> Result<()> {
    install(LINTERS)
}

/// Installs what checks packages.
pub fn ensure_package_checkers() -> Result<()> {
    install(PACKAGE_CHECKERS)
}

/// Runs apt-get with another configuration.
pub fn apt_of(config: &Path, arguments: &[&str]) -> Result<()> {
    run(apt(arguments).env("APT_CONFIG", config))
}

/// Installs the emulator of arm64 guests.
pub fn ensure_arm64_emulator() -> Result<()> {
    install(ARM64_EMULATOR)
}

/// Installs the cross compiler.
pub fn ensure_cross_compiler() -> Result<()> {
    install(CROSS_COMPILER)
}

fn install(packages: &[&'static str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "packages are missing; run: apt-get install {}",
        missing.join(" ")
    );
    say(&format!("installing {}", missing.join(" ")));
    run(&mut apt(&["update", "-qq"]))?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(missing);
    run(&mut apt(&install))
}

/// Returns the unpacked tree of systemd-resolved, for the private host only: installed on the developer's host, the
/// package would change its name resolution.
pub fn resolved() -> Result<PathBuf> {
    // The version must be that of systemd.
    let version = output(&mut command("dpkg-query", ["-W", "-f", "${Version}", "systemd"]))?;
    tree("systemd-resolved", &version, |root| {
        // The package predates the merge of /lib and /sbin into /usr.
        for merged in ["lib", "sbin"] {
            let tree = root.join(merged);
            run(command("cp", ["-a"]).arg(tree.join(".")).arg(root.join("usr").join(merged)))?;
            fs::remove_dir_all(tree)?;
        }
        Ok(())
    })
}

/// Returns the program of Debian's docker-registry, unpacked: installed, it would listen on all addresses at once.
pub fn docker_registry() -> Result<PathBuf> {
    unpacked("docker-registry", "usr/bin/docker-registry")
}

/// Returns the program with the parser of Prometheus, unpacked: installed, its package would start a server.
pub fn promtool() -> Result<PathBuf> {
    unpacked("prometheus", "usr/bin/promtool")
}

/// Returns the server of ssh, unpacked: installed, it would listen on all addresses at once.
pub fn sshd() -> Result<PathBuf> {
    unpacked("openssh-server", "usr/sbin/sshd")
}

/// Returns a file of a package that is not installed.
fn unpacked(package: &str, file: &str) -> Result<PathBuf> {
    let candidate = |text: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
        Some(line.to_owned()).filter(|version| version != "(none)")
    };
    let policy = || output(&mut command("apt-cache", ["policy", package])).map(|text| candidate(&text));
    let version = match policy()? {
        Some(version) => version,
        None => {
            run(&mut apt(&["update", "-qq"]))?;
            policy()?.with_context(|| format!("apt has no {package}"))?
        }
    };
    Ok(tree(package, &version, |_| Ok(()))?.join(file))
}

/// Returns the unpacked tree of a package. It is unpacked and finished once.
fn tree(package: &str, version: &str, finish: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = cache().join(format!("{package}-{version}"));
    let root = directory.join("root");
    if root.is_dir() {
        return Ok(root);
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let unfinished = directory.join("unfinished");
    let wanted = format!("{package}={version}");
    if unpack(&wanted, &directory, &unfinished).is_err() {
        run(&mut apt(&["update", "-qq"]))?;
        unpack(&wanted, &directory, &unfinished)?;
    }
    finish(&unfinished)?;
    fs::rename(&unfinished, &root).with_context(|| format!("cannot rename the tree of {package}"))?;
    Ok(root)
}

/// Downloads a package into `directory` and unpacks it to `root`, without installing it.
pub fn unpack(package: &str, directory: &Path, root: &Path) -> Result<()> {
    unpack_of(package, directory, root, None)
}

/// Like [`unpack`], with another configuration of apt.
pub fn unpack_of(package: &str, directory: &Path, root: &Path, config: Option<&Path>) -> Result<()> {
    say(&format!("downloading {package}"));
    // apt would drop its privileges for the download, and then could not write to this directory.
    let unsandboxed = "APT::Sandbox::User=root";
    let mut download = command("apt-get", ["download", "-qq", "-o", unsandboxed, package]);
    download.envs(config.map(|config| ("APT_CONFIG", config)));
    run(download.current_dir(directory))?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(command("dpkg-deb", ["-x"]).arg(&path).arg(root))?;
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn is_installed(package: &str) -> bool {
    let query = command("dpkg-query", ["-W", "-f", "${Status}", package]).output();
    query.is_ok_and(|output| output.stdout == b"install ok installed")
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = command("apt-get", arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
