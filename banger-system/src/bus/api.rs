//! What all objects of the D-Bus API share: the engine, the callers, the subscribers, and the access check.

use std::time::Duration;

use banger_domain::id::Uid;
use banger_proto::bus::{
    ErrorName,
    names::{action, detail},
};
use tokio::sync::OwnedSemaphorePermit;
use zbus::{Connection, message::Header};

use super::{
    acl::{self, Access, Cost},
    caller::{Caller, Callers, RequestKind},
    error::{Error, Result},
    export::OnBus,
    subscribers::Subscribers,
};
use crate::{
    engine::Engine,
    ports::authority::{Interaction, Question, Verdict},
};

/// Time for polkit to answer a read. zbus holds its tree of objects while a property is read, and all calls wait for
/// it.
const VIEW_OTHERS_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Api {
    pub connection: Connection,
    pub engine: Engine,
    pub callers: Callers,
    pub subscribers: Subscribers,
    pub on_bus: OnBus,
}

/// The object of a call: its owner, and what a password dialog shows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub owner: Uid,
    pub is_shared: bool,
    /// A connection with the owner's rights: the one that created a job.
    pub creator: Option<String>,
    /// The object's name in a dialog, such as `sandbox web`.
    pub object: String,
    /// Details for an administrator's polkit rules.
    pub details: Vec<(&'static str, String)>,
}

impl Target {
    /// Returns all details for polkit. The policy's messages name the object and its owner, so every target has
    /// these.
    async fn into_details(self, engine: &Engine) -> Vec<(&'static str, String)> {
        let mut details = self.details;
        details.push((detail::OBJECT, self.object));
        details.push((detail::OWNER, engine.login_of(self.owner).await));
        details.push((detail::OWNER_UID, self.owner.to_string()));
        details
    }

    fn belongs_to(&self, caller: &Caller) -> bool {
        self.owner == caller.uid || self.creator.as_ref() == Some(&caller.connection)
    }
}

impl Api {
    pub async fn new(connection: Connection, engine: Engine) -> zbus::Result<Self> {
        let callers = Callers::new(&connection).await?;
        let (subscribers, on_bus) = (Subscribers::default(), OnBus::default());
        Ok(Self { connection, engine, callers, subscribers, on_bus })
    }

    /// Checks that the caller of a message may use this member. The call counts against its user's limit while the
    /// permit is held.
    pub async fn admit(
        &self,
        header: &Header<'_>,
        interface: &str,
        member: &str,
        target: Option<Target>,
    ) -> Result<(Caller, OwnedSemaphorePermit)> {
        let caller = self.callers.of(header).await?;
        tracing::Span::current().record("uid", caller.uid.0);
        let kind = match acl::cost(interface, member) {
            Some(Cost::Wait) => RequestKind::Wait,
            Some(Cost::Inspect) => RequestKind::Inspect,
            Some(Cost::Open) => RequestKind::Stream,
            _ => RequestKind::Call,
        };
        let permit = self.callers.acquire(caller.uid, kind)?;
        self.authorise(&caller, interface, member, target).await?;
        Ok((caller, permit))
    }

    /// Checks that the caller of a message may read properties, without a dialog, and returns who it is. Takes no
    /// permit, because a client with many objects reads them all at once.
    pub async fn admit_reader(
        &self,
        header: &Header<'_>,
        interface: &str,
        target: Option<Target>,
    ) -> Result<Uid> {
        let caller = self.callers.of(header).await?;
        let caller = Caller { interaction: Interaction::Forbidden, ..caller };
        self.authorise(&caller, interface, acl::PROPERTIES, target).await?;
        Ok(caller.uid)
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
                self.require(caller, action, target.into_details(&self.engine).await).await
            }
            (Access::Object { reads: true, .. }, Some(target)) => {
                if target.is_shared || target.belongs_to(caller) {
                    return Ok(());
                }
                match self.cached_view_others(caller).await {
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
                    (true, Some(action)) => {
                        self.require(caller, action, target.into_details(&self.engine).await).await
                    }
                    (false, _) => {
                        let owner = target.owner.0;
                        self.require(caller, foreign, target.into_details(&self.engine).await).await?;
                        let uid = caller.uid.0;
                        tracing::info!(uid, owner, interface, member, "used an object of another user");
                        Ok(())
                    }
                }
            }
        }
    }

    /// Requires a polkit action. Asks for a password only if polkit says so and the caller allows it, and for a
    /// limited number of calls of a user at once.
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
        let mut verdict = self.check(question.clone()).await?;
        if verdict == Verdict::NeedsInteraction && caller.interaction == Interaction::Allowed {
            let _prompt = self.callers.acquire(caller.uid, RequestKind::Prompt)?;
            question.interaction = Interaction::Allowed;
            verdict = self.check(question).await?;
        }
        match verdict {
            Verdict::Yes => {
                // An administrator who authenticated for one call will read its object next.
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

    /// Asks the authority. Stops when the caller disconnects.
    async fn check(&self, question: Question) -> Result<Verdict> {
        let connection = question.connection.clone();
        tokio::select! {
            biased;
            () = self.callers.disconnected(&connection) => {
                Err(Error::new(ErrorName::AccessDenied, "the caller has disconnected"))
            }
            verdict = self.engine.authority().check(question) => Ok(verdict),
        }
    }

    /// Returns whether the caller may see other users' objects. Never opens a dialog. The answer is cached for a
    /// moment.
    pub async fn may_view_others(&self, caller: &Caller) -> bool {
        self.cached_view_others(caller).await.unwrap_or_default()
    }

    /// Returns the same; `None` if polkit did not answer in time, which is not cached.
    async fn cached_view_others(&self, caller: &Caller) -> Option<bool> {
        if caller.uid == Uid::ROOT {
            return Some(true);
        }
        if let Some(remembered) = self.callers.sees_others(&caller.connection) {
            return Some(remembered);
        }
        let silent = Caller { interaction: Interaction::Forbidden, ..caller.clone() };
        let answer = tokio::time::timeout(
            VIEW_OTHERS_TIMEOUT,
            self.require(&silent, action::VM_VIEW_OTHERS, Vec::new()),
        );
        let may = match answer.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) if error.name != ErrorName::HostNotReady => false,
            Ok(Err(_)) | Err(_) => return None,
        };
        self.callers.remember(&caller.connection, may);
        Some(may)
    }

    /// Subscribes the caller to signals about what it may see, until it disconnects.
    pub fn subscribe(&self, caller: &Caller, all_owners: bool) -> Result<()> {
        self.subscribers.add(&caller.connection, caller.uid, all_owners)?;
        // It may have disconnected before it was added, and then nobody else would remove it.
        if !self.callers.is_connected(&caller.connection) {
            self.subscribers.forget(&caller.connection);
        }
        Ok(())
    }
}
