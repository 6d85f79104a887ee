//! Why something that strangers sent cannot be used.

use crate::oci::platform::{Platform, Stated};

/// Why a document of an image or of a catalog cannot be used. Foreign text is quoted only after it was checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unusable {
    message: String,
    is_other: bool,
}

impl Unusable {
    /// Returns a reason: a clause without a full stop.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_other: false }
    }

    /// It is something else than a system image, or one for another platform.
    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_other: true }
    }

    /// It is for the platform that it states, and not for the wanted one.
    pub(crate) fn is_for(stated: &Stated, wanted: &Platform) -> Self {
        Self::other(format!("it is for {stated}, not for {wanted}"))
    }

    /// Returns whether it is not what was wanted, rather than invalid: another entry of its index may be.
    pub fn is_other(&self) -> bool {
        self.is_other
    }

    /// Returns the error of the JSON parser, which has the position and quotes at most a key.
    pub(crate) fn json(what: &str, error: &serde_json::Error) -> Self {
        Self::new(format!("{what} is malformed: {}", printable(&error.to_string())))
    }
}

/// Returns foreign text, shortened and without characters that could confuse a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(120).collect::<String>().escape_debug().to_string()
}
