//! Waits for a phase of a guest's boot.

use banger_proto::guest::{Request, message::Phase};
use clap::ValueEnum;
use serde::Serialize;

use crate::{error::Result, guest::agent::Guest, ui::progress::Track};

/// The phase to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// The agent in the guest answers
    Agent,
    /// The early part of the boot is over: file systems are mounted, /tmp is empty, systemctl works
    #[default]
    Init,
    /// The boot is complete: the image's init has started its services
    Boot,
}

impl Wait {
    /// Returns the phase of the guest protocol.
    pub fn phase(self) -> Phase {
        match self {
            Wait::Agent => Phase::Agent,
            Wait::Init => Phase::Init,
            Wait::Boot => Phase::Boot,
        }
    }
}

/// Waits for the rest of a boot. The start has already waited for the agent.
pub async fn until(guest: &mut Guest, wait: Option<Wait>, track: &Track) -> Result<()> {
    let phase = match wait {
        None | Some(Wait::Agent) => return Ok(()),
        Some(wait) => wait.phase(),
    };
    track.stage("boot", "waiting for the guest's init");
    guest.call(Request::Wait(phase), |call| call.finish()).await
}
