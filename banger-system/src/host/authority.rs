//! polkit, asked about a connection of the bus. Any doubt is a no.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use zbus::{Connection, Message};
use zbus_polkit::policykit1::{AuthorityProxy, AuthorizationResult, CheckAuthorizationFlags, Subject};

use crate::ports::{Authority, Interaction, Question, Verdict};

/// How long an answer may take for which nobody is asked.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a person may take to authenticate.
const PATIENCE: Duration = Duration::from_secs(120);

/// The authority of the system bus.
pub struct Polkit {
    connection: Connection,
    asked: AtomicU64,
}

impl Polkit {
    /// The authority that is reached over this bus.
    pub fn new(connection: Connection) -> Self {
        Self { connection, asked: AtomicU64::new(0) }
    }

    async fn ask(&self, question: &Question, cancellation: &str) -> zbus::Result<AuthorizationResult> {
        let authority = AuthorityProxy::new(&self.connection).await?;
        let details =
            question.details.iter().map(|(key, value)| (*key, value.as_str())).collect::<HashMap<_, _>>();
        let flags = match question.interaction {
            Interaction::Allowed => CheckAuthorizationFlags::ALLOW_USER_INTERACTION,
            Interaction::Forbidden => CheckAuthorizationFlags::empty(),
        };
        // The crate makes a subject of a connection from the header of a message only.
        let message = Message::method_call("/", "Subject").sender(question.connection.as_str()).build(&())?;
        let subject = Subject::new_for_message_header(&message.header())
            .map_err(|error| zbus::Error::Failure(error.to_string()))?;
        authority.check_authorization(&subject, question.action, &details, flags, cancellation).await
    }

    async fn cancel(&self, cancellation: &str) {
        let canceled = async {
            AuthorityProxy::new(&self.connection).await?.cancel_check_authorization(cancellation).await
        };
        if let Err(error) = canceled.await {
            tracing::debug!(%error, "cannot cancel a question to polkit");
        }
    }
}

#[async_trait]
impl Authority for Polkit {
    async fn check(&self, question: Question) -> Verdict {
        let cancellation = format!("banger-{}", self.asked.fetch_add(1, Ordering::Relaxed));
        let timeout = match question.interaction {
            Interaction::Allowed => PATIENCE,
            Interaction::Forbidden => TIMEOUT,
        };
        match tokio::time::timeout(timeout, self.ask(&question, &cancellation)).await {
            Ok(Ok(result)) => verdict(&result, question.interaction),
            Ok(Err(error)) => {
                tracing::warn!(action = question.action, %error, "polkit does not answer");
                Verdict::No("polkit does not answer, so only root may do this".to_owned())
            }
            Err(_) => {
                self.cancel(&cancellation).await;
                Verdict::No("nobody authenticated in time".to_owned())
            }
        }
    }
}

fn verdict(result: &AuthorizationResult, interaction: Interaction) -> Verdict {
    let no = |why: &str| Verdict::No(why.to_owned());
    if result.is_authorized {
        return Verdict::Yes;
    }
    if result.details.contains_key("polkit.dismissed") {
        return no("the authentication was dismissed");
    }
    match (result.is_challenge, interaction) {
        (true, Interaction::Forbidden) => Verdict::NeedsInteraction,
        (true, Interaction::Allowed) => no(
            "authentication is needed and no authentication agent is there; members of the group banger need none",
        ),
        (false, _) => no("you are not allowed to do this; members of the group banger are"),
    }
}
