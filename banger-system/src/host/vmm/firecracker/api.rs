//! The API of Firecracker: HTTP and JSON on a unix socket. The guest may have taken over the other side, or it may
//! not be Firecracker at all, so everything it sends is bounded in length and time.

use std::{fmt, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, task::JoinHandle};

use super::requests::Put;
use crate::ports::{
    FromHost as _,
    vmm::{Error, Result},
};

/// How long a response may take: the VMM at most opens a file.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest response that is read; ordinary ones have a line.
const MAX_ANSWER: usize = 64 << 10;
/// How much of an error message is passed on.
const MAX_FAULT: usize = 400;
/// The oldest version with everything that we use: since 1.8 it describes its devices by ACPI, and so runs
/// distribution kernels that cannot find them in another way.
pub const OLDEST: Version = Version(1, 8);
/// The first version whose API may be incompatible.
pub const TOO_NEW: Version = Version(2, 0);

/// A connection to the API.
pub struct Api {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

#[derive(Deserialize)]
struct VersionAnswer {
    firecracker_version: String,
}

#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// A version without its patch level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Api {
    /// Makes a client for this socket.
    pub async fn over(stream: UnixStream) -> Result<Self> {
        let (sender, connection) = within("its greeting", TIMEOUT, http1::handshake(TokioIo::new(stream)))
            .await?
            .map_err(|error| broken("its greeting", &error))?;
        // The request that needs the connection reports how it ended.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, driver })
    }

    /// Asks for the version, and refuses an untested one.
    pub async fn check_version(&mut self) -> Result<()> {
        let what = "GET /version";
        let (status, body) = self.ask(Method::GET, "/version", Vec::new(), TIMEOUT).await?;
        let answer: Option<VersionAnswer> = serde_json::from_slice(&body).ok();
        let version = answer.and_then(|answer| Version::parse(&answer.firecracker_version));
        match version {
            _ if status != StatusCode::OK => Err(fault(what, status, &body)),
            None => Err(Error::Failed { message: format!("unexpected reply from Firecracker to {what}") }),
            Some(version) if version < OLDEST || version >= TOO_NEW => Err(Error::not_ready(format!(
                "Firecracker {version} is not supported: install a version from {OLDEST} to below {TOO_NEW}, \
                     or use --vmm qemu"
            ))),
            Some(_) => Ok(()),
        }
    }

    /// Sends a request, and waits for its end for at most `timeout`.
    pub async fn put(&mut self, put: &Put, timeout: Duration) -> Result<()> {
        let path = put.path();
        let what = format!("PUT {path}");
        let json = serde_json::to_vec(put).map_err(|error| Error::other(format!("write {what}"), error))?;
        let (status, body) = self.ask(Method::PUT, &path, json, timeout).await?;
        if status.is_success() { Ok(()) } else { Err(fault(&what, status, &body)) }
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes)> {
        let what = format!("{method} {path}");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Error::other(format!("write {what}"), error))?;
        let answer = async {
            self.sender.ready().await.map_err(|error| broken(&what, &error))?;
            let response = self.sender.send_request(request).await.map_err(|error| broken(&what, &error))?;
            let status = response.status();
            let body: Limited<Incoming> = Limited::new(response.into_body(), MAX_ANSWER);
            let body = body.collect().await.map_err(|error| broken(&what, &*error))?;
            Ok((status, body.to_bytes()))
        };
        within(&what, timeout, answer).await?
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Version {
    /// Parses `1.16.1` or `1.17.0-dev`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| number.parse().ok());
        Some(Self(numbers.next()??, numbers.next()??))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

async fn within<T>(what: &str, timeout: Duration, answer: impl Future<Output = T>) -> Result<T> {
    let late = |_| Error::timeout(format!("Firecracker's answer to {what}"), timeout);
    tokio::time::timeout(timeout, answer).await.map_err(late)
}

fn broken(what: &str, error: &dyn std::error::Error) -> Error {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    Error::Failed { message: format!("invalid reply from Firecracker to {what}: {error}{cause}") }
}

/// Returns the error that the API reported.
fn fault(what: &str, status: StatusCode, body: &[u8]) -> Error {
    let said = serde_json::from_slice::<Fault>(body).map(|fault| fault.fault_message).unwrap_or_default();
    let said: String = said.chars().filter(|c| !c.is_control()).take(MAX_FAULT).collect();
    let why = if said.is_empty() { format!("with status {}", status.as_u16()) } else { format!(": {said}") };
    let space = if said.is_empty() { " " } else { "" };
    Error::Failed { message: format!("Firecracker refuses {what}{space}{why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(Version::parse("1.16.1"), Some(Version(1, 16)));
        assert_eq!(Version::parse("1.17.0-dev"), Some(Version(1, 17)));
        assert_eq!(Version::parse("v1"), None);
        assert!(Version(1, 16) > OLDEST && Version(1, 7) < OLDEST && Version(2, 0) >= TOO_NEW);
    }

    #[test]
    fn a_fault_is_passed_on_without_control_characters() {
        let text = |body: &[u8]| fault("PUT /actions", StatusCode::BAD_REQUEST, body).to_string();
        assert_eq!(
            text(b"{\"fault_message\":\"no\\u001b[31m kernel\"}"),
            "Firecracker refuses PUT /actions: no[31m kernel"
        );
        assert_eq!(text(b"<html>"), "Firecracker refuses PUT /actions with status 400");
    }
}
