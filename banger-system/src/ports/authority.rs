//! The authority that decides beyond ownership: polkit.

use async_trait::async_trait;

/// Authorises what goes beyond one's own objects (polkit).
#[async_trait]
pub trait Authority: Send + Sync {
    /// Returns whether the connection may perform the action. Any doubt is a no. Waits without limit if the user is
    /// asked to authenticate; cancelling withdraws the question.
    async fn check(&self, question: Question) -> Verdict;
}

/// A question to the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The unique name of the caller's connection.
    pub connection: String,
    /// The polkit action.
    pub action: &'static str,
    /// What the dialog shows; validated text only.
    pub details: Vec<(&'static str, String)>,
    /// Whether the user may be asked to authenticate.
    pub interaction: Interaction,
}

/// Whether the user may be asked to authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interaction {
    /// The caller allows it.
    Allowed,
    /// The caller does not.
    Forbidden,
}

/// An answer of the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Yes,
    /// Yes after authentication, which the caller did not allow.
    NeedsInteraction,
    /// No, and the reason in one sentence.
    No(String),
    /// Unknown, which counts as no, and the reason in one sentence.
    Undecided(String),
}
