//! The inside of a sandbox, as E2B's agent `envd` serves it (`spec/envd` of E2B).
//!
//! Everything here is a command that `banger exec` runs in the sandbox, as the user whom the client names, so what that
//! user may not do is refused by the guest.

mod filesystem;
mod multipart;
pub mod process;
mod transfer;

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{Method, StatusCode, body::Incoming, http::request::Parts};

use crate::{
    connect,
    http::{Code, Refusal, Response, Result, empty, header},
    server::Server,
};

/// Returns whether a request is for the inside of a sandbox.
pub fn is_for_sandbox(parts: &Parts) -> bool {
    matches!(parts.uri.path(), "/health" | "/files" | "/envs" | "/metrics") || is_call(parts)
}

/// Returns whether it is a call of the Connect protocol.
pub fn is_call(parts: &Parts) -> bool {
    let path = parts.uri.path();
    path.starts_with("/process.Process/") || path.starts_with("/filesystem.Filesystem/")
}

/// Answers a request for the inside of a sandbox, whose token is valid.
pub async fn answer(server: &Server, sandbox: &str, parts: &Parts, body: Incoming) -> Response {
    let path = parts.uri.path();
    if let Some(method) = path.strip_prefix("/process.Process/") {
        return process::answer(server, sandbox, method, parts, body).await;
    }
    if let Some(method) = path.strip_prefix("/filesystem.Filesystem/") {
        return match filesystem::answer(server, sandbox, method, parts, body).await {
            Ok(reply) => connect::reply(Ok(reply)),
            Err(refusal) => connect::refuse(parts, refusal),
        };
    }
    let answered = match (&parts.method, path) {
        (&Method::GET, "/health") => health(server, sandbox).await,
        (&Method::GET, "/files") => transfer::download(server, sandbox, parts).await,
        (&Method::POST, "/files") => transfer::upload(server, sandbox, parts, body).await,
        (method, path) => Err(Refusal::unimplemented(format!("{method} {path}"))),
    };
    answered.unwrap_or_else(|refusal| refusal.response())
}

async fn health(server: &Server, sandbox: &str) -> Result<Response> {
    match server.sandboxes.is_running(sandbox).await? {
        true => Ok(empty(StatusCode::NO_CONTENT)),
        false => Err(Refusal::new(Code::Unavailable, format!("The sandbox {sandbox:?} was not found."))),
    }
}

/// Returns the user whom a call names, by HTTP's basic authentication without a password.
fn user(parts: &Parts) -> Result<Option<String>> {
    let Some(value) = header(parts, "authorization") else { return Ok(None) };
    let invalid = || Refusal::new(Code::Unauthenticated, "The user cannot be read.");
    let encoded = value.strip_prefix("Basic ").ok_or_else(invalid)?;
    let text = BASE64_STANDARD.decode(encoded).ok().and_then(|text| String::from_utf8(text).ok());
    let text = text.ok_or_else(invalid)?;
    let name = text.split(':').next().unwrap_or_default();
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_user_is_the_name_of_basic_authentication() {
        let user = |value: &str| {
            let request = hyper::Request::builder().header("Authorization", value).body(()).unwrap();
            user(&request.into_parts().0)
        };
        assert_eq!(user("Basic cm9vdDo=").unwrap().as_deref(), Some("root"));
        assert_eq!(user("Basic Og==").unwrap(), None);
        for wrong in ["Bearer a", "Basic !", "Basic /w=="] {
            assert_eq!(user(wrong).unwrap_err().code, Code::Unauthenticated, "{wrong}");
        }
    }
}
