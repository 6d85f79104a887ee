//! Import workers as transient services of systemd.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use banger_domain::{
    id::ImageId,
    resource::{self, Places},
};
use banger_jail::walls::Walls;
use zbus::Connection;

use super::{
    units::{Kind, Properties, Units},
    worker::{self, End, Job, Workers},
};
use crate::ports::{Ended, Result};

/// What its memory and the pages of the files that it writes may take. Its memory has a limit of its own; where
/// the pages reach this one, it waits for the disk.
const MEMORY: u64 = 4 << 30;
/// Its threads.
const TASKS: u64 = 32;

/// Before any sandbox of its user, whose limit of memory it shares.
const OOM_SCORE_ADJUST: i32 = 800;
/// Beside its user's sandboxes, which count 100.
const WEIGHT: u64 = 50;

/// Workers of the systemd that is reached over this bus.
pub struct SystemdWorkers {
    units: Units,
    places: Places,
}

impl SystemdWorkers {
    /// Those of our programs in these places. Workers of an earlier service, whose images nobody waits for, are
    /// ended.
    pub async fn new(connection: Connection, places: Places) -> Result<Self> {
        let units = Units::new(connection).await?;
        for unit in units.running(resource::IMPORT_UNITS).await? {
            units.remove(&unit).await?;
        }
        Ok(Self { units, places })
    }
}

#[async_trait]
impl Workers for SystemdWorkers {
    async fn start(&self, job: Job, socket: OwnedFd) -> Result<Option<Walls>> {
        worker::make_jail(&self.places)?;
        let kind = Kind {
            description: "Import of an image for banger",
            program: worker::program(&self.places),
            user: resource::import_user(job.id),
            slice: resource::slice_name(job.owner),
            oom_score_adjust: OOM_SCORE_ADJUST,
        };
        let mut list = Properties::confined(&self.places, kind, socket)?;
        list.set("PrivateDevices", true.into())?;
        list.set("PrivateNetwork", true.into())?;
        list.set("MemoryDenyWriteExecute", true.into())?;
        // The worker's own filter has all of this, and more. But it reads what strangers wrote, nobody notices the three
        // milliseconds, and either of the two lockdowns would suffice.
        list.set("RestrictAddressFamilies", (true, Vec::<&str>::new()).into())?;
        list.set("RestrictNamespaces", 0u64.into())?;
        list.set("RestrictRealtime", true.into())?;
        list.set("LockPersonality", true.into())?;
        list.set("SystemCallArchitectures", vec!["native"].into())?;
        // How it ended is read before systemd forgets it; without anybody who would, it is forgotten at once.
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
            // What it comes to is seen below.
            let _ = tokio::time::timeout(worker::GRACE, self.units.ended(&unit)).await;
        }
        self.units.remove(&unit).await
    }
}
