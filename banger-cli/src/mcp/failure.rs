//! Errors as an agent gets them: a code, what happened and why, and what to do about it.

use rmcp::model::CallToolResult;

use crate::error::Error;

/// Returns the error for something that the options of the server forbid.
pub fn not_allowed(what: impl Into<String>) -> Error {
    Error::NotAllowed(what.into())
}

/// Returns the error for invalid arguments.
pub fn invalid(what: impl Into<String>) -> Error {
    Error::Arguments(what.into())
}

/// Returns the result of a call that failed.
pub fn result(error: &Error) -> CallToolResult {
    CallToolResult::structured_error(error.json())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;

    use banger_proto::guest::{Failure, FailureKind};
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_has_a_code_causes_and_a_remedy() {
        let error = Error::named("dev.banger.Error.NoSuchVM", "there is no sandbox web");
        let result = result(&error);
        assert_eq!(result.is_error, Some(true));
        let expect = json!({
            "code": "dev.banger.Error.NoSuchVM",
            "message": "there is no sandbox web.",
            "causes": [],
            "remedy": "`banger vm list` shows your sandboxes.",
        });
        assert_eq!(result.structured_content.unwrap(), expect);
    }

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../docs/agents.md");
        let guest = |kind| Error::Guest(Failure { kind, message: String::new() });
        let kinds = ["not-found", "not-permitted", "bad-request", "reset", "already-exists", "no-directory"];
        let of_guest = kinds.map(|kind| guest(serde_json::from_value(json!(kind)).unwrap()));
        let others = [
            guest(FailureKind::NoSpace),
            guest(FailureKind::Other),
            Error::ServiceEnded,
            Error::OtherVersion { message: String::new() },
            Error::NoService { message: String::new() },
            Error::io("read x", io::ErrorKind::NotFound.into()),
            Error::Refused(String::new()),
            not_allowed("x").with_hint("y"),
            invalid("x"),
            Error::Interrupted { signal: 2 },
            crate::guest::agent::protocol_error(),
        ];
        for error in of_guest.iter().chain(&others) {
            assert!(page.contains(&format!("`{}`", error.code())), "{}", error.code());
        }
        assert_eq!(Error::named("com.example.Odd", "x").code(), "com.example.Odd");
    }
}
