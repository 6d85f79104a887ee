//! How far a guest has come before a verb goes on.

use banger_proto::guest::{Request, message::Phase};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{error::Result, guest::Guest, progress::Track};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// The agent in the guest answers
    Agent,
    /// The early part of the boot is over: file systems are mounted, /tmp was emptied, and systemctl works
    #[default]
    Init,
    /// The image's init has started everything that it starts at boot
    Boot,
}

impl Wait {
    /// As the agent knows it.
    pub fn phase(self) -> Phase {
        match self {
            Wait::Agent => Phase::Agent,
            Wait::Init => Phase::Init,
            Wait::Boot => Phase::Boot,
        }
    }
}

/// Waits for the rest of a boot. That the agent answers is what a start has waited for already.
pub async fn until(guest: &mut Guest, wait: Option<Wait>, track: &Track) -> Result<()> {
    let phase = match wait {
        None | Some(Wait::Agent) => return Ok(()),
        Some(wait) => wait.phase(),
    };
    track.stage("boot", "waiting for the guest's init");
    guest.call(Request::Wait(phase), |call| call.finish()).await
}
