//! A service on a host in memory with a bus of its own, for benchmarks of the service alone. Nothing of the host is touched.

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::Effort;
use crate::{
    build,
    run::{output, repository, say, target},
};

const DAEMON: &str = "/usr/bin/dbus-daemon";
/// The program that measures.
const CLIENT: &str = "service_times";
const ADDRESS: &str = "DBUS_SYSTEM_BUS_ADDRESS";
/// More sandboxes than any benchmark makes: what is measured is not a refusal.
const LIMITS: &str = "\
[limits]
vms = 10000
running = 10000
memory = \"100000GiB\"
disk = \"1000000GiB\"
";

/// A running service. Dropping this ends it, and its bus.
pub struct Service {
    bus: Child,
    service: Child,
    address: String,
    client: PathBuf,
    _directory: TempDir,
}

impl Service {
    /// Builds and starts a service.
    pub fn start(effort: Effort) -> Result<Self> {
        say("building");
        // The agent is not needed. With an example among the targets, cargo would build nothing else, or programs with the
        // features of tests.
        build::host_programs(effort.profile())?;
        let client = build::examples(effort.profile(), &[CLIENT])?.join(CLIENT);
        let programs = target().join(effort.profile().directory);
        let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
        let (socket, settings) = (directory.path().join("bus"), directory.path().join("config.toml"));
        let rules = directory.path().join("bus.conf");
        // The program that measures is not root.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))
            .context("cannot open the directory")?;
        fs::write(&rules, configuration(&socket)).context("cannot write the rules of the bus")?;
        fs::write(&settings, LIMITS).context("cannot write the settings of the service")?;
        let mut bus = Command::new(DAEMON)
            .args(["--nofork", "--nosyslog", "--print-address"])
            .arg(format!("--config-file={}", rules.display()))
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {DAEMON}"))?;
        let address = format!("unix:path={}", socket.display());
        let service = listens(&mut bus).and_then(|()| {
            let mut service = Command::new(programs.join("banger-system"));
            service.arg("--sim").arg("--config").arg(&settings).env(ADDRESS, &address);
            // It logs as usual.
            service.stderr(Stdio::null()).spawn().context("cannot run the service")
        });
        match service {
            Ok(service) => Ok(Self { bus, service, address, client, _directory: directory }),
            Err(error) => {
                end(&mut bus);
                Err(error)
            }
        }
    }

    /// Runs the program that measures, and returns its figures.
    pub fn measure(&self, arguments: [&str; 3]) -> Result<Value> {
        let text = output(Command::new(&self.client).args(arguments).env(ADDRESS, &self.address))?;
        serde_json::from_str(text.lines().last().unwrap_or_default()).context("it prints no figures")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        end(&mut self.service);
        end(&mut self.bus);
    }
}

/// Returns the samples with this name.
pub fn samples(figures: &Value, name: &str) -> Result<Vec<f64>> {
    let samples: Vec<f64> =
        figures[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    ensure!(!samples.is_empty(), "there are no figures of {name}");
    Ok(samples)
}

/// Waits until the bus takes connections.
fn listens(bus: &mut Child) -> Result<()> {
    let mut line = String::new();
    BufReader::new(bus.stdout.take().context("the bus has no output")?).read_line(&mut line)?;
    ensure!(line.starts_with("unix:"), "the bus does not start");
    Ok(())
}

fn end(process: &mut Child) {
    // It may have ended by itself.
    let _ = process.kill();
    let _ = process.wait();
}

/// Returns the installed rules, on a bus on which root may own every name.
fn configuration(socket: &Path) -> String {
    let ours = repository().join("dbus/dev.banger.Manager1.conf");
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
  <include>{ours}</include>
</busconfig>
"#,
        socket = socket.display(),
        ours = ours.display(),
    )
}
