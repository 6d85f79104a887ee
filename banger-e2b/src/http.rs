//! Requests, responses, and errors in E2B's form.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    StatusCode,
    body::{Body as HttpBody, Frame, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    http::request::Parts,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::sync::mpsc;

/// Limit on a body that is read at once.
const MAX_BODY: usize = 4 << 20;

/// A response.
pub type Response = hyper::Response<Body>;
/// Where the bytes of a streamed response go.
pub type Stream = mpsc::Sender<io::Result<Bytes>>;

/// The body of a response.
pub enum Body {
    /// All of it.
    Whole(Bytes),
    /// Bytes as they come. The response ends when the sender is dropped, and is broken off by an error.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(receiver) => {
                receiver.poll_recv(context).map(|bytes| bytes.map(|bytes| bytes.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(bytes) => hyper::body::SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// Why a request fails, by the names of the Connect protocol (<https://connectrpc.com/docs/protocol/#error-codes>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request makes no sense.
    InvalidArgument,
    /// There is no valid key or token.
    Unauthenticated,
    /// The user may not do this.
    PermissionDenied,
    /// There is nothing by this name.
    NotFound,
    /// It is there already, or is in this state already.
    AlreadyExists,
    /// A limit is reached.
    ResourceExhausted,
    /// It took too long.
    DeadlineExceeded,
    /// This is not served.
    Unimplemented,
    /// The sandbox does not run.
    Unavailable,
    /// Anything else.
    Internal,
}

impl Code {
    /// Returns the name in the Connect protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::ResourceExhausted => "resource_exhausted",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Unimplemented => "unimplemented",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// Returns the status of HTTP. For a sandbox that does not run, it is that of E2B's proxy.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::BAD_GATEWAY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A request that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// The same in words.
    pub message: String,
}

impl Refusal {
    /// Returns a refusal.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Returns that something is not served.
    pub fn unimplemented(what: impl AsRef<str>) -> Self {
        Self::new(Code::Unimplemented, format!("banger-e2b does not serve {}.", what.as_ref()))
    }

    /// Returns it as E2B's API and the HTTP half of envd send it.
    pub fn response(&self) -> Response {
        let status = self.code.status();
        json_with(status, &json!({ "code": status.as_u16(), "message": self.message }))
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::new(Code::Internal, error.to_string())
    }
}

/// The result of a request.
pub type Result<T> = std::result::Result<T, Refusal>;

/// Returns a response with a body of JSON.
pub fn json_with(status: StatusCode, value: &impl Serialize) -> Response {
    // These are maps and texts, which can always be written.
    let body = serde_json::to_vec(value).unwrap_or_default();
    with_type(status, "application/json", Body::Whole(body.into()))
}

/// Returns a response without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::Whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// Returns a response with a body of a type.
pub fn with_type(status: StatusCode, kind: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Reads a body of JSON. Without a body, the value is read from an empty object.
pub async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T> {
    let bytes = read(body).await?;
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text)
        .map_err(|error| Refusal::new(Code::InvalidArgument, format!("The body cannot be read: {error}.")))
}

/// Reads a body at once.
pub async fn read(body: Incoming) -> Result<Bytes> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Refusal::new(Code::InvalidArgument, format!("The body is longer than {MAX_BODY} bytes.")))
        }
        Err(error) => Err(Refusal::new(Code::InvalidArgument, format!("The body ended early: {error}."))),
    }
}

/// Returns a header's text, or nothing if it has none.
pub fn header<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    parts.headers.get(name).and_then(|value| value.to_str().ok())
}

/// Returns a parameter of the query.
pub fn parameter(parts: &Parts, name: &str) -> Option<String> {
    parameters(parts, name).next()
}

/// Returns all values of a parameter of the query.
pub fn parameters<'a>(parts: &'a Parts, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let query = parts.uri.query().unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes())
        .filter(move |(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}
