//! Parses numbers of the command line. The parser's own messages are in Rust's words.

use std::time::Duration;

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

/// Parses a duration such as `90s`, `30m`, `12h` or `7d`.
pub fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write a number and s, m, h or d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(time("7d").unwrap(), Duration::from_secs(7 * 86400));
        for text in ["", "7", "d", "-1d", "1w", "1.5h", "99999999999999999999d", "1é"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
