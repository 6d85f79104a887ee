//! Writes to standard output.

use std::io::{self, Write};

use serde_json::Value;

use crate::error::{Error, Result};

/// Writes a text.
pub fn text(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes one JSON value, indented, with a line feed.
pub fn json(value: &Value) -> Result<()> {
    text(&format!("{value:#}\n"))
}

/// Writes bytes without buffering.
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut output = io::stdout().lock();
    output
        .write_all(bytes)
        .and_then(|()| output.flush())
        .map_err(|source| Error::io("write to standard output", source))
}
