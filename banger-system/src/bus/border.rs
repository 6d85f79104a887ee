//! What every object of the border shares: the engine, who calls, who listens, and the one check.

use banger_proto::bus::{ErrorName, names::action};
use tokio::sync::OwnedSemaphorePermit;
use zbus::{Connection, message::Header};

use super::{
    acl::{self, Access},
    caller::{Caller, Callers},
    error::{Error, Result},
    subscribers::Subscribers,
};
use crate::{
    domain::id::Uid,
    engine::Engine,
    ports::{Interaction, Question, Verdict},
};

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
    pub details: Vec<(&'static str, String)>,
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
        let permit = self.callers.permit(caller.uid)?;
        self.authorise(&caller, interface, member, target).await?;
        Ok((caller, permit))
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
            (Access::Action(action), _) => self.require(caller, action, Vec::new()).await,
            (Access::Object { .. }, None) => Err(denied()),
            (Access::Object { own, foreign, reads }, Some(target)) => {
                if reads && target.is_shared {
                    return Ok(());
                }
                if caller.uid != target.owner || (foreign == action::IMAGE_MANAGE_SHARED && target.is_shared)
                {
                    return self.require(caller, foreign, target.details).await;
                }
                match own {
                    Some(action) => self.require(caller, action, target.details).await,
                    None => Ok(()),
                }
            }
        }
    }

    /// Requires a polkit action of the caller.
    pub async fn require(
        &self,
        caller: &Caller,
        action: &'static str,
        details: Vec<(&'static str, String)>,
    ) -> Result<()> {
        if caller.uid == Uid::ROOT {
            return Ok(());
        }
        let question = Question {
            connection: caller.connection.clone(),
            action,
            details,
            interaction: caller.interaction,
        };
        match self.engine.authority().check(question).await {
            Verdict::Yes => Ok(()),
            Verdict::NeedsInteraction => Err(Error::new(
                ErrorName::InteractiveAuthorizationRequired,
                "authentication is needed; members of the group banger need none for sandboxes of their own",
            )),
            Verdict::No(why) => {
                tracing::info!(uid = caller.uid.0, action, "denied");
                Err(Error::new(ErrorName::AccessDenied, why))
            }
        }
    }

    /// Whether the caller may see other people's objects. Nobody is asked to authenticate.
    pub async fn may_view_others(&self, caller: &Caller) -> bool {
        let silent = Caller { interaction: Interaction::Forbidden, ..caller.clone() };
        self.require(&silent, action::VM_VIEW_OTHERS, Vec::new()).await.is_ok()
    }

    /// Whether the caller sees an object of this owner.
    pub async fn sees(&self, caller: &Caller, owner: Uid, is_shared: bool) -> bool {
        owner == caller.uid || is_shared || self.may_view_others(caller).await
    }
}
