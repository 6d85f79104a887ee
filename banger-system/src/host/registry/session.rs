//! Asking a registry on behalf of one user, by the OCI distribution specification 1.1
//! (<https://github.com/opencontainers/distribution-spec>).
//!
//! Nothing that a registry says leads anywhere without [`place::route`]'s word, and nothing of it is read without
//! a limit of size and time.

use std::{
    error::Error as StdError,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use oci_client::errors::OciEnvelope;
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
        WWW_AUTHENTICATE,
    },
    redirect::Policy,
};

use super::{
    patience::{Failure, Patience, Tries},
    place::{self, Guests, Resolver, Route},
    token,
};
use crate::{
    domain::oci::{Descriptor, credentials::Credentials, reference::ImageRef},
    ports::{Error, Result},
};

/// How often one request is sent on.
const MAX_REDIRECTS: usize = 5;
/// How often one request shows who asks: a token may end while others use it too.
const INTRODUCTIONS: usize = 3;
/// What is read of an error.
const MAX_ERROR_BODY: usize = 16 << 10;
/// What is shown of an error.
const MAX_ERROR_TEXT: usize = 200;
const USER_AGENT: &str = concat!("banger/", env!("CARGO_PKG_VERSION"));

/// The clients of the service. Clones share their connections.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    own: Client,
    away: Client,
    guests: Guests,
}

impl Clients {
    pub(super) fn new(patience: Patience, guests: Guests) -> Result<Self> {
        // A second call finds the first one's choice, which is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = |route| {
            Client::builder()
                .dns_resolver(Arc::new(Resolver { route, guests: guests.clone() }))
                .user_agent(USER_AGENT)
                .connect_timeout(patience.connect)
                .redirect(Policy::none())
                .referer(false)
                .retry(reqwest::retry::never())
                .no_proxy()
        };
        let failed = |error: reqwest::Error| Error::HostNotReady {
            message: format!(
                "no registry can be asked ({}); the certificates that the host trusts come with its package \
                 ca-certificates",
                reason(&error)
            ),
        };
        Ok(Self {
            own: builder(Route::Own).build().map_err(failed)?,
            away: builder(Route::Away).build().map_err(failed)?,
            guests,
        })
    }

    fn by(&self, route: Route) -> &Client {
        match route {
            Route::Own => &self.own,
            Route::Away => &self.away,
        }
    }
}

/// One user's conversation with one repository.
pub(super) struct Session {
    clients: Clients,
    pub(super) patience: Patience,
    pub(super) reference: ImageRef,
    credentials: Credentials,
    base: Url,
    /// What lets us in, once that is known.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Session {
    pub(super) fn new(
        clients: Clients,
        patience: Patience,
        reference: ImageRef,
        credentials: Credentials,
    ) -> Result<Self> {
        let base = place::base(reference.registry()).ok_or_else(|| Error::Registry {
            message: format!("{} is no address of a registry", reference.registry()),
        })?;
        Ok(Self { clients, patience, reference, credentials, base, authorization: Mutex::default() })
    }

    /// A document of at most so many bytes, with the media type that the registry gives it.
    pub(super) async fn manifest(
        &self,
        wanted: &str,
        accept: &str,
        limit: u64,
    ) -> Result<(Vec<u8>, Option<String>)> {
        let path = format!("{}/manifests/{wanted}", self.reference.repository());
        let mut tries = Tries::new(self.patience);
        loop {
            match self.document(&path, accept, limit).await {
                Ok(found) => return Ok(found),
                Err(failure) => tries.again(failure).await?,
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
        // Behind a semicolon stands a character set.
        let kind =
            kind.and_then(|kind| kind.to_str().ok()?.split(';').next()).map(|kind| kind.trim().to_owned());
        let body = read(response, limit, self.patience, &self.host()).await?;
        Ok((body, kind))
    }

    /// A blob from this byte on, or all of it: the status tells.
    pub(super) async fn blob(&self, blob: Descriptor, from: u64) -> Result<Response, Failure> {
        let path = format!("{}/blobs/{}", self.reference.repository(), blob.digest);
        let mut headers = HeaderMap::new();
        if from > 0 {
            headers.insert(RANGE, header(&format!("bytes={from}-"))?);
        }
        self.get(&path, headers).await
    }

    /// The registry, as messages call it.
    pub(super) fn host(&self) -> String {
        self.reference.registry().to_string()
    }

    /// Asks, and shows who asks when the registry wants to know.
    async fn get(&self, path: &str, headers: HeaderMap) -> Result<Response, Failure> {
        let url = self.base.join(path).map_err(|_| self.refused("it cannot be asked for this"))?;
        let mut shown = self.known();
        let mut response = self.follow(url.clone(), &headers, shown.as_ref()).await?;
        for _ in 0..INTRODUCTIONS {
            if response.status() != StatusCode::UNAUTHORIZED {
                break;
            }
            // Another request of this session may have got a newer token meanwhile.
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
            response = self.follow(url.clone(), &headers, newer.as_ref()).await?;
            shown = newer;
        }
        self.judge(response).await
    }

    fn known(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks one address after the other, for as long as each may be asked. Only the registry's own gets to know
    /// who asks.
    async fn follow(
        &self,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        for _ in 0..=MAX_REDIRECTS {
            let route = self.route(&url)?;
            let mut request = self.clients.by(route).get(url.clone()).headers(headers.clone());
            if let Some(authorization) = authorization
                && url.origin() == self.base.origin()
            {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let response = self.send(request).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
            url = target
                .and_then(|target| url.join(target).ok())
                .ok_or_else(|| self.refused("it redirects to no address"))?;
        }
        Err(self.refused(&format!("it redirects more than {MAX_REDIRECTS} times")).into())
    }

    /// Whether and how an address that the registry named may be asked.
    fn route(&self, url: &Url) -> Result<Route> {
        place::route(url, self.reference.registry(), &self.clients.guests)
            .map_err(|why| self.refused(&format!("it leads to {why}, where nobody follows it")))
    }

    /// Asks for a token at an address that the registry named.
    pub(super) async fn ask_for_token(
        &self,
        url: Url,
        form: Option<String>,
        password: Option<(&str, &str)>,
        limit: u64,
    ) -> Result<(StatusCode, Vec<u8>), Failure> {
        let client = self.clients.by(self.route(&url)?);
        let mut request = match form {
            None => client.get(url),
            Some(form) => client
                .post(url)
                .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form),
        };
        if let Some((user, secret)) = password {
            request = request.basic_auth(user, Some(secret));
        }
        let response = self.send(request).await?;
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Err(self.passing(&response));
        }
        Ok((status, read(response, limit, self.patience, &self.host()).await?))
    }

    /// What shows a password (RFC 7617).
    pub(super) fn password_header(&self, user: &str, secret: &str) -> Result<HeaderValue> {
        let request = self.clients.own.get(self.base.clone()).basic_auth(user, Some(secret)).build();
        // The error of the library says nothing of the text.
        let request = request.map_err(|error| Error::other("show who asks", error))?;
        request
            .headers()
            .get(AUTHORIZATION)
            .cloned()
            .ok_or_else(|| self.refused("it cannot be shown who asks"))
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Failure> {
        let host = self.host();
        match tokio::time::timeout(self.patience.answer, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::passing(format!("{host} cannot be reached: {}", reason(&error)))),
            Err(_) => {
                let seconds = self.patience.answer.as_secs();
                Err(Failure::passing(format!("{host} does not answer within {seconds} s")))
            }
        }
    }

    /// What an answer means that is none to a question for a token.
    async fn judge(&self, response: Response) -> Result<Response, Failure> {
        let (status, what) = (response.status(), self.reference.to_string());
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = match self.credentials {
                    Credentials::Anonymous => format!("{} wants to know who asks for {what}", self.host()),
                    _ => format!("{} does not let this user have {what}", self.host()),
                };
                Err(Error::AuthRequired { message }.into())
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(self.passing(&response)),
            _ if status.is_server_error() => Err(self.passing(&response)),
            _ => {
                let body = read(response, MAX_ERROR_BODY as u64, self.patience, &self.host())
                    .await
                    .unwrap_or_default();
                let why = match said(&body) {
                    Some(said) => format!("{}, {said}", status.as_u16()),
                    None => status.to_string(),
                };
                Err(self.refused(&format!("{what}: {why}")).into())
            }
        }
    }

    fn passing(&self, response: &Response) -> Failure {
        let after =
            response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
        Failure::Passing {
            message: format!("{} answers {}", self.host(), response.status()),
            after: after.map(Duration::from_secs),
        }
    }

    pub(super) fn refused(&self, why: &str) -> Error {
        Error::Registry { message: format!("{}: {why}", self.host()) }
    }
}

fn header(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text).map_err(|error| Error::other("write a header", error).into())
}

/// The body of an answer that is small.
async fn read(
    mut response: Response,
    limit: u64,
    patience: Patience,
    host: &str,
) -> Result<Vec<u8>, Failure> {
    let too_large =
        || Error::Registry { message: format!("{host}: an answer of more than {limit} bytes is not taken") };
    let announced = response.headers().get(CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > limit) {
        return Err(too_large().into());
    }
    let whole = async {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| broken(host, &error))? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large().into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    match tokio::time::timeout(patience.document, whole).await {
        Ok(body) => body,
        Err(_) => {
            let seconds = patience.document.as_secs();
            Err(Failure::passing(format!("{host} takes more than {seconds} s for a small answer")))
        }
    }
}

/// A connection that ended too early.
pub(super) fn broken(host: &str, error: &reqwest::Error) -> Failure {
    Failure::passing(format!("the connection to {host} broke: {}", reason(error)))
}

/// The innermost cause, which alone tells something; the address stands in the outermost one, and may be signed.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn StdError = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    plain(&cause.to_string())
}

/// What a registry says of an error.
fn said(body: &[u8]) -> Option<String> {
    let envelope: OciEnvelope = serde_json::from_slice(body).ok()?;
    let first = envelope.errors.into_iter().next()?;
    let text = if first.message.is_empty() { format!("{:?}", first.code) } else { first.message };
    Some(plain(&text))
}

fn plain(text: &str) -> String {
    text.chars().take(MAX_ERROR_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
