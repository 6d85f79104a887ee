//! A new sandbox of a snapshot, for `banger vm run --from-snapshot`.

use std::str::FromStr;

use banger_proto::bus::{
    option::{fork, start},
    proxy::Options,
};
use zbus::{OwnedObjectPath, Variant};

use super::vm_args::VmArgs;
use crate::{
    client::{bus::Bus, job::Jobs, service::Kind},
    error::{Error, Result},
    ui::{progress::Progress, signals::Listener},
};

/// A snapshot, with the sandbox that it was made of: SANDBOX/SNAPSHOT.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotName {
    sandbox: String,
    snapshot: String,
}

impl FromStr for SnapshotName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((sandbox, snapshot)) if !sandbox.is_empty() && !snapshot.is_empty() => {
                Ok(Self { sandbox: sandbox.to_owned(), snapshot: snapshot.to_owned() })
            }
            _ => Err("a snapshot is named together with its sandbox: SANDBOX/SNAPSHOT"),
        }
    }
}

impl SnapshotName {
    /// Returns the name of the sandbox that it was made of.
    pub fn sandbox(&self) -> &str {
        &self.sandbox
    }

    /// Makes a sandbox of the snapshot, with these changes, and begins to start it. Returns it, and the job that starts
    /// it.
    pub async fn start(
        &self,
        vm_args: &VmArgs,
        (bus, jobs): (&Bus, &Jobs),
        progress: &Progress,
        listener: &mut Listener,
        lifetime: &'static str,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath)> {
        let changes = vm_args.changes()?;
        let parent = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        let mut options = Options::from([
            (fork::SNAPSHOT, Variant::from(self.snapshot.as_str())),
            (fork::LIFETIME, Variant::from(lifetime)),
        ]);
        if let Some(name) = vm_args.name() {
            options.insert(fork::NAMES, Variant::from(vec![name]));
        }
        let forked = bus.fork_vm(&parent, 1, &options).await;
        let (children, job) = forked.map_err(|error| error.about(&self.sandbox))?;
        let [vm] = <[_; 1]>::try_from(children)
            .map_err(|_| Error::Refused("the service made another number of sandboxes".to_owned()))?;
        jobs.finish(bus, &job, progress.track(None), listener)
            .await
            .map_err(|error| error.about(&self.sandbox))?;
        let started = begin(bus, &vm, &changes, vm_args.ready_timeout()).await;
        if started.is_err() {
            // The sandbox is of no use. What could not be deleted is in the list.
            let _ = bus.change_vm(&vm, "Delete", &Options::new()).await;
        }
        Ok((vm, started?))
    }
}

/// Changes a sandbox, and begins to start it. Returns the job.
async fn begin(
    bus: &Bus,
    vm: &OwnedObjectPath,
    changes: &Options<'_>,
    ready_timeout: Option<u64>,
) -> Result<OwnedObjectPath> {
    if !changes.is_empty() {
        bus.configure_vm(vm, changes).await?;
    }
    let options =
        ready_timeout.map(|timeout| (start::READY_TIMEOUT, Variant::from(timeout))).into_iter().collect();
    bus.change_vm(vm, "Start", &options).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_with_its_sandbox() {
        let name = SnapshotName { sandbox: "web".to_owned(), snapshot: "clean".to_owned() };
        assert_eq!("web/clean".parse(), Ok(name));
        for text in ["clean", "web/", "/clean", "/", ""] {
            assert!(text.parse::<SnapshotName>().is_err(), "{text}");
        }
    }
}
