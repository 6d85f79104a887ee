//! Requests to web servers, whose every answer is hostile until its digest is verified. No address that one gives is
//! followed without [`place::route`]'s consent, and nothing is read without a limit of size and time.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use async_trait::async_trait;
use banger_image::oci::Descriptor;
use reqwest::{
    Client, RequestBuilder, Response, Url,
    header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER},
    redirect::Policy,
};

use super::{
    patience::{Failure, Patience},
    place::{self, Base, Guests, LocalPorts, Resolver, Route},
};
use crate::ports::{Error, Result};

/// How often one request is sent on.
const MAX_REDIRECTS: usize = 5;
/// What is shown of a text of a server's.
const MAX_TEXT: usize = 200;
const USER_AGENT: &str = concat!("banger/", env!("CARGO_PKG_VERSION"));

/// Who sends blobs.
#[async_trait]
pub(super) trait Sender: Send + Sync {
    /// A blob from this byte on, or all of it: the status tells.
    async fn blob(&self, blob: Descriptor, from: u64) -> Result<Response, Failure>;
    /// Whom messages are about, and how long to wait.
    fn asker(&self) -> &Asker;
}

/// The clients of the service. Clones share their connections.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    pub(super) own: Client,
    away: Client,
    guests: Guests,
    local: LocalPorts,
}

impl Clients {
    pub(super) fn new(patience: Patience, guests: Guests, local: LocalPorts) -> Result<Self> {
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
                "cannot connect to registries ({}); the package ca-certificates has the \
                 certificates that the host trusts",
                reason(&error)
            ),
        };
        Ok(Self {
            own: builder(Route::Own).build().map_err(failed)?,
            away: builder(Route::Away).build().map_err(failed)?,
            guests,
            local,
        })
    }

    pub(super) fn by(&self, route: Route) -> &Client {
        match route {
            Route::Own => &self.own,
            Route::Away => &self.away,
        }
    }
}

/// A conversation with one server, and with those that it sends us to.
pub(super) struct Asker {
    pub(super) clients: Clients,
    pub(super) patience: Patience,
    pub(super) base: Base,
    /// What messages call it.
    pub(super) host: String,
}

impl Asker {
    /// Asks one address after the other, for as long as each may be asked. Only the server's own gets to know who
    /// asks.
    pub(super) async fn follow(
        &self,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        for _ in 0..=MAX_REDIRECTS {
            let route = self.route(&url)?;
            let mut request = self.clients.by(route).get(url.clone()).headers(headers.clone());
            if let Some(authorization) = authorization
                && url.origin() == self.base.url.origin()
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
                .ok_or_else(|| self.refused("it redirects without a valid address"))?;
        }
        Err(self.refused(&format!("it redirects more than {MAX_REDIRECTS} times")).into())
    }

    /// Whether and how an address that the server named may be asked.
    pub(super) fn route(&self, url: &Url) -> Result<Route> {
        place::route(url, &self.base, &self.clients.guests, &self.clients.local)
            .map_err(|why| self.refused(&format!("refusing to connect to {why}")))
    }

    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let host = &self.host;
        match tokio::time::timeout(self.patience.answer, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::passing(format!("{host} cannot be reached: {}", reason(&error)))),
            Err(_) => {
                let seconds = self.patience.answer.as_secs();
                Err(Failure::passing(format!("{host} did not answer within {seconds} s")))
            }
        }
    }

    /// The failure of a status that may be another one the next time.
    pub(super) fn passing(&self, response: &Response) -> Failure {
        let after =
            response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
        Failure::Passing {
            message: format!("{} answered {}", self.host, response.status()),
            after: after.map(Duration::from_secs),
        }
    }

    /// The body of an answer that is small.
    pub(super) async fn read(&self, response: Response, limit: u64) -> Result<Vec<u8>, Failure> {
        read(response, limit, self.patience, &self.host).await
    }

    pub(super) fn refused(&self, why: &str) -> Error {
        Error::Registry { message: format!("{}: {why}", self.host) }
    }
}

async fn read(
    mut response: Response,
    limit: u64,
    patience: Patience,
    host: &str,
) -> Result<Vec<u8>, Failure> {
    let too_large =
        || Error::Registry { message: format!("{host}: the answer is larger than {limit} bytes") };
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
            Err(Failure::passing(format!("{host} took more than {seconds} s for a small answer")))
        }
    }
}

/// A connection that ended too early.
pub(super) fn broken(host: &str, error: &reqwest::Error) -> Failure {
    Failure::passing(format!("the connection to {host} broke: {}", reason(error)))
}

/// The innermost cause, the only useful one; the outermost has the address, which may have a signature in it.
pub(super) fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn StdError = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    plain(&cause.to_string())
}

pub(super) fn plain(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
