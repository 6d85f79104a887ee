//! Shared by every object of the D-Bus API: the engine, the callers, the subscribers, and the access check.

use std::time::Duration;

use banger_domain::id::Uid;
use banger_proto::bus::{
    ErrorName,
    names::{action, detail},
};
use tokio::sync::OwnedSemaphorePermit;
use zbus::{Connection, message::Header};

use super::{
    acl::{self, Access, Work},
    caller::{Caller, Callers, Place},
    error::{Error, Result},
    subscribers::Subscribers,
};
use crate::{
    engine::Engine,
    ports::{Interaction, Question, Users, Verdict},
};

/// How long a read may wait for polkit. zbus holds its tree of objects while a property is read, and so
/// everybody waits with it.
const GLANCE: Duration = Duration::from_secs(1);

pub struct Border {
    pub connection: Connection,
    pub engine: Engine,
    pub callers: Callers,
    pub subscribers: Subscribers,
}

/// Whose object a call is about, and what a dialog says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub owner: Uid,
    pub is_shared: bool,
    /// A connection that may do what the owner may.
    pub guest: Option<String>,
    /// What a dialog calls it, such as `sandbox web`.
    pub object: String,
    /// What the rules of an administrator may look up.
    pub details: Vec<(&'static str, String)>,
}

impl Target {
    /// All that polkit is told. The messages of the policy name the object and its owner, so every target has these.
    fn into_details(self, users: &dyn Users) -> Vec<(&'static str, String)> {
        let mut details = self.details;
        details.push((detail::OBJECT, self.object));
        details.push((detail::OWNER, users.name_of(self.owner)));
        details.push((detail::OWNER_UID, self.owner.to_string()));
        details
    }

    fn belongs_to(&self, caller: &Caller) -> bool {
        self.owner == caller.uid || self.guest.as_ref() == Some(&caller.connection)
    }
}

impl Border {
    pub async fn new(connection: Connection, engine: Engine) -> zbus::Result<Self> {
        let callers = Callers::new(&connection).await?;
        Ok(Self { connection, engine, callers, subscribers: Subscribers::default() })
    }

    /// The one check: whether the caller of this message may use this member. The call is served while the
    /// permit is held.
    pub async fn admit(
        &self,
        header: &Header<'_>,
        interface: &str,
        member: &str,
        target: Option<Target>,
    ) -> Result<(Caller, OwnedSemaphorePermit)> {
        let caller = self.callers.of(header).await?;
        let place = match acl::work(interface, member) {
            Some(Work::Waits) => Place::Wait,
            Some(Work::Looks) => Place::Look,
            Some(Work::Opens) => Place::Stream,
            _ => Place::Call,
        };
        let permit = self.callers.place(caller.uid, place)?;
        self.authorise(&caller, interface, member, target).await?;
        Ok((caller, permit))
    }

    /// The one check for a read of properties, for which nobody is asked anything. It takes no place: a
    /// client with many objects reads them all at once, and is answered at once.
    pub async fn admit_reader(
        &self,
        header: &Header<'_>,
        interface: &str,
        target: Option<Target>,
    ) -> Result<()> {
        let caller = self.callers.of(header).await?;
        let caller = Caller { interaction: Interaction::Forbidden, ..caller };
        self.authorise(&caller, interface, acl::PROPERTIES, target).await
    }

    async fn authorise(
        &self,
        caller: &Caller,
        interface: &str,
        member: &str,
        target: Option<Target>,
    ) -> Result<()> {
        let denied = || Error::new(ErrorName::AccessDenied, format!("{interface}.{member} is not allowed"));
        let access = acl::access(interface, member).ok_or_else(denied)?;
        if caller.uid == Uid::ROOT {
            return Ok(());
        }
        let users = self.engine.users();
        match (access, target) {
            (Access::Anyone, _) => Ok(()),
            (Access::Action(action), _) => {
                let object =
                    acl::object_of(interface, member).map(|object| (detail::OBJECT, object.to_owned()));
                self.require(caller, action, object.into_iter().collect()).await
            }
            (Access::Object { .. } | Access::Content { .. }, None) => Err(denied()),
            (Access::Content { .. }, Some(target)) if target.belongs_to(caller) => Ok(()),
            (Access::Content { shared, foreign }, Some(target)) => {
                let action = if target.is_shared { shared } else { foreign };
                self.require(caller, action, target.into_details(users)).await
            }
            (Access::Object { reads: true, .. }, Some(target)) => {
                if target.is_shared || target.belongs_to(caller) {
                    return Ok(());
                }
                match self.views_others(caller).await {
                    Some(true) => Ok(()),
                    Some(false) => Err(Error::new(ErrorName::AccessDenied, "this belongs to another user")),
                    None => Err(Error::new(
                        ErrorName::HostNotReady,
                        "this belongs to another user, and polkit has not answered yet whether you may see it; try again",
                    )),
                }
            }
            (Access::Object { own, foreign, .. }, Some(target)) => {
                let is_own = target.belongs_to(caller)
                    && !(target.is_shared && foreign == action::IMAGE_MANAGE_SHARED);
                match (is_own, own) {
                    (true, None) => Ok(()),
                    (true, Some(action)) => self.require(caller, action, target.into_details(users)).await,
                    (false, _) => {
                        let owner = target.owner.0;
                        self.require(caller, foreign, target.into_details(users)).await?;
                        let uid = caller.uid.0;
                        tracing::info!(uid, owner, interface, member, "used an object of another user");
                        Ok(())
                    }
                }
            }
        }
    }

    /// Requires a polkit action of the caller. Who has to be asked for a password is asked only when polkit
    /// says so, and only for a limited number of calls of one user at once.
    pub async fn require(
        &self,
        caller: &Caller,
        action: &'static str,
        details: Vec<(&'static str, String)>,
    ) -> Result<()> {
        if caller.uid == Uid::ROOT {
            return Ok(());
        }
        let mut question = Question {
            connection: caller.connection.clone(),
            action,
            details,
            interaction: Interaction::Forbidden,
        };
        let mut verdict = self.ask(question.clone()).await?;
        if verdict == Verdict::NeedsInteraction && caller.interaction == Interaction::Allowed {
            let _prompt = self.callers.place(caller.uid, Place::Prompt)?;
            question.interaction = Interaction::Allowed;
            verdict = self.ask(question).await?;
        }
        match verdict {
            Verdict::Yes => {
                // An administrator who has authenticated for one call will read the object of that call next.
                if [action::VM_VIEW_OTHERS, action::VM_MANAGE_OTHERS].contains(&action) {
                    self.callers.remember(&caller.connection, true);
                }
                Ok(())
            }
            Verdict::NeedsInteraction => Err(Error::new(
                ErrorName::InteractiveAuthorizationRequired,
                match action::OF_GROUP.contains(&action) {
                    true => "an administrator has to authenticate; members of the group banger need not",
                    false => "an administrator has to authenticate",
                },
            )),
            Verdict::No(why) => {
                tracing::info!(uid = caller.uid.0, action, "denied");
                Err(Error::new(ErrorName::AccessDenied, why))
            }
            Verdict::Undecided(why) => Err(Error::new(ErrorName::HostNotReady, why)),
        }
    }

    /// Asks the authority, for as long as the caller is there to hear the answer.
    async fn ask(&self, question: Question) -> Result<Verdict> {
        let connection = question.connection.clone();
        tokio::select! {
            biased;
            () = self.callers.gone(&connection) => {
                Err(Error::new(ErrorName::AccessDenied, "the caller has gone"))
            }
            verdict = self.engine.authority().check(question) => Ok(verdict),
        }
    }

    /// Whether the caller may see other people's objects. Nobody is asked to authenticate, and the answer
    /// is remembered for a moment.
    pub async fn may_view_others(&self, caller: &Caller) -> bool {
        self.views_others(caller).await.unwrap_or_default()
    }

    /// The same; `None` when it is unknown at the moment, which is not remembered.
    async fn views_others(&self, caller: &Caller) -> Option<bool> {
        if caller.uid == Uid::ROOT {
            return Some(true);
        }
        if let Some(remembered) = self.callers.sees_others(&caller.connection) {
            return Some(remembered);
        }
        let silent = Caller { interaction: Interaction::Forbidden, ..caller.clone() };
        let answer = tokio::time::timeout(GLANCE, self.require(&silent, action::VM_VIEW_OTHERS, Vec::new()));
        let may = match answer.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) if error.name != ErrorName::HostNotReady => false,
            Ok(Err(_)) | Err(_) => return None,
        };
        self.callers.remember(&caller.connection, may);
        Some(may)
    }

    /// Sends the caller the signals of what it may see, from now on and until it goes.
    pub fn subscribe(&self, caller: &Caller, all_owners: bool) -> Result<()> {
        self.subscribers.add(&caller.connection, caller.uid, all_owners)?;
        // It may have gone before it was added, and then nobody else would take it out.
        if !self.callers.is_here(&caller.connection) {
            self.subscribers.forget(&caller.connection);
        }
        Ok(())
    }
}
