//! A new sandbox of a snapshot, for `banger vm run --from-snapshot`.

use std::str::FromStr;

use banger_proto::bus::{
    names::VM_INTERFACE,
    option::{fork, lifetime, start},
    proxy::Options,
};
use zbus::{OwnedObjectPath, Variant};

use super::vm_args::VmArgs;
use crate::{
    client::{bus::Bus, job::Jobs, object::Object, service::Kind},
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
        match text.rsplit_once('/') {
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

    /// Makes a sandbox of the snapshot, with these changes, and starts it. Returns it. If that fails, no sandbox is left. If it
    /// is `bound`, it is deleted when the connection to the bus ends.
    pub(super) async fn start(
        &self,
        vm_args: &VmArgs,
        bus: &Bus,
        jobs: &Jobs,
        progress: &Progress,
        listener: &mut Listener,
        bound: bool,
    ) -> Result<OwnedObjectPath> {
        let about = |error: Error| error.about(&self.sandbox);
        let changes = vm_args.changes()?;
        let parent = bus.find(Kind::Vm, &self.sandbox).await.map_err(about)?;
        self.require_own(bus, &bus.properties(&parent, VM_INTERFACE).await?)?;
        let mut options = Options::from([
            (fork::SNAPSHOT, Variant::from(self.snapshot.as_str())),
            (fork::LIFETIME, Variant::from(lifetime::CALLER)),
        ]);
        if let Some(name) = vm_args.name() {
            options.insert(fork::NAMES, Variant::from(vec![name]));
        }
        let (children, job) = bus.fork_vm(&parent, 1, &options).await.map_err(about)?;
        jobs.finish(bus, &job, progress.track(None), listener).await.map_err(about)?;
        let vm = children.into_iter().next().ok_or_else(|| {
            Error::Refused("the service reports success, but has made no sandbox".to_owned())
        })?;
        if !changes.is_empty() {
            bus.configure_vm(&vm, &changes).await?;
        }
        let timeout = vm_args.ready_timeout().map(|timeout| (start::READY_TIMEOUT, Variant::from(timeout)));
        let job = bus.change_vm(&vm, "Start", &timeout.into_iter().collect()).await?;
        jobs.finish(bus, &job, progress.track(None), listener).await?;
        if !bound {
            bus.set_lifetime(&vm, lifetime::PERSISTENT).await?;
        }
        Ok(vm)
    }

    /// Refuses a sandbox of another user: files and credentials of the caller would go into what is that user's.
    fn require_own(&self, bus: &Bus, sandbox: &Object) -> Result<()> {
        match bus.is_own(sandbox) {
            true => Ok(()),
            false => Err(Error::Refused(format!("{} belongs to another user", self.sandbox)).with_hint(
                "`banger vm fork --from-snapshot SNAPSHOT SANDBOX` makes a sandbox for its owner.",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_with_its_sandbox() {
        let name = SnapshotName { sandbox: "web".to_owned(), snapshot: "clean".to_owned() };
        assert_eq!("web/clean".parse(), Ok(name));
        let of_other = SnapshotName { sandbox: "alice/web".to_owned(), snapshot: "clean".to_owned() };
        assert_eq!("alice/web/clean".parse(), Ok(of_other));
        for text in ["clean", "web/", "/clean", "/", ""] {
            assert!(text.parse::<SnapshotName>().is_err(), "{text}");
        }
    }
}
