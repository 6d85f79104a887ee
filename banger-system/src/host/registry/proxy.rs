//! The proxy of the configuration: which requests go through it, and what it may not be asked for.

use std::{fmt, sync::Arc, time::Duration};

use banger_image::oci::reach::Proxy;
use hyper::http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{ClientBuilder, NoProxy, Url};

use super::egress_policy::{Guests, Route, check_addresses};

/// How long a name may take to resolve. Behind a proxy, a host may have no name server for names of the internet.
const RESOLVE: Duration = Duration::from_secs(2);

/// A proxy. Clones share it.
#[derive(Clone)]
pub(super) struct ProxyRule {
    proxy: Proxy,
    matcher: Arc<Matcher>,
}

impl ProxyRule {
    pub(super) fn new(proxy: &Proxy) -> Self {
        let matcher = Matcher::builder().all(proxy.url().as_str()).no(proxy.except()).build();
        Self { proxy: proxy.clone(), matcher: Arc::new(matcher) }
    }

    /// Makes a client send its requests through the proxy.
    pub(super) fn apply(&self, builder: ClientBuilder) -> reqwest::Result<ClientBuilder> {
        let proxy = reqwest::Proxy::all(self.proxy.url().clone())?;
        Ok(builder.proxy(proxy.no_proxy(NoProxy::from_string(&self.proxy.except()))))
    }

    /// Returns the name of the proxy, which the administrator may have given any address.
    pub(super) fn host(&self) -> String {
        self.proxy.host().to_owned()
    }

    /// Returns whether a request for an address goes through the proxy.
    pub(super) fn takes(&self, url: &Url) -> bool {
        url.as_str().parse::<Uri>().is_ok_and(|uri| self.matcher.intercept(&uri).is_some())
    }

    /// Checks that a name is not one of the host, its link, or a guest: the proxy may run on this host, and resolve it
    /// as this host does. What only the proxy can resolve is its own to judge.
    pub(super) async fn check(&self, url: &Url, route: Route, guests: &Guests) -> Result<(), &'static str> {
        let Some(name) = url.domain() else { return Ok(()) };
        let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((name, 0))).await;
        match found {
            Ok(Ok(found)) => check_addresses(name, found.collect(), route, guests).map(drop),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

impl fmt::Display for ProxyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.proxy.fmt(f)
    }
}

impl fmt::Debug for ProxyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.proxy)
    }
}
