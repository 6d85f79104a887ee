//! Parses numbers of the command line. The parser's own messages are in Rust's words.

/// Parses a whole number.
pub fn whole<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let is_whole = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let number = text.parse::<u64>().ok().and_then(|number| T::try_from(number).ok());
    match (is_whole, number) {
        (false, _) => Err("it must be a whole number".to_owned()),
        (true, None) => Err("it is too large".to_owned()),
        (true, Some(number)) => Ok(number),
    }
}

/// Parses a whole number greater than zero.
pub fn positive(text: &str) -> Result<u32, String> {
    match whole(text)? {
        0 => Err("it must be 1 or more".to_owned()),
        number => Ok(number),
    }
}

/// Parses the number of a port.
pub fn port(text: &str) -> Result<u16, String> {
    match whole(text) {
        Ok(0) | Err(_) => Err("a port is a number from 1 to 65535".to_owned()),
        port => port,
    }
}
