//! Requests to a registry on behalf of a user, by the OCI distribution specification 1.1
//! (<https://github.com/opencontainers/distribution-spec>).

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use banger_image::{
    catalog::location::is_this_host,
    oci::{Descriptor, credentials::Credentials, reach::Mirror, reference::ImageRef},
};
use banger_proto::causes::with_causes;
use oci_client::errors::OciEnvelope;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE},
};

use super::{
    egress_policy::{self, Destination, NamedBy},
    http::{Clients, Peer, Sender, sanitize},
    retry::{Failure, Retries, Timeouts},
    token,
};
use crate::ports::{
    FromHost as _,
    registry::{Error, Result},
};

/// How often one request is authorised again: a token may expire while others use it too.
const MAX_AUTHORIZATIONS: usize = 3;
/// How much of an error is read.
const MAX_ERROR_BODY: u64 = 16 << 10;

/// One user's session with one repository.
pub(super) struct Session {
    peer: Peer,
    pub(super) reference: ImageRef,
    credentials: Credentials,
    /// The authorisation, once there is one.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Session {
    pub(super) fn new(
        clients: Clients,
        timeouts: Timeouts,
        reference: ImageRef,
        credentials: Credentials,
    ) -> Result<Self> {
        let base = egress_policy::base(reference.registry()).ok_or_else(|| Error::Refused {
            message: format!("{} is not an address of a registry", reference.registry()),
        })?;
        let host = reference.registry().to_string();
        let peer = Peer { clients, timeouts, base, host };
        Ok(Self { peer, reference, credentials, authorization: Mutex::default() })
    }

    /// Returns a session with a mirror of the registry. It does not get the user's credentials, which are the
    /// registry's.
    pub(super) fn with_mirror(
        clients: Clients,
        timeouts: Timeouts,
        reference: ImageRef,
        mirror: &Mirror,
    ) -> Self {
        let url = mirror.base.clone();
        let host = url.host_str().unwrap_or_default().to_owned();
        let is_loopback = is_this_host(&url);
        let base = Destination { url, is_loopback, named_by: NamedBy::Administrator };
        let peer = Peer { clients, timeouts, base, host };
        Self { peer, reference, credentials: Credentials::Anonymous, authorization: Mutex::default() }
    }

    /// Returns a document of at most this many bytes, with its media type according to the registry.
    pub(super) async fn manifest(
        &self,
        wanted: &str,
        accept: &str,
        limit: u64,
    ) -> Result<(Vec<u8>, Option<String>)> {
        let path = format!("{}/manifests/{wanted}", self.reference.repository());
        let mut retries = Retries::new(self.peer.timeouts);
        loop {
            match self.document(&path, accept, limit).await {
                Ok(found) => return Ok(found),
                Err(failure) => retries.wait_to_retry(failure).await?,
            }
        }
    }

    async fn document(
        &self,
        path: &str,
        accept: &str,
        limit: u64,
    ) -> Result<(Vec<u8>, Option<String>), Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, header(accept)?);
        let response = self.get(path, headers).await?;
        let kind = response.headers().get(reqwest::header::CONTENT_TYPE);
        // A character set may follow after a semicolon.
        let kind =
            kind.and_then(|kind| kind.to_str().ok()?.split(';').next()).map(|kind| kind.trim().to_owned());
        let body = self.peer.read(response, limit).await?;
        Ok((body, kind))
    }

    /// Logs why the next server is asked instead of this mirror.
    pub(super) fn log_fallback(&self, error: &Error) {
        let error = with_causes(error);
        tracing::warn!(mirror = self.host(), registry = %self.reference.registry(), error, "cannot use a mirror");
    }

    /// Returns the registry's name in messages.
    pub(super) fn host(&self) -> &str {
        &self.peer.host
    }

    /// Sends a request, with credentials if the registry asks for them.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<Response, Failure> {
        let url =
            self.peer.base.url.join(path).map_err(|_| self.refused("it has no address for this request"))?;
        let mut shown = self.known();
        let mut response = self.peer.follow(url.clone(), &headers, shown.as_ref()).await?;
        for _ in 0..MAX_AUTHORIZATIONS {
            if response.status() != StatusCode::UNAUTHORIZED {
                break;
            }
            // Another request of this session may have got a newer token.
            let newer = match self.known() {
                newer if newer != shown && newer.is_some() => newer,
                _ => {
                    let asked = token::obtain(self, response.headers().get_all(WWW_AUTHENTICATE)).await?;
                    self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&asked);
                    asked
                }
            };
            if newer.is_none() || newer == shown {
                break;
            }
            response = self.peer.follow(url.clone(), &headers, newer.as_ref()).await?;
            shown = newer;
        }
        self.check_status(response).await
    }

    fn known(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests a token at an address that the registry named.
    pub(super) async fn ask_for_token(
        &self,
        url: Url,
        form: Option<String>,
        password: Option<(&str, &str)>,
        limit: u64,
    ) -> Result<(StatusCode, Vec<u8>), Failure> {
        let client = self.peer.clients.client(self.peer.admit(&url).await?);
        let mut request = match form {
            None => client.get(url.clone()),
            Some(form) => client
                .post(url.clone())
                .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form),
        };
        if let Some((user, secret)) = password {
            request = request.basic_auth(user, Some(secret));
        }
        let response = self.peer.send(&url, request).await?;
        let status = response.status();
        if may_pass(status) {
            return Err(self.transient(response).await);
        }
        Ok((status, self.peer.read(response, limit).await?))
    }

    /// Returns the failure for a status that may pass, with what the registry says about it: how long a limit of its
    /// lasts, for example.
    async fn transient(&self, response: Response) -> Failure {
        let failure = self.peer.transient(&response);
        let body = self.peer.read(response, MAX_ERROR_BODY).await.unwrap_or_default();
        match (failure, said(&body)) {
            (Failure::Transient { message, after }, Some(said)) => {
                Failure::Transient { message: format!("{message}: {said}"), after }
            }
            (failure, _) => failure,
        }
    }

    /// Returns the header for a password (RFC 7617).
    pub(super) fn password_header(&self, user: &str, secret: &str) -> Result<HeaderValue> {
        let request =
            self.peer.clients.own.get(self.peer.base.url.clone()).basic_auth(user, Some(secret)).build();
        // The library's error does not quote the text.
        let request = request.map_err(|error| Error::other("send the credentials", error))?;
        request
            .headers()
            .get(AUTHORIZATION)
            .cloned()
            .ok_or_else(|| self.refused("it cannot get the credentials"))
    }

    pub(super) fn refused(&self, why: &str) -> Error {
        self.peer.refused(why)
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Maps the status of a response that is not about a token to a [`Failure`].
    async fn check_status(&self, response: Response) -> Result<Response, Failure> {
        let (status, what) = (response.status(), self.reference.to_string());
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = match self.credentials {
                    Credentials::Anonymous => format!("{} requires a login for {what}", self.host()),
                    _ => format!("{} denies you access to {what}", self.host()),
                };
                Err(Error::AuthRequired { message }.into())
            }
            _ if may_pass(status) => Err(self.transient(response).await),
            _ => {
                let body = self.peer.read(response, MAX_ERROR_BODY).await.unwrap_or_default();
                let why = match said(&body) {
                    Some(said) => format!("{}, {said}", status.as_u16()),
                    None => status.to_string(),
                };
                Err(self.refused(&format!("{what}: {why}")).into())
            }
        }
    }
}

#[async_trait]
impl Sender for Session {
    async fn blob(&self, blob: Descriptor, from: u64) -> Result<Response, Failure> {
        let path = format!("{}/blobs/{}", self.reference.repository(), blob.digest);
        self.get(&path, from_byte(from)?).await
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// Returns whether another attempt may get another status.
fn may_pass(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) || status.is_server_error()
}

/// Returns the header that requests the content from this byte on.
pub(super) fn from_byte(from: u64) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    if from > 0 {
        headers.insert(RANGE, header(&format!("bytes={from}-"))?);
    }
    Ok(headers)
}

fn header(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text).map_err(|error| Error::other("write a header", error).into())
}

/// Returns the registry's description of an error.
fn said(body: &[u8]) -> Option<String> {
    let envelope: OciEnvelope = serde_json::from_slice(body).ok()?;
    let first = envelope.errors.into_iter().next()?;
    let text = if first.message.is_empty() { format!("{:?}", first.code) } else { first.message };
    Some(sanitize(&text))
}
