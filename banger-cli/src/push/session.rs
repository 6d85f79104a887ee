//! Requests to one repository of a registry.

use std::{
    error::Error as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use banger_image::oci::reference::ImageRef;
use banger_proto::bus::ErrorName;
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE},
    redirect::Policy,
};
use serde::Deserialize;
use tokio::time::timeout;

use super::{retry::Failure, token};
use crate::{
    error::{Error, Result},
    ui::sanitize,
    user::credentials::Login,
};

/// How long a connection may take, encryption included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a request may wait while no byte of it is sent. Registries check a large layer before they answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a small document may take.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Limit on what is read of an answer.
const MAX_ANSWER: usize = 64 << 10;
/// How much of a registry's words is shown.
const MAX_WORDS: usize = 300;
const MAX_REDIRECTS: usize = 5;
const USER_AGENT: &str = concat!("banger/", env!("CARGO_PKG_VERSION"));

/// How many bytes of a request were sent, so that one that makes no progress is noticed.
pub type Sent = Arc<AtomicU64>;

/// A user's session with a repository.
pub struct Session {
    client: Client,
    base: Url,
    is_loopback: bool,
    reference: ImageRef,
    /// A repository of the same registry that may have some of the blobs.
    pub mount_from: Option<String>,
    login: Option<Login>,
    /// The authorisation, once there is one.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Session {
    /// Returns a session that has sent nothing yet.
    pub fn new(reference: ImageRef, mount_from: Option<&str>, login: Option<Login>) -> Result<Self> {
        // A second call keeps the first one's choice, which is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let host = reference.registry();
        let is_loopback = host.is_loopback();
        // As for pulls, only a registry on this host is reached without encryption.
        let scheme = if is_loopback { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}/v2/", host.api()))
            .map_err(|_| Error::Refused(format!("{host} is not an address of a registry")))?;
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(Policy::none())
            .referer(false)
            .retry(reqwest::retry::never());
        // The variables of the environment say which proxy to use; none reaches the loopback of this host.
        let builder = if is_loopback { builder.no_proxy() } else { builder };
        let client = builder.build().map_err(|error| {
            Error::Refused(format!("cannot connect to registries: {}", reason(&error)))
                .with_hint("the package ca-certificates has the certificates that the host trusts.")
        })?;
        let mount_from = mount_from.map(str::to_owned);
        Ok(Self { client, base, is_loopback, reference, mount_from, login, authorization: Mutex::default() })
    }

    /// Returns the reference that is pushed.
    pub fn reference(&self) -> &ImageRef {
        &self.reference
    }

    /// Returns the registry's name in messages.
    pub fn host(&self) -> &str {
        self.reference.registry().as_str()
    }

    pub(super) fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// Returns an address of the repository.
    pub fn address(&self, path: &str) -> Result<Url> {
        let address = self.base.join(&format!("{}/{path}", self.reference.repository()));
        address.map_err(|_| self.refused("it has no address for this request"))
    }

    /// Returns the address in the header `Location`.
    pub fn location(&self, response: &Response) -> Result<Url> {
        let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
        let target = target.and_then(|target| response.url().join(target).ok());
        let target = target.ok_or_else(|| self.refused("it sent no valid address"))?;
        self.admit(&target).map(|()| target)
    }

    /// Checks an address that the registry named: it must be encrypted, or that of the registry itself. Other ports of this
    /// host may be services that trust the user.
    pub(super) fn admit(&self, url: &Url) -> Result<()> {
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.is_loopback && url.origin() == self.base.origin() => Ok(()),
            _ => Err(self.refused("it names an address that is not encrypted")),
        }
    }

    /// Sends a request, with credentials if the registry asks for them. `build` adds headers and the body, and is called for
    /// every attempt. Only the registry's own origin gets the credentials.
    pub async fn send(
        &self,
        method: Method,
        url: Url,
        build: impl Fn(RequestBuilder) -> RequestBuilder,
        sent: &Sent,
    ) -> Result<Response, Failure> {
        let (mut url, mut redirects, mut has_asked) = (url, 0, false);
        loop {
            let mut request = build(self.client.request(method.clone(), url.clone()));
            let is_own = url.origin() == self.base.origin();
            if let Some(known) = self.known().filter(|_| is_own) {
                request = request.header(AUTHORIZATION, known);
            }
            let response = self.answer(request, sent).await?;
            if response.status() == StatusCode::UNAUTHORIZED && is_own && !has_asked {
                has_asked = true;
                let asked = token::obtain(self, response.headers().get_all(WWW_AUTHENTICATE)).await?;
                if asked.is_none() {
                    return Ok(response);
                }
                *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = asked;
            } else if response.status().is_redirection() && redirects < MAX_REDIRECTS {
                redirects += 1;
                url = self.location(&response)?;
            } else {
                return Ok(response);
            }
        }
    }

    /// Waits for the answer to a request, as long as there is progress.
    pub(super) async fn answer(&self, request: RequestBuilder, sent: &Sent) -> Result<Response, Failure> {
        let mut answer = std::pin::pin!(request.send());
        loop {
            let before = sent.load(Relaxed);
            match timeout(ANSWER_TIMEOUT, &mut answer).await {
                Ok(answer) => {
                    return answer.map_err(|error| {
                        Failure::transient(format!("{} cannot be reached: {}", self.host(), reason(&error)))
                    });
                }
                Err(_) if sent.load(Relaxed) != before => {}
                Err(_) => {
                    let seconds = ANSWER_TIMEOUT.as_secs();
                    let message = format!("{} did not answer within {seconds} s", self.host());
                    return Err(Failure::transient(message));
                }
            }
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    fn known(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the error that the registry does something that it may not, or refuses.
    pub fn refused(&self, why: &str) -> Error {
        Error::Refused(format!("cannot push to {}: {why}", self.host()))
    }

    /// Returns the failure for an answer that is not a success.
    pub async fn failure(&self, response: Response) -> Failure {
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER);
        let after = after.and_then(|after| after.to_str().ok()?.trim().parse().ok()).map(Duration::from_secs);
        let words = said(&read(response).await.unwrap_or_default());
        let what = &self.reference;
        let with = |text: String| match &words {
            Some(words) => format!("{text}: {words}"),
            None => text,
        };
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(words.as_deref()).into(),
            StatusCode::PAYLOAD_TOO_LARGE => {
                let error = self.refused(&with("it takes no layer of this size".to_owned()));
                error
                    .with_hint("raise the limit of the registry, or of the proxy before it; `--compression zstd` makes layers smaller.")
                    .into()
            }
            StatusCode::INSUFFICIENT_STORAGE => self.refused(&with("it has no space left".to_owned())).into(),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Failure::Transient { message: with(format!("{} answered {status}", self.host())), after }
            }
            _ if status.is_server_error() => {
                Failure::Transient { message: with(format!("{} answered {status}", self.host())), after }
            }
            StatusCode::NOT_FOUND => {
                self.refused(&with(format!("there is no repository {}", what.repository()))).into()
            }
            _ => self.refused(&with(format!("it answered {status}"))).into(),
        }
    }

    /// Returns the error that the user may not push.
    pub(super) fn denied(&self, words: Option<&str>) -> Error {
        let (host, what) = (self.host(), &self.reference);
        let words = words.map(|words| format!(": {words}")).unwrap_or_default();
        let (message, hint) = match self.login {
            None => (
                format!("{host} requires a login to push {what}{words}"),
                format!("`docker login {host}` or `podman login {host}` stores your credentials."),
            ),
            Some(_) => (
                format!("{host} does not let you push {what}{words}"),
                format!("check the name, and that your account at {host} may push there."),
            ),
        };
        Error::Service { name: ErrorName::RegistryAuthRequired, message }.with_hint(hint)
    }
}

/// Reads a small answer.
pub async fn read(mut response: Response) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let all = async {
        while let Ok(Some(piece)) = response.chunk().await {
            bytes.extend_from_slice(&piece[..piece.len().min(MAX_ANSWER - bytes.len())]);
            if bytes.len() == MAX_ANSWER {
                break;
            }
        }
    };
    timeout(DOCUMENT_TIMEOUT, all).await.ok().map(|()| bytes)
}

/// Returns the registry's description of an error (distribution specification, "Error Codes").
fn said(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let first = answer.errors.into_iter().next()?;
    let text = if first.message.is_empty() { first.code } else { first.message };
    let text: String = sanitize::line(&text).chars().take(MAX_WORDS).collect();
    (!text.is_empty()).then_some(text)
}

/// Returns the innermost cause of an error of the HTTP client, which says most, without the address.
fn reason(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut text = None;
    while let Some(error) = cause {
        text = Some(error.to_string());
        cause = error.source();
    }
    sanitize::line(&text.unwrap_or_else(|| "the connection failed".to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn session(reference: &str) -> Session {
        Session::new(reference.parse().unwrap(), None, None).unwrap()
    }

    #[test]
    fn only_a_registry_of_this_host_is_reached_without_encryption() {
        for (reference, address) in [
            ("alpine", "https://registry-1.docker.io/v2/library/alpine/blobs/uploads/"),
            ("ghcr.io/a/b:1", "https://ghcr.io/v2/a/b/blobs/uploads/"),
            ("localhost:5000/a", "http://localhost:5000/v2/a/blobs/uploads/"),
            ("[::1]:5000/a", "http://[::1]:5000/v2/a/blobs/uploads/"),
            ("localhost.example.org/a", "https://localhost.example.org/v2/a/blobs/uploads/"),
        ] {
            assert_eq!(session(reference).address("blobs/uploads/").unwrap().as_str(), address);
        }
        let admits = |reference: &str, url: &str| session(reference).admit(&Url::parse(url).unwrap()).is_ok();
        assert!(admits("ghcr.io/a", "https://storage.example.org/x"));
        assert!(!admits("ghcr.io/a", "http://ghcr.io/x") && !admits("ghcr.io/a", "http://localhost/x"));
        assert!(admits("localhost:5000/a", "http://localhost:5000/x"));
        assert!(!admits("localhost:5000/a", "http://localhost:5001/x"));
        assert!(
            !admits("localhost:5000/a", "http://example.org/x") && !admits("ghcr.io/a", "ftp://ghcr.io/x")
        );
    }

    #[test]
    fn words_of_a_registry_are_plain_and_short() {
        let body = |message: &str| format!(r#"{{"errors":[{{"code":"DENIED","message":"{message}"}}]}}"#);
        assert_eq!(said(body("quota exceeded").as_bytes()).as_deref(), Some("quota exceeded"));
        assert_eq!(said(body("").as_bytes()).as_deref(), Some("DENIED"));
        assert_eq!(said(body(&"x".repeat(1000)).as_bytes()).map(|said| said.len()), Some(MAX_WORDS));
        assert!(!said(body("a\\u001b[2Jb").as_bytes()).unwrap().contains('\u{1b}'));
        for nothing in ["", "<html>", "{}", r#"{"errors":[]}"#] {
            assert_eq!(said(nothing.as_bytes()), None, "{nothing}");
        }
    }
}
