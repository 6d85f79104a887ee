//! Formats errors for people. The service, the agent and the command use it wherever a text leaves them.

use std::error::Error;

/// What Rust adds to the messages of the operating system, before the number.
const CODE: &str = " (os error ";

/// Returns the text of an error followed by those of its causes, each after a colon. A cause that the text ends with
/// already is not repeated: some libraries include it in their own message.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = without_codes(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = without_codes(&error.to_string());
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Returns a text without the numbers that Rust adds to the messages of the operating system, such as
/// `(os error 2)`: the message says the same.
pub fn without_codes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(CODE) {
        plain.push_str(before);
        rest = match after.split_once(')') {
            Some((number, after)) if number.parse::<i32>().is_ok() => after,
            // Something else that begins like it.
            _ => {
                plain.push_str(CODE);
                after
            }
        };
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn the_numbers_of_the_system_are_left_out_and_nothing_else() {
        for (text, expect) in [
            ("No such file or directory (os error 2)", "No such file or directory"),
            (
                "cannot open /x: Permission denied (os error 13): try again",
                "cannot open /x: Permission denied: try again",
            ),
            ("a (os error 1) and b (os error 22)", "a and b"),
            ("a (os error -5)", "a"),
            ("a (os error x)", "a (os error x)"),
            ("a (os error 1", "a (os error 1"),
            ("a (os error ) (os error 7)", "a (os error )"),
            ("é", "é"),
            ("", ""),
        ] {
            assert_eq!(without_codes(text), expect, "{text:?}");
        }
        assert_eq!(without_codes(&io::Error::from_raw_os_error(2).to_string()), "No such file or directory");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Outer(&'static str, #[source] io::Error);

    #[test]
    fn causes_follow_after_a_colon_unless_the_text_has_them() {
        let missing = || io::Error::from_raw_os_error(2);
        for (text, expect) in [
            ("cannot open /x", "cannot open /x: No such file or directory"),
            ("cannot open /x: No such file or directory", "cannot open /x: No such file or directory"),
            (
                "cannot open /x: No such file or directory (os error 2)",
                "cannot open /x: No such file or directory",
            ),
        ] {
            assert_eq!(with_causes(&Outer(text, missing())), expect);
        }
    }
}
