//! A scripted polkit on the bus. By default it decides as the real one does with the packaged rules.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zbus::{Connection, OwnedVariant, Type, fdo::DBusProxy, interface, names::BusName};

use super::{
    ALICE, BOB, Bus,
    policy::{self, Group, Session, decide},
};

/// An answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
    /// It fails.
    Fails,
    /// An administrator has to authenticate, and no agent can ask one.
    NoAgent,
    /// An administrator has to authenticate, and does so.
    Password,
    /// An administrator closes the dialog.
    Dismissed,
    /// An administrator leaves the dialog open: no answer, as with [`Answer::Silence`].
    OpenDialog,
    /// No answer, until the question is cancelled or [`Polkit::release`] answers yes.
    Silence,
}

impl From<policy::Decision> for Answer {
    fn from(decision: policy::Decision) -> Self {
        match decision {
            policy::Decision::Yes => Self::Yes,
            policy::Decision::No => Self::No,
            policy::Decision::Password => Self::NoAgent,
        }
    }
}

/// A question that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedQuestion {
    pub uid: u32,
    pub action: String,
    pub details: HashMap<String, String>,
    pub interactive: bool,
}

#[derive(Clone)]
pub struct Polkit {
    shared: Arc<Shared>,
    connection: Connection,
}

struct Shared {
    answers: Mutex<HashMap<(u32, String), Answer>>,
    questions: Mutex<Vec<RecordedQuestion>>,
    canceled: watch::Sender<Vec<String>>,
    released: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Polkit {
    pub async fn start(bus: &Bus) -> Self {
        let shared = Arc::new(Shared {
            answers: Mutex::default(),
            questions: Mutex::default(),
            canceled: watch::Sender::default(),
            released: watch::Sender::default(),
            waiting: watch::Sender::default(),
        });
        let connection = bus.connect(0).await;
        let authority = Authority { shared: Arc::clone(&shared) };
        connection.object_server().at("/org/freedesktop/PolicyKit1/Authority", authority).await.unwrap();
        connection.request_name("org.freedesktop.PolicyKit1").await.unwrap();
        Self { shared, connection }
    }

    /// Sets the answer for a user and an action.
    pub fn answer(&self, uid: u32, action: &str, answer: Answer) {
        self.shared.answers.lock().unwrap().insert((uid, action.to_owned()), answer);
    }

    /// Returns the questions since the last call of this.
    pub fn questions(&self) -> Vec<RecordedQuestion> {
        std::mem::take(&mut *self.shared.questions.lock().unwrap())
    }

    /// Waits until this many questions are unanswered.
    pub async fn until_waiting(&self, count: usize) {
        super::within_timeout(self.shared.waiting.subscribe().wait_for(|waiting| *waiting == count))
            .await
            .unwrap();
    }

    /// Returns how many questions are unanswered.
    pub fn waiting(&self) -> usize {
        *self.shared.waiting.borrow()
    }

    /// Answers yes to all waiting and later questions.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// Disconnects from the bus.
    pub async fn stop(self) {
        self.connection.release_name("org.freedesktop.PolicyKit1").await.unwrap();
    }
}

struct Authority {
    shared: Arc<Shared>,
}

/// `(sa{sv})`
#[derive(Deserialize, Type)]
struct Subject {
    kind: String,
    details: HashMap<String, OwnedVariant>,
}

/// `(bba{ss})`
#[derive(Serialize, Type, Default)]
struct Decision {
    is_authorized: bool,
    is_challenge: bool,
    details: HashMap<String, String>,
}

#[interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    async fn check_authorization(
        &self,
        subject: Subject,
        action: String,
        details: HashMap<String, String>,
        flags: u32,
        cancellation: String,
        #[zbus(connection)] connection: &Connection,
    ) -> zbus::fdo::Result<Decision> {
        assert_eq!(subject.kind, "system-bus-name", "any other subject can be faked");
        let name = String::try_from(subject.details["name"].clone()).unwrap();
        let bus = DBusProxy::new(connection).await?;
        let uid = bus.get_connection_unix_user(BusName::try_from(name).unwrap()).await?;
        let interactive = flags & 1 != 0;
        let answer = self.shared.answers.lock().unwrap().get(&(uid, action.clone())).copied();
        let answer = answer.unwrap_or_else(|| usual(uid, &action));
        self.shared.questions.lock().unwrap().push(RecordedQuestion { uid, action, details, interactive });
        let yes = Decision { is_authorized: true, ..Decision::default() };
        let challenge = Decision { is_challenge: true, ..Decision::default() };
        Ok(match answer {
            Answer::Yes => yes,
            Answer::No => Decision::default(),
            Answer::Fails => return Err(zbus::fdo::Error::NoReply("it is too busy".to_owned())),
            Answer::NoAgent => challenge,
            Answer::Password | Answer::Dismissed | Answer::OpenDialog if !interactive => challenge,
            Answer::Password => yes,
            Answer::Dismissed => Decision {
                details: HashMap::from([("polkit.dismissed".to_owned(), "true".to_owned())]),
                ..Decision::default()
            },
            Answer::OpenDialog | Answer::Silence => {
                self.wait(&cancellation).await?;
                yes
            }
        })
    }

    async fn cancel_check_authorization(&self, cancellation: String) {
        self.shared.canceled.send_modify(|canceled| canceled.push(cancellation));
    }
}

impl Authority {
    async fn wait(&self, cancellation: &str) -> zbus::fdo::Result<()> {
        self.shared.waiting.send_modify(|waiting| *waiting += 1);
        let (mut canceled, mut released) =
            (self.shared.canceled.subscribe(), self.shared.released.subscribe());
        let result = tokio::select! {
            _ = canceled.wait_for(|all| all.iter().any(|id| id == cancellation)) => {
                Err(zbus::fdo::Error::Failed("canceled".to_owned()))
            }
            _ = released.wait_for(|released| *released) => Ok(()),
        };
        self.shared.waiting.send_modify(|waiting| *waiting -= 1);
        result
    }
}

/// Decides like the packaged rules, for sessions without a seat: Alice and Bob are in the group banger.
fn usual(uid: u32, action: &str) -> Answer {
    let group = if [ALICE, BOB].contains(&uid) { Group::Member } else { Group::Other };
    decide(action, Session::Elsewhere, group).into()
}
