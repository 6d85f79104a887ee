//! `banger vm create`.

use banger_proto::bus::{option::create, proxy::Options};
use clap::Args;
use zbus::Variant;

use super::{
    created::{about, explain, kept, print_created},
    vm_args::VmArgs,
    wait::{self, Wait},
};
use crate::{
    client::{bus::Bus, job::Jobs},
    error::Result,
    guest::agent::Guest,
    ssh::installed,
    ui::{
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
    user::{settings::Settings, user_files},
};

/// Create a sandbox and start it
///
/// Returns when the guest's agent answers, and prints the name of the sandbox.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm create --name web --vcpu 2 --memory 2GiB
  name=$(banger vm create --quiet)

Next: `banger vm exec NAME` opens a shell in it.")]
pub struct Create {
    /// Create the sandbox without starting it
    #[arg(long)]
    no_start: bool,
    /// Phase of the boot to wait for [default: agent]
    #[arg(long, value_name = "PHASE", conflicts_with = "no_start")]
    wait: Option<Wait>,
    /// Print the sandbox as a JSON object instead of its name
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    vm_args: VmArgs,
}

impl Create {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        // Reads the settings first, so that mistakes are reported before a sandbox is created.
        let settings = self.vm_args.settings()?;
        let vm_args = self.vm_args.with(&settings);
        let bus = Bus::connect().await?;
        let jobs = Jobs::of(&bus);
        let start = Options::from([(create::START, Variant::from(!self.no_start))]);
        let mut listener = Signals::catch()?.listen();
        let (vm, job) = vm_args.create(&bus, &jobs, &progress, &mut listener, start).await?;
        match jobs.finish(&bus, &job, progress.track(None), &mut listener).await {
            Ok(_) => {
                installed::refresh(&bus).await;
                if !self.no_start {
                    let mut guest = Guest::new(bus.clone(), vm.clone(), listener);
                    if let Err(error) = self.set_up(&mut guest, &settings, &progress).await {
                        if self.json && error.is_interrupted() {
                            // The sandbox is kept. A program that ended this can delete it by its id.
                            let _ = print_created(&bus, &vm, self.json).await;
                        }
                        return Err(about(&bus, &vm, kept(error)).await);
                    }
                }
                print_created(&bus, &vm, self.json).await
            }
            Err(error) => Err(explain(&bus, &vm, error).await),
        }
    }

    /// Sends the user's files, and waits for the boot phase.
    async fn set_up(&self, guest: &mut Guest, settings: &Settings, progress: &Progress) -> Result<()> {
        for problem in user_files::send(guest, settings).await? {
            progress.note(&format!("warning: {problem}"));
        }
        wait::until(guest, self.wait, &progress.track(None)).await
    }
}
