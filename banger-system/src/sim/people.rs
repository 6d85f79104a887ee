//! The authority, the accounts, the clock and the boot of the host in memory.

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use banger_domain::{clock::Occasion, id::Uid};

use super::Sim;
use crate::ports::{
    FromHost as _,
    authority::{Authority, Question, Verdict},
    clock::{self, Clock},
    host_boot::{self, HostBoot},
    users::{self, Users},
};

#[async_trait]
impl Authority for Sim {
    async fn check(&self, _question: Question) -> Verdict {
        self.lock().verdict.clone().unwrap_or(Verdict::Yes)
    }
}

#[async_trait]
impl Users for Sim {
    /// Accepts numbers, and `userN` for user N.
    async fn uid_of(&self, login: &str) -> users::Result<Option<Uid>> {
        Ok(login.strip_prefix("user").unwrap_or(login).parse().ok().map(Uid))
    }

    async fn login_of(&self, uid: Uid) -> users::Result<Option<String>> {
        if self.lock().accounts_lost {
            return Err(users::Error::not_ready("the name service does not answer"));
        }
        Ok(Some(format!("user{uid}")))
    }
}

#[async_trait]
impl HostBoot for Sim {
    fn is_first_run(&self) -> bool {
        self.lock().has_booted
    }

    async fn note_run(&self) -> host_boot::Result<()> {
        self.lock().has_booted = false;
        Ok(())
    }

    async fn want_service(&self, wanted: bool) -> host_boot::Result<()> {
        self.lock().wanted_at_boot = wanted;
        Ok(())
    }
}

#[async_trait]
impl Clock for Sim {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    async fn due(&self) -> clock::Result<Occasion> {
        let (changed, passed) = {
            let state = self.lock();
            (Arc::clone(&state.clock_changed), Arc::clone(&state.minute_passed))
        };
        Ok(tokio::select! {
            () = changed.notified() => Occasion::Jump,
            () = passed.notified() => Occasion::Regular,
        })
    }
}
