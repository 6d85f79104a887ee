//! The notifications of the desktop.
//! See <https://specifications.freedesktop.org/notification-spec/latest/>

use std::collections::HashMap;

use zbus::{Connection, Variant, proxy};

use crate::news::Note;

/// How many notifications are remembered, to replace them.
const REMEMBERED: usize = 64;
/// What an icon theme calls a computer.
const ICON: &str = "computer";

#[proxy(
    interface = "org.freedesktop.Notifications",
    default_service = "org.freedesktop.Notifications",
    default_path = "/org/freedesktop/Notifications"
)]
trait Notifications {
    /// Shows a notification and returns its id.
    #[allow(clippy::too_many_arguments, reason = "these are the specification's")]
    fn notify(
        &self,
        app_name: &str,
        replaces_id: u32,
        app_icon: &str,
        summary: &str,
        body: &str,
        actions: &[&str],
        hints: HashMap<&str, Variant<'_>>,
        expire_timeout: i32,
    ) -> zbus::Result<u32>;

    /// Returns what the desktop can do.
    fn get_capabilities(&self) -> zbus::Result<Vec<String>>;
}

/// The desktop of the user.
pub struct Desktop {
    session: Connection,
    /// The ids of the last notifications, by what they are about.
    shown: HashMap<String, u32>,
}

impl Desktop {
    /// Takes the connection to the session bus.
    pub fn new(session: Connection) -> Self {
        Self { session, shown: HashMap::new() }
    }

    /// Shows a note. A desktop that shows none is not an error: the service has its own logs.
    pub async fn show(&mut self, note: &Note) {
        match self.notify(note).await {
            Ok(id) => {
                if self.shown.len() >= REMEMBERED {
                    self.shown.clear();
                }
                self.shown.insert(note.about.clone(), id);
            }
            Err(error) => eprintln!("banger-notify: cannot show a notification: {error}"),
        }
    }

    async fn notify(&self, note: &Note) -> zbus::Result<u32> {
        let notifications = NotificationsProxy::new(&self.session).await?;
        let capabilities = notifications.get_capabilities().await.unwrap_or_default();
        let has_markup = capabilities.iter().any(|capability| capability == "body-markup");
        let body = if has_markup { escaped(&note.body) } else { note.body.clone() };
        let urgency: u8 = if note.is_failure { 1 } else { 0 };
        let hints = HashMap::from([("urgency", Variant::from(urgency))]);
        let replaces = self.shown.get(&note.about).copied().unwrap_or_default();
        notifications.notify("banger", replaces, ICON, &note.summary, &body, &[], hints, -1).await
    }
}

/// Returns a text that is the same text where markup is read.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_markup() {
        assert_eq!(escaped("<a href='x'>&lt;"), "&lt;a href='x'&gt;&amp;lt;");
    }
}
