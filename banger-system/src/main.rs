//! The root service of banger.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use banger_proto::causes::with_causes;
use banger_system::{
    app::{self, Mode},
    config::{self, Config},
};
use clap::Parser;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Threads for blocking calls. The unit's `TasksMax` is higher, so that work queues up instead of a thread failing to
/// start.
const BLOCKING_THREADS: usize = 384;

/// How long blocking calls may take to end with the service.
const BLOCKING_TIMEOUT: Duration = Duration::from_secs(10);

/// The root service of banger: sandboxes, images and kernels over D-Bus.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Serve a host in memory, on a private bus (DBUS_SYSTEM_BUS_ADDRESS).
    #[arg(long)]
    sim: bool,
    /// Read this configuration file.
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log();
    let mode = if arguments.sim { Mode::Sim } else { Mode::Host };
    match serve(mode, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn serve(mode: Mode, arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::read(&arguments.config)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(BLOCKING_THREADS).enable_all().build()?;
    let outcome = runtime.block_on(app::run(mode, &config));
    // What blocks has this much time to end: a name service may never answer.
    runtime.shutdown_timeout(BLOCKING_TIMEOUT);
    outcome
}

/// Logs to the journal if systemd has connected it, else to standard error.
fn log() {
    // Guests could fill the journal by what they send to the name server.
    let filter = EnvFilter::try_from_env("BANGER_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,hickory_proto=off,hickory_server=off"));
    let registry = tracing_subscriber::registry().with(filter);
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    match journal {
        Some(journal) => registry.with(journal.with_field_prefix(Some("BANGER".to_owned()))).init(),
        None => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).init(),
    }
}
