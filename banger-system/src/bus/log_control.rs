//! `org.freedesktop.LogControl1`, by which `systemctl service-log-level` reads and sets how much is logged
//! (org.freedesktop.LogControl1(5)). Everybody may read it, and only root set it: a debug log has more about other users.

use std::sync::{Arc, Weak};

use banger_domain::id::Uid;
use zbus::{fdo, interface, message::Header};

use super::{api::Api, caller::Caller, export::api};
use crate::log::{Level, Log};

const PATH: &str = "/org/freedesktop/LogControl1";
const IDENTIFIER: &str = "banger-system";

struct LogControl {
    api: Weak<Api>,
    log: Log,
}

impl LogControl {
    /// Returns the caller, if that is root.
    async fn require_root(&self, header: Option<Header<'_>>) -> fdo::Result<Caller> {
        let denied = |why: String| fdo::Error::AccessDenied(why);
        let header = header.ok_or_else(|| denied("the call has no sender".to_owned()))?;
        let api = api(&self.api).map_err(|error| fdo::Error::Failed(error.message))?;
        let caller = api.callers.of(&header).await.map_err(|error| denied(error.message))?;
        match caller.uid {
            Uid::ROOT => Ok(caller),
            _ => Err(denied("only root may change the log".to_owned())),
        }
    }
}

/// The log.
#[interface(name = "org.freedesktop.LogControl1", introspection_docs = false)]
impl LogControl {
    #[zbus(property(emits_changed_signal = "false"))]
    async fn log_level(&self) -> String {
        self.log.level().as_str().to_owned()
    }

    #[zbus(property)]
    async fn set_log_level(
        &self,
        level: String,
        #[zbus(header)] header: Option<Header<'_>>,
    ) -> fdo::Result<()> {
        self.require_root(header).await?;
        let words = Level::ALL.map(Level::as_str).join(", ");
        let wrong = || fdo::Error::InvalidArgs(format!("the level must be one of {words}"));
        let level = Level::parse(&level).ok_or_else(wrong)?;
        // Logged while the more talkative one of both levels applies.
        let note = || tracing::warn!(level = level.as_str(), "root changes the level of the log");
        let is_less = level < self.log.level();
        if is_less {
            note();
        }
        self.log.set_level(level);
        if !is_less {
            note();
        }
        Ok(())
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn log_target(&self) -> String {
        self.log.target().as_str().to_owned()
    }

    #[zbus(property)]
    async fn set_log_target(
        &self,
        target: String,
        #[zbus(header)] header: Option<Header<'_>>,
    ) -> fdo::Result<()> {
        self.require_root(header).await?;
        let own = self.log.target().as_str();
        match target.as_str() {
            // `auto` means the best target, which is the only one.
            "auto" => Ok(()),
            target if target == own => Ok(()),
            _ => Err(fdo::Error::NotSupported(format!("the log goes to {own} until the service ends"))),
        }
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn syslog_identifier(&self) -> String {
        IDENTIFIER.to_owned()
    }
}

/// Exports the log.
pub async fn export(api: &Arc<Api>, log: Log) -> zbus::Result<()> {
    let control = LogControl { api: Arc::downgrade(api), log };
    api.connection.object_server().at(PATH, control).await.map(drop)
}
