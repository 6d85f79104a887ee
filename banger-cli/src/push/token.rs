//! Logs in to a registry: with a password, or with a token that another server issues for it
//! (<https://distribution.github.io/distribution/spec/auth/token/>).

use docker_credential::DockerCredential;
use reqwest::{
    StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, GetAll, HeaderValue},
};
use serde::Deserialize;

use super::{
    retry::Failure,
    session::{Sent, Session, read},
};
use crate::error::Error;

/// The client id in a request for a token.
const CLIENT: &str = "banger";

/// How a registry lets clients log in.
#[derive(Debug, PartialEq, Eq)]
enum Offer {
    Password,
    Token { realm: Url, service: Option<String> },
}

/// Returns the authorisation that the registry asks for, or `None` if the credentials do not fit.
pub async fn obtain(
    session: &Session,
    challenges: GetAll<'_, HeaderValue>,
) -> Result<Option<HeaderValue>, Failure> {
    let offers: Vec<Offer> =
        challenges.iter().filter_map(|text| text.to_str().ok()).flat_map(offers).collect();
    let token = offers.iter().find_map(|offer| match offer {
        Offer::Token { realm, service } => Some((realm, service.as_deref())),
        Offer::Password => None,
    });
    if let Some((realm, service)) = token {
        return ask(session, realm, service).await.map(Some);
    }
    match session.login() {
        Some(DockerCredential::UsernamePassword(user, password)) if !offers.is_empty() => {
            // The client writes the header (RFC 7617).
            let request = session.client().get(session.address("")?).basic_auth(user, Some(password)).build();
            let request = request.map_err(|_| session.refused("it cannot get the credentials"))?;
            Ok(request.headers().get(AUTHORIZATION).cloned())
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

/// Asks for a token that allows to push. Which rights that needs is known, so what the registry names is not used.
async fn ask(session: &Session, realm: &Url, service: Option<&str>) -> Result<HeaderValue, Failure> {
    session.admit(realm)?;
    let mut scopes = vec![format!("repository:{}:pull,push", session.reference().repository())];
    scopes.extend(session.mount_from.as_ref().map(|other| format!("repository:{other}:pull")));
    let mut url = realm.clone();
    url.set_fragment(None);
    let client = session.client();
    let request = match session.login() {
        Some(DockerCredential::IdentityToken(token)) => {
            let form = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", CLIENT)
                .append_pair("service", service.unwrap_or_default())
                .append_pair("scope", &scopes.join(" "))
                .append_pair("refresh_token", token)
                .finish();
            client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
        }
        login => {
            {
                let mut query = url.query_pairs_mut();
                for scope in &scopes {
                    query.append_pair("scope", scope);
                }
                if let Some(service) = service {
                    query.append_pair("service", service);
                }
            }
            let request = client.get(url);
            match login {
                Some(DockerCredential::UsernamePassword(user, password)) => {
                    request.basic_auth(user, Some(password))
                }
                _ => request,
            }
        }
    };
    let response = session.answer(request, &Sent::default()).await?;
    match response.status() {
        StatusCode::OK => {}
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(session.failure(response).await);
        }
        _ => return Err(rejected(session).into()),
    }
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let unusable = || session.refused("it sent no usable token");
    let body = read(response).await.ok_or_else(unusable)?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| unusable())?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let mut value =
        HeaderValue::from_str(&format!("Bearer {}", token.ok_or_else(unusable)?)).map_err(|_| unusable())?;
    value.set_sensitive(true);
    Ok(value)
}

fn rejected(session: &Session) -> Error {
    let why = session.login().map(|_| "it rejected the user name or password");
    session.denied(why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_offers_of_a_registry_are_read() {
        let realm = |text: &str| Url::parse(text).unwrap();
        assert_eq!(offers(r#"Basic realm="x""#), [Offer::Password]);
        assert_eq!(
            offers(r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a""#),
            [Offer::Token {
                realm: realm("https://auth.docker.io/token"),
                service: Some("registry.docker.io".to_owned())
            }]
        );
        assert_eq!(
            offers(r#"bearer Realm="https://a/t""#),
            [Offer::Token { realm: realm("https://a/t"), service: None }]
        );
        for nothing in ["", "Bearer", r#"Bearer realm="no address""#, "Negotiate"] {
            assert_eq!(offers(nothing), [], "{nothing}");
        }
    }
}
