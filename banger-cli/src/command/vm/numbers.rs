//! Parses numbers of the command line. The parser's own messages are in Rust's words.

use std::str::FromStr;

/// Parses a whole number.
pub fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "it must be a whole number".to_owned())
}

/// Parses a whole number greater than zero.
pub fn positive(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("it must be a whole number, 1 or more".to_owned()),
        Ok(number) => Ok(number),
    }
}
