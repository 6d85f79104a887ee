//! The credentials of a user for a registry.

use std::fmt;

use serde::Deserialize;

/// The longest accepted text. Tokens have a few kilobytes at most.
pub const MAX_CREDENTIALS: usize = 64 << 10;

/// How a user authenticates to a registry. It is kept as long as a job needs it, and never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Not at all.
    #[default]
    Anonymous,
    /// By a name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        secret: String,
    },
    /// By a token for which the registry's authorisation server issues access tokens (OAuth 2, RFC 6749 section 6).
    RefreshToken(String),
}

/// The text is not credentials. The error does not quote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("credentials are an object with either username and password or identity-token")]
pub struct NotCredentials;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Raw {
    username: Option<String>,
    password: Option<String>,
    identity_token: Option<String>,
}

impl Credentials {
    /// Parses the JSON from a client.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotCredentials> {
        if bytes.len() > MAX_CREDENTIALS {
            return Err(NotCredentials);
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(|_| NotCredentials)?;
        match raw {
            // A colon would end the name (RFC 7617).
            Raw { username: Some(user), password: Some(secret), identity_token: None }
                if !user.contains(':') =>
            {
                Ok(Self::Password { user, secret })
            }
            Raw { username: None, password: None, identity_token: Some(token) } => {
                Ok(Self::RefreshToken(token))
            }
            _ => Err(NotCredentials),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Password { .. } => "Password",
            Self::RefreshToken(_) => "RefreshToken",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_one_thing_or_the_other_and_never_shown() {
        let read = |text: &str| Credentials::parse(text.as_bytes());
        let password = Credentials::Password { user: "alice".into(), secret: "geheim".into() };
        assert_eq!(read(r#"{"username":"alice","password":"geheim"}"#), Ok(password.clone()));
        assert_eq!(read(r#"{"identity-token":"t"}"#), Ok(Credentials::RefreshToken("t".into())));
        assert_eq!(format!("{password:?}"), "Password");
        for text in [
            "",
            "{}",
            "[]",
            r#"{"username":"a"}"#,
            r#"{"username":"a:b","password":"c"}"#,
            r#"{"username":"a","password":"b","identity-token":"c"}"#,
            r#"{"identity-token":"c","x":1}"#,
        ] {
            assert_eq!(read(text), Err(NotCredentials), "{text}");
        }
    }
}
