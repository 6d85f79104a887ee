//! Logging in to a registry: with a password, or with a token that another server issues for it
//! (<https://distribution.github.io/distribution/spec/auth/token/>).

use banger_image::oci::credentials::Credentials;
use reqwest::{
    StatusCode, Url,
    header::{GetAll, HeaderValue},
};
use serde::Deserialize;

use super::{retry::Failure, session::Session};
use crate::ports::{
    FromHost as _,
    registry::{Error, Result},
};

/// Tokens are some kilobytes at most.
const MAX_ANSWER: u64 = 64 << 10;
/// The client id in a request for a token.
const CLIENT: &str = "banger";

/// An authentication scheme that a registry offers.
enum Offer {
    Password,
    Token { realm: Url, service: Option<String> },
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Returns the authorisation that the registry asks for, or `None` if the credentials do not fit.
pub(super) async fn obtain(
    session: &Session,
    challenges: GetAll<'_, HeaderValue>,
) -> Result<Option<HeaderValue>, Failure> {
    let offers: Vec<Offer> =
        challenges.iter().filter_map(|text| text.to_str().ok()).flat_map(offers).collect();
    let token = offers.iter().find_map(|offer| match offer {
        Offer::Token { realm, service } => Some((realm, service)),
        Offer::Password => None,
    });
    if let Some((realm, service)) = token {
        return ask(session, realm, service.as_deref()).await.map(Some);
    }
    match session.credentials() {
        Credentials::Password { user, secret } if !offers.is_empty() => {
            Ok(Some(session.password_header(user, secret)?))
        }
        _ => Ok(None),
    }
}

fn offers(text: &str) -> Vec<Offer> {
    let challenges = http_auth::parse_challenges(text).unwrap_or_default();
    let offer = |challenge: http_auth::ChallengeRef<'_>| {
        let value = |name: &str| {
            let param = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            param.map(|(_, value)| value.to_unescaped())
        };
        match challenge.scheme.to_ascii_lowercase().as_str() {
            "basic" => Some(Offer::Password),
            "bearer" => {
                Some(Offer::Token { realm: Url::parse(&value("realm")?).ok()?, service: value("service") })
            }
            _ => None,
        }
    };
    challenges.into_iter().filter_map(offer).collect()
}

async fn ask(session: &Session, realm: &Url, service: Option<&str>) -> Result<HeaderValue, Failure> {
    // We know the scope that we need, so the one that the registry names is not used.
    let scope = format!("repository:{}:pull", session.reference.repository());
    let (form, password) = match session.credentials() {
        Credentials::RefreshToken(token) => {
            let form = encode(&[
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT),
                ("service", service.unwrap_or_default()),
                ("scope", &scope),
                ("refresh_token", token),
            ]);
            (Some(form), None)
        }
        Credentials::Password { user, secret } => (None, Some((user.as_str(), secret.as_str()))),
        Credentials::Anonymous => (None, None),
    };
    let mut url = realm.clone();
    url.set_fragment(None);
    if form.is_none() {
        let mut query = url.query_pairs_mut();
        query.append_pair("scope", &scope);
        if let Some(service) = service {
            query.append_pair("service", service);
        }
    }
    let (status, body) = session.ask_for_token(url, form, password, MAX_ANSWER).await?;
    if status != StatusCode::OK {
        let message = match session.credentials() {
            Credentials::Anonymous => {
                format!("{} requires a login for {}", session.host(), session.reference)
            }
            _ => format!("{} rejected the user name or password", session.host()),
        };
        return Err(Error::AuthRequired { message }.into());
    }
    let unusable = || session.refused("it sent no usable token");
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| unusable())?;
    let token =
        answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(unusable)?;
    secret_header(&format!("Bearer {token}"))
}

fn secret_header(text: &str) -> Result<HeaderValue, Failure> {
    // The library's error does not quote the text.
    let mut value =
        HeaderValue::from_str(text).map_err(|error| Error::other("send the credentials", error))?;
    value.set_sensitive(true);
    Ok(value)
}

fn encode(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authentication_schemes_are_parsed() {
        let read = |text: &str| {
            let name = |offer: &Offer| match offer {
                Offer::Password => "password".to_owned(),
                Offer::Token { realm, service } => format!("{realm} {}", service.as_deref().unwrap_or("-")),
            };
            offers(text).iter().map(name).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(read(r#"Basic realm="x""#), "password");
        assert_eq!(
            read(r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:c""#),
            "https://auth.docker.io/token registry.docker.io"
        );
        assert_eq!(read(r#"bearer Realm="https://a/t""#), "https://a/t -");
        assert_eq!(read(r#"Negotiate, Basic realm="x""#), "password");
        for nothing in ["", "Bearer", r#"Bearer realm="no address""#, "\u{1}", r#"Bearer service="x""#] {
            assert_eq!(read(nothing), "", "{nothing:?}");
        }
    }
}
