//! Why something that strangers sent cannot be used.

/// Why a document of a registry or of a catalog cannot be used. Foreign text is quoted only after it was checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

impl Unusable {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Returns the error of the JSON parser, which has the position and quotes at most a key.
    pub(crate) fn json(what: &str, error: &serde_json::Error) -> Self {
        Self(format!("{what} is malformed: {}", printable(&error.to_string())))
    }
}

/// Returns foreign text, shortened and without characters that could confuse a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(120).collect::<String>().escape_debug().to_string()
}
