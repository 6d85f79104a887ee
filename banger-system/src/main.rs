//! The root service of banger.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use banger_proto::causes::with_causes;
use banger_system::{
    app::{self, Mode},
    config::{self, Config},
    log::Log,
};
use clap::Parser;

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
    let log = Log::start();
    let mode = if arguments.sim { Mode::Sim } else { Mode::Host };
    match serve(mode, &arguments, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn serve(mode: Mode, arguments: &Arguments, log: Log) -> anyhow::Result<()> {
    let config = Config::read(&arguments.config)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(BLOCKING_THREADS).enable_all().build()?;
    let outcome = runtime.block_on(app::run(mode, &config, log));
    // What blocks has this much time to end: a name service may never answer.
    runtime.shutdown_timeout(BLOCKING_TIMEOUT);
    outcome
}
