//! Requests to web servers. Everything that they answer is hostile until its digest is verified. No address in an
//! answer is followed unless [`egress_policy::route`] allows it, and every read is limited in size and time.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use async_trait::async_trait;
use banger_image::oci::Descriptor;
use reqwest::{
    Client, RequestBuilder, Response, Url,
    header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER},
    redirect::Policy,
};

use super::{
    egress_policy::{self, Destination, Guests, LocalPorts, Resolver, Route},
    proxy::ProxyRule,
    retry::{Failure, Timeouts},
};
use crate::ports::{
    FromHost as _,
    registry::{Error, Result},
};

/// How many redirects one request may follow.
const MAX_REDIRECTS: usize = 5;
/// How much of a server's text is shown.
const MAX_TEXT: usize = 200;
const USER_AGENT: &str = concat!("banger/", env!("CARGO_PKG_VERSION"));

/// A server that sends blobs.
#[async_trait]
pub(super) trait Sender: Send + Sync {
    /// Requests a blob from this byte on. The server may send all of it; the status says which.
    async fn blob(&self, blob: Descriptor, from: u64) -> Result<Response, Failure>;
    /// Returns the server, for error messages and timeouts.
    fn peer(&self) -> &Peer;
}

/// The HTTP clients of the service. Clones share their connections.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    pub(super) own: Client,
    away: Client,
    guests: Guests,
    local: LocalPorts,
    proxy: Option<ProxyRule>,
}

impl Clients {
    pub(super) fn new(
        timeouts: Timeouts,
        guests: Guests,
        local: LocalPorts,
        proxy: Option<ProxyRule>,
    ) -> Result<Self> {
        // A second call keeps the first one's choice, which is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = |route| {
            let resolver =
                Resolver { route, guests: guests.clone(), proxy: proxy.as_ref().map(ProxyRule::host) };
            let builder = Client::builder()
                .dns_resolver(Arc::new(resolver))
                .user_agent(USER_AGENT)
                .connect_timeout(timeouts.connect)
                .redirect(Policy::none())
                .referer(false)
                .retry(reqwest::retry::never())
                .no_proxy();
            match &proxy {
                Some(proxy) => proxy.apply(builder)?.build(),
                None => builder.build(),
            }
        };
        let failed = |error: reqwest::Error| {
            Error::not_ready(format!(
                "cannot connect to registries ({}); the package ca-certificates has the \
                 certificates that the host trusts",
                reason(&error)
            ))
        };
        Ok(Self {
            own: builder(Route::Own).map_err(failed)?,
            away: builder(Route::Away).map_err(failed)?,
            guests,
            local,
            proxy,
        })
    }

    pub(super) fn client(&self, route: Route) -> &Client {
        match route {
            Route::Own => &self.own,
            Route::Away => &self.away,
        }
    }

    /// Returns how a request reaches an address, for messages: empty, or through which proxy.
    fn way(&self, url: &Url) -> String {
        let proxy = self.proxy.as_ref().filter(|proxy| proxy.takes(url));
        proxy.map_or_else(String::new, |proxy| format!(" through the proxy {proxy}"))
    }
}

/// A server, with the clients and timeouts for requests to it.
pub(super) struct Peer {
    pub(super) clients: Clients,
    pub(super) timeouts: Timeouts,
    pub(super) base: Destination,
    /// Its name in messages.
    pub(super) host: String,
}

impl Peer {
    /// Sends a request and follows redirects, each if the policy allows it. Only the server's own origin gets the
    /// credentials.
    pub(super) async fn follow(
        &self,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        for _ in 0..=MAX_REDIRECTS {
            let route = self.admit(&url).await?;
            let mut request = self.clients.client(route).get(url.clone()).headers(headers.clone());
            if let Some(authorization) = authorization
                && url.origin() == self.base.url.origin()
            {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let response = self.send(&url, request).await?;
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

    /// Returns how an address that the server named may be requested, or an error if it may not.
    pub(super) async fn admit(&self, url: &Url) -> Result<Route> {
        let Clients { guests, local, proxy, .. } = &self.clients;
        let route = egress_policy::route(url, &self.base, guests, local)
            .map_err(|why| self.refused(&format!("refusing to connect to {why}")))?;
        if let Some(proxy) = proxy {
            proxy.check(url, route, guests).await.map_err(|why| self.refused(why))?;
        }
        Ok(route)
    }

    /// Sends a request to an admitted address.
    pub(super) async fn send(&self, url: &Url, request: RequestBuilder) -> Result<Response, Failure> {
        let (host, way) = (&self.host, self.clients.way(url));
        match tokio::time::timeout(self.timeouts.answer, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                Err(Failure::transient(format!("{host} cannot be reached{way}: {}", reason(&error))))
            }
            Err(_) => {
                let seconds = self.timeouts.answer.as_secs();
                Err(Failure::transient(format!("{host} did not answer{way} within {seconds} s")))
            }
        }
    }

    /// Returns the failure for a status that may change.
    pub(super) fn transient(&self, response: &Response) -> Failure {
        let after =
            response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
        Failure::Transient {
            message: format!("{} answered {}", self.host, response.status()),
            after: after.map(Duration::from_secs),
        }
    }

    /// Reads a small body.
    pub(super) async fn read(&self, response: Response, limit: u64) -> Result<Vec<u8>, Failure> {
        read(response, limit, self.timeouts, &self.host).await
    }

    pub(super) fn refused(&self, why: &str) -> Error {
        Error::Refused { message: format!("{}: {why}", self.host) }
    }
}

async fn read(
    mut response: Response,
    limit: u64,
    timeouts: Timeouts,
    host: &str,
) -> Result<Vec<u8>, Failure> {
    let too_large = || Error::Refused { message: format!("{host}: the answer is larger than {limit} bytes") };
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
    match tokio::time::timeout(timeouts.document, whole).await {
        Ok(body) => body,
        Err(_) => {
            let seconds = timeouts.document.as_secs();
            Err(Failure::transient(format!("{host} took more than {seconds} s for a small answer")))
        }
    }
}

/// Returns the failure for a connection that ended too early.
pub(super) fn broken(host: &str, error: &reqwest::Error) -> Failure {
    Failure::transient(format!("the connection to {host} broke: {}", reason(error)))
}

/// Returns the innermost cause, the only useful one. The outermost has the address, which may contain a signature.
pub(super) fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn StdError = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    sanitize(&cause.to_string())
}

pub(super) fn sanitize(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
