//! Import workers as transient services of systemd.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use banger_domain::{
    id::ImageId,
    resource::{self, Paths},
};
use banger_jail::jail::Jail;
use zbus::Connection;

use super::{
    units::{Kind, Properties, Units},
    worker::{self, End, Job, Workers},
};
use crate::{
    host::programs,
    ports::{host_error::Result, supervisor::Ended},
};

/// The limit of its memory and of the page cache of files that it writes. Its memory has a lower limit of its own;
/// when the page cache reaches this one, the worker waits for the disk.
const MEMORY: u64 = 4 << 30;
/// Its threads.
const TASKS: u64 = 32;

/// Killed before any sandbox of its user, whose limit of memory it shares.
const OOM_SCORE_ADJUST: i32 = 800;
/// Its share of processor time beside the user's sandboxes, which have 100 each.
const WEIGHT: u64 = 50;

/// Workers as units of the systemd on this bus.
pub struct SystemdWorkers {
    units: Units,
    paths: Paths,
}

impl SystemdWorkers {
    /// Returns workers that run the programs below these paths. Workers of an earlier run of the service are ended,
    /// since nobody waits for them.
    pub async fn new(connection: Connection, paths: Paths) -> Result<Self> {
        let units = Units::new(connection).await?;
        for unit in units.running(resource::IMPORT_UNITS).await? {
            units.remove(&unit).await?;
        }
        Ok(Self { units, paths })
    }
}

#[async_trait]
impl Workers for SystemdWorkers {
    async fn start(&self, job: Job, socket: OwnedFd) -> Result<Option<Jail>> {
        worker::make_jail(&self.paths)?;
        let kind = Kind {
            description: "Import of an image for banger",
            program: programs::worker(&self.paths),
            user: resource::import_user(job.id),
            slice: resource::slice_name(job.owner),
            oom_score_adjust: OOM_SCORE_ADJUST,
        };
        let mut list = Properties::confined(&self.paths, kind, socket)?;
        list.set("PrivateDevices", true.into())?;
        list.set("PrivateNetwork", true.into())?;
        list.set("MemoryDenyWriteExecute", true.into())?;
        // The worker's own filter covers all of this and more. But it reads hostile files, the three milliseconds do
        // not matter, and each of the two should suffice.
        list.set("RestrictAddressFamilies", (true, Vec::<&str>::new()).into())?;
        list.set("RestrictNamespaces", 0u64.into())?;
        list.set("RestrictRealtime", true.into())?;
        list.set("LockPersonality", true.into())?;
        list.set("SystemCallArchitectures", vec!["native"].into())?;
        // With a reference, the exit status can be read before systemd forgets the unit.
        list.set("AddRef", true.into())?;
        list.set("CollectMode", "inactive-or-failed".into())?;
        list.set("CPUWeight", WEIGHT.into())?;
        list.set("IOWeight", WEIGHT.into())?;
        list.set("MemoryMax", MEMORY.into())?;
        list.set("TasksMax", TASKS.into())?;
        list.set("LimitNOFILE", 1024u64.into())?;
        list.set("UMask", 0o077u32.into())?;
        self.units.start(&resource::import_unit_name(job.id), list).await?;
        Ok(None)
    }

    async fn end(&self, image: ImageId, end: End) -> Result<Ended> {
        let unit = resource::import_unit_name(image);
        if end == End::ByItself {
            // The result is seen below.
            let _ = tokio::time::timeout(worker::GRACE, self.units.ended(&unit)).await;
        }
        self.units.remove(&unit).await
    }
}
