//! Runs the commands of a devcontainer.json in a sandbox: those of its creation once, those of a boot once for each
//! boot, and those of a shell for each shell.
//!
//! The commands of one moment run at the same time. If one fails, its last lines are shown, those of later moments are
//! skipped, and the sandbox stays as it is, so that the user can look into it.

use std::collections::BTreeMap;

use banger_proto::bus::{names::VM_INTERFACE, option::agent};
use futures_util::future::join_all;
use zbus::OwnedObjectPath;

use super::{
    commands::{Command, Moment},
    setup::Creation,
};
use crate::{
    client::{bus::Bus, object::Object, service::id_of},
    error::{Error, Result},
    guest::{agent::Guest, attach},
    ui::{
        progress::Progress,
        sanitize,
        signals::{Listener, unless_ended},
    },
    workspace::{
        record::{Record, Records, StoredWorkspace},
        tooling,
    },
};

/// Runs the commands of workspaces in one sandbox.
pub struct Lifecycle<'a> {
    /// The connection to the service.
    pub bus: &'a Bus,
    /// The sandbox.
    pub vm: &'a OwnedObjectPath,
    /// Variables of the commands that no record keeps: the user's proxies.
    pub proxies: &'a BTreeMap<String, String>,
    /// Where to report what happens.
    pub progress: &'a Progress,
    /// The signals of the user.
    pub listener: &'a Listener,
}

/// Returns the workspaces that have to be set up after a boot of a sandbox, and were not for its last one.
pub async fn set_up_at_boot(bus: &Bus, vm: &OwnedObjectPath) -> Result<Vec<StoredWorkspace>> {
    let mut all = Records::of(&id_of(vm))?.all();
    all.retain(|kept| kept.record.setup.needs_boot());
    if !all.is_empty() {
        let started_at = bus.properties(vm, VM_INTERFACE).await?.number("StartedAt");
        all.retain(|kept| kept.record.setup.boot != started_at);
    }
    Ok(all)
}

impl Lifecycle<'_> {
    /// Sets up a new workspace, and saves its record.
    pub async fn create(&self, kept: &mut StoredWorkspace, creation: Creation) -> Result<()> {
        // From now on, other commands leave this boot to this one.
        kept.record.setup.boot = self.sandbox().await?.number("StartedAt");
        kept.store_creation()?;
        self.mount(&kept.record).await?;
        for (moment, commands) in &creation {
            if !self.run(&kept.record, *moment, commands).await? {
                return Ok(());
            }
        }
        self.run(&kept.record, Moment::PostStart, &kept.record.setup.later.start).await.map(drop)
    }

    /// Sets up a workspace after a boot, unless this was done for this boot.
    pub async fn boot(&self, kept: &StoredWorkspace) -> Result<()> {
        if !kept.record.setup.needs_boot() || !kept.claim_boot(self.sandbox().await?.number("StartedAt"))? {
            return Ok(());
        }
        self.mount(&kept.record).await?;
        self.run(&kept.record, Moment::PostStart, &kept.record.setup.later.start).await.map(drop)
    }

    /// Starts the commands of a shell in the background, because some of them never end.
    pub async fn attach(&self, record: &Record) -> Result<()> {
        let name = self.sandbox().await?.name().to_owned();
        let mut listener = self.listener.resubscribe();
        for command in &record.setup.later.attach {
            let stream =
                unless_ended(&mut listener, self.bus.open_agent(self.vm, agent::COMMAND, None)).await?;
            let exec = banger_proto::guest::Exec {
                detach: true,
                ..tooling::exec(&record.with_variables(self.proxies), command)
            };
            match unless_ended(&mut listener, attach::detach(stream, &exec)).await {
                Ok(Some(id)) => self.progress.note(&format!(
                    "note: the {} runs in the background; `banger vm logs --exec={id} {name}` shows its output.",
                    Moment::PostAttach.key()
                )),
                Ok(None) => {}
                Err(Error::Guest(failure)) => {
                    self.warn(Moment::PostAttach, "", &format!(": {}", failure.message), "");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Runs the commands of a moment at the same time. Returns whether all have succeeded.
    async fn run<'c>(&self, record: &Record, moment: Moment, commands: &'c [Command]) -> Result<bool> {
        let track = self.progress.track(None);
        let (stage, record) = (&track, &record.with_variables(self.proxies));
        let run = |command: &'c Command| async move {
            stage.stage("setup", moment.key());
            tooling::run(&mut self.guest(), record, command).await
        };
        let ended = join_all(commands.iter().map(run)).await;
        drop(track);
        let mut all = true;
        for ended in ended {
            let (said, why) = match ended {
                Ok((0, _)) => continue,
                Ok((status, said)) => (tooling::last_lines(&said), format!(" with status {status}")),
                Err(Error::Guest(failure)) => (String::new(), format!(": {}", failure.message)),
                Err(error) => return Err(error),
            };
            all = false;
            let hint = match self.proxies.is_empty() && !self.sandbox().await?.has_egress() {
                false => "",
                true => " Without `--nat` or `--egress` the sandbox has no internet access.",
            };
            self.warn(moment, &said, &why, hint);
        }
        Ok(all)
    }

    fn warn(&self, moment: Moment, said: &str, why: &str, hint: &str) {
        // The command may have something of the user's environment in it.
        let (key, why) = (moment.key(), sanitize::line(why));
        self.progress.note(&format!("{said}warning: the {key} failed{why}.{hint}"));
    }

    async fn mount(&self, record: &Record) -> Result<()> {
        if let Err(said) = tooling::mount(&mut self.guest(), &record.setup.tmpfs).await? {
            self.progress.note(&format!("{said}warning: not all mounts could be made."));
        }
        Ok(())
    }

    async fn sandbox(&self) -> Result<Object> {
        self.bus.properties(self.vm, VM_INTERFACE).await
    }

    fn guest(&self) -> Guest {
        Guest::new(self.bus.clone(), self.vm.clone(), self.listener.resubscribe())
    }
}
