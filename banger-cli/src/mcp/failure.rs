//! Errors as an agent gets them: a code, what happened and why, and what to do about it.

use banger_proto::guest::FailureKind;
use rmcp::model::CallToolResult;
use serde_json::json;

use crate::error::Error;

/// Code of an error about invalid arguments.
const INVALID_ARGUMENTS: &str = "invalid-arguments";

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
    CallToolResult::structured_error(json!({
        "code": code(error),
        "message": error.sentence(),
        "causes": error.causes(),
        "remedy": error.hint(),
    }))
}

/// Returns the code of an error: its name on the bus, or one of the client.
pub fn code(error: &Error) -> &str {
    match error.bare() {
        Error::Service { name, .. } => name.as_str(),
        Error::Foreign { name, .. } => name,
        Error::Guest(failure) => of_guest(failure.kind),
        Error::NoBus(_) | Error::NoService { .. } | Error::Bus(_) => "service-unavailable",
        Error::ServiceEnded => "service-ended",
        Error::OtherVersion { .. } => "other-version",
        Error::Attach(_) => "connection-lost",
        Error::Remote(_) => "host-unreachable",
        Error::Io { .. } => "io",
        Error::Refused(_) | Error::WithHint { .. } => "refused",
        Error::NotAllowed(_) => "not-allowed",
        Error::Arguments(_) | Error::Usage { .. } => INVALID_ARGUMENTS,
        Error::Interrupted { .. } | Error::Detached { .. } => "cancelled",
    }
}

fn of_guest(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::NotFound => "guest.not-found",
        FailureKind::NotPermitted => "guest.not-permitted",
        FailureKind::BadRequest => "guest.bad-request",
        FailureKind::Reset => "guest.reset",
        FailureKind::AlreadyExists => "guest.already-exists",
        FailureKind::NoDirectory => "guest.no-directory",
        FailureKind::NoSpace => "guest.no-space",
        FailureKind::Other => "guest.other",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;

    use banger_proto::guest::Failure;

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
            assert!(page.contains(&format!("`{}`", code(error))), "{}", code(error));
        }
        assert_eq!(code(&Error::named("com.example.Odd", "x")), "com.example.Odd");
    }
}
