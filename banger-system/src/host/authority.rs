//! Asks polkit whether a D-Bus client is authorised. Any doubt means no.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use banger_proto::bus::names::action;
use zbus::{Connection, DBusError, Message, fdo};
use zbus_polkit::policykit1::{AuthorityProxy, AuthorizationResult, CheckAuthorizationFlags, Subject};

use crate::ports::authority::{Authority, Interaction, Question, Verdict};

/// How long polkit may take to answer without asking anybody. The bus gives it 25 seconds to start and then reports a
/// failure; a busy host needs more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a person may take to authenticate.
const PERSON_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest message of polkit that is passed on.
const MAX_REASON: usize = 200;

/// The authority of the system bus.
pub struct Polkit {
    connection: Connection,
    asked: AtomicU64,
    answer: Duration,
}

impl Polkit {
    /// Returns the authority that is reached over this bus.
    pub fn new(connection: Connection) -> Self {
        Self::with_timeout(connection, ANSWER_TIMEOUT)
    }

    /// Returns the same with another timeout for answers without a prompt.
    pub fn with_timeout(connection: Connection, answer: Duration) -> Self {
        Self { connection, asked: AtomicU64::new(0), answer }
    }

    async fn ask(&self, question: &Question, cancellation: &str) -> zbus::Result<AuthorizationResult> {
        let authority = AuthorityProxy::new(&self.connection).await?;
        let details =
            question.details.iter().map(|(key, value)| (*key, value.as_str())).collect::<HashMap<_, _>>();
        let flags = match question.interaction {
            Interaction::Allowed => CheckAuthorizationFlags::ALLOW_USER_INTERACTION,
            Interaction::Forbidden => CheckAuthorizationFlags::empty(),
        };
        // The crate can make a subject only from the header of a message.
        let message = Message::method_call("/", "Subject").sender(question.connection.as_str()).build(&())?;
        let subject = Subject::new_for_message_header(&message.header())
            .map_err(|error| zbus::Error::Failure(error.to_string()))?;
        authority.check_authorization(&subject, question.action, &details, flags, cancellation).await
    }
}

/// A question that polkit is working on. Dropping it closes the dialog.
struct PendingQuestion {
    connection: Connection,
    cancellation: String,
    answered: bool,
}

impl Drop for PendingQuestion {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let (connection, cancellation) = (self.connection.clone(), std::mem::take(&mut self.cancellation));
        // Without a runtime the service is ending, and polkit sees its connection close.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = cancel(&connection, &cancellation).await {
                    tracing::debug!(%error, "cannot cancel a request to polkit");
                }
            });
        }
    }
}

async fn cancel(connection: &Connection, cancellation: &str) -> zbus::Result<()> {
    AuthorityProxy::new(connection).await?.cancel_check_authorization(cancellation).await
}

#[async_trait]
impl Authority for Polkit {
    async fn check(&self, question: Question) -> Verdict {
        let cancellation = format!("banger-{}", self.asked.fetch_add(1, Ordering::Relaxed));
        let timeout = match question.interaction {
            Interaction::Allowed => PERSON_TIMEOUT,
            Interaction::Forbidden => self.answer,
        };
        let mut open = PendingQuestion {
            connection: self.connection.clone(),
            cancellation: cancellation.clone(),
            answered: false,
        };
        let answer = tokio::time::timeout(timeout, self.ask(&question, &cancellation)).await;
        open.answered = answer.is_ok();
        match answer {
            Ok(Ok(result)) => verdict(&result, &question),
            Ok(Err(error)) => {
                tracing::warn!(action = question.action, %error, "polkit cannot decide");
                verdict_of_error(&error)
            }
            Err(_) if question.interaction == Interaction::Allowed => {
                Verdict::No("nobody authenticated in time".to_owned())
            }
            Err(_) => {
                tracing::warn!(action = question.action, ?timeout, "polkit does not answer");
                let seconds = timeout.as_secs();
                Verdict::Undecided(format!("polkit has not answered for {seconds} s; try again"))
            }
        }
    }
}

/// Maps an error in place of an answer to a verdict. It is never a yes.
fn verdict_of_error(error: &zbus::Error) -> Verdict {
    let text = match error {
        // The name has no owner, and none could be started.
        zbus::Error::FDO(error)
            if matches!(**error, fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_)) =>
        {
            return Verdict::No("polkit is not installed or is masked, so only root may do this".to_owned());
        }
        zbus::Error::FDO(error) => error.description().unwrap_or_default().to_owned(),
        zbus::Error::MethodError(name, text, _) => text.as_deref().unwrap_or(name.as_str()).to_owned(),
        other => other.to_string(),
    };
    let text: String = text.chars().take(MAX_REASON).collect();
    Verdict::Undecided(format!("polkit cannot decide: {text}"))
}

fn verdict(result: &AuthorizationResult, question: &Question) -> Verdict {
    let no = |why: &str| Verdict::No(why.to_owned());
    if result.is_authorized {
        return Verdict::Yes;
    }
    if result.details.contains_key("polkit.dismissed") {
        return no("the authentication was dismissed");
    }
    let is_of_group = action::OF_GROUP.contains(&question.action);
    match (result.is_challenge, question.interaction, is_of_group) {
        (true, Interaction::Forbidden, _) => Verdict::NeedsInteraction,
        (true, Interaction::Allowed, true) => no(
            "an administrator has to authenticate, but no polkit agent is running to ask one; members of the group banger need not",
        ),
        (true, Interaction::Allowed, false) => {
            no("an administrator has to authenticate, but no polkit agent is running to ask one")
        }
        (false, _, true) => no("you are not allowed to do this; members of the group banger are"),
        (false, _, false) => no("you are not allowed to do this"),
    }
}
