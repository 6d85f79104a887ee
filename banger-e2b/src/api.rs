//! The half of E2B's API that is about sandboxes (`spec/openapi.yml` of E2B).

use std::collections::BTreeMap;

use hyper::{
    Method, StatusCode,
    body::Incoming,
    header::HeaderValue,
    http::{HeaderName, request::Parts},
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    http::{Code, Refusal, Response, Result, empty, json_with, parameter, parameters, read_json},
    sandboxes::{New, Row, not_found},
    server::Server,
};

/// The time limit of a sandbox whose client names none, in seconds, as E2B's.
const TIMEOUT: u64 = 300;
/// The version of envd that has what is served here, by which SDKs choose their requests.
const ENVD: &str = "0.6.1";
/// The longest page of a list.
const PAGE: usize = 100;
/// The header with the beginning of the next page.
const NEXT: HeaderName = HeaderName::from_static("x-next-token");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewSandbox {
    #[serde(rename = "templateID")]
    template: Option<String>,
    timeout: Option<u64>,
    auto_pause: Option<bool>,
    auto_pause_memory: Option<bool>,
    auto_resume: Option<AutoResume>,
    #[serde(rename = "allow_internet_access")]
    internet: Option<bool>,
    metadata: Option<BTreeMap<String, String>>,
    env_vars: Option<BTreeMap<String, String>>,
    network: Option<Value>,
    mcp: Option<Value>,
    iam: Option<Value>,
    volume_mounts: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct AutoResume {
    enabled: Option<bool>,
}

#[derive(Deserialize)]
struct Timeout {
    timeout: Option<u64>,
    /// The name in a refresh.
    duration: Option<u64>,
    memory: Option<bool>,
}

/// Answers a request that has the user's key.
pub async fn answer(server: &Server, parts: &Parts, body: Incoming) -> Result<Response> {
    let path = parts.uri.path();
    let path = path.strip_prefix("/v2").unwrap_or(path);
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (&parts.method, &*words) {
        (&Method::POST, ["sandboxes"]) => create(server, read_json(body).await?).await,
        (&Method::GET, ["sandboxes"]) => list(server, parts).await,
        (&Method::GET, ["sandboxes", id]) => {
            Ok(json_with(StatusCode::OK, &detail(server, &server.sandboxes.find(id).await?)))
        }
        (&Method::DELETE, ["sandboxes", id]) => {
            server.sandboxes.find(id).await?;
            server.sandboxes.kill(id).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::POST, ["sandboxes", id, "timeout"]) => {
            let timeout: Timeout = read_json(body).await?;
            let missing = || Refusal::new(Code::InvalidArgument, "The timeout is missing.");
            server.sandboxes.find(id).await?;
            server.sandboxes.set_timeout(id, timeout.timeout.ok_or_else(missing)?).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::POST, ["sandboxes", id, "refreshes"]) => {
            let timeout: Timeout = read_json(body).await?;
            server.sandboxes.find(id).await?;
            server.sandboxes.extend(id, timeout.duration.unwrap_or(TIMEOUT)).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::POST, ["sandboxes", id, "pause"]) => {
            let wanted: Timeout = read_json(body).await?;
            with_memory(wanted.memory)?;
            let row = server.sandboxes.find(id).await?;
            if row.is_paused() == Some(true) {
                return Err(Refusal::new(
                    Code::AlreadyExists,
                    format!("The sandbox {id} is paused already."),
                ));
            }
            server.sandboxes.pause(id).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::POST, ["sandboxes", id, verb @ ("connect" | "resume")]) => {
            connect(server, id, *verb == "resume", read_json(body).await?).await
        }
        (method, _) => Err(Refusal::unimplemented(format!("{method} {}", parts.uri.path()))),
    }
}

async fn create(server: &Server, wanted: NewSandbox) -> Result<Response> {
    let is_set = |value: &Option<Value>| match value {
        None | Some(Value::Null) => false,
        Some(Value::Object(entries)) => entries.values().any(|value| !value.is_null()),
        Some(_) => true,
    };
    let refused = [
        (is_set(&wanted.network), "the option `network`; `allow_internet_access` is there"),
        (is_set(&wanted.mcp), "the option `mcp`"),
        (is_set(&wanted.iam), "the option `iam`"),
        (wanted.volume_mounts.as_ref().is_some_and(|mounts| !mounts.is_empty()), "volumes"),
        (wanted.auto_resume.is_some_and(|resume| resume.enabled == Some(true)), "the option `auto_resume`"),
        (
            wanted.auto_pause == Some(true) && wanted.auto_pause_memory == Some(false),
            "a pause without memory",
        ),
    ];
    if let Some((_, what)) = refused.into_iter().find(|(is_wanted, _)| *is_wanted) {
        return Err(Refusal::unimplemented(what));
    }
    let new = New {
        template: wanted.template.unwrap_or_default(),
        timeout: wanted.timeout.unwrap_or(TIMEOUT),
        pauses: wanted.auto_pause.unwrap_or(false),
        internet: wanted.internet,
        metadata: wanted.metadata.unwrap_or_default(),
        variables: wanted.env_vars.unwrap_or_default(),
    };
    let row = server.sandboxes.create(new).await?;
    Ok(json_with(StatusCode::CREATED, &connection(server, &row)))
}

/// Continues a sandbox that is paused. One that runs gets more time, unless the client asked to resume it.
async fn connect(server: &Server, id: &str, resumes: bool, wanted: Timeout) -> Result<Response> {
    with_memory(wanted.memory)?;
    let row = server.sandboxes.find(id).await?;
    let timeout = wanted.timeout.unwrap_or(TIMEOUT);
    let status = match (row.is_paused(), resumes) {
        (Some(true), _) => {
            server.sandboxes.resume(&row, timeout).await?;
            StatusCode::CREATED
        }
        (Some(false), true) => {
            return Err(Refusal::new(Code::AlreadyExists, format!("The sandbox {id} runs already.")));
        }
        (Some(false), false) => {
            server.sandboxes.extend(id, timeout).await?;
            StatusCode::OK
        }
        (None, _) => return Err(not_found(id)),
    };
    Ok(json_with(status, &connection(server, &row)))
}

fn with_memory(memory: Option<bool>) -> Result<()> {
    if memory == Some(false) { Err(Refusal::unimplemented("a pause without memory")) } else { Ok(()) }
}

async fn list(server: &Server, parts: &Parts) -> Result<Response> {
    let states: Vec<String> = parameters(parts, "state")
        .flat_map(|states| states.split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let metadata = parameter(parts, "metadata").map(|text| metadata(&text)).unwrap_or_default();
    let number = |name: &str| match parameter(parts, name) {
        Some(text) => text
            .parse::<usize>()
            .map(Some)
            .map_err(|_| Refusal::new(Code::InvalidArgument, format!("{name} is no number."))),
        None => Ok(None),
    };
    let (begin, limit) = (number("nextToken")?.unwrap_or(0), number("limit")?.unwrap_or(PAGE).clamp(1, PAGE));
    let template = parameter(parts, "template");
    let rows = server.sandboxes.list().await?;
    let mut matching: Vec<&Row> = rows
        .iter()
        .filter(|row| states.is_empty() || states.iter().any(|wanted| wanted == state(row)))
        .filter(|row| template.as_ref().is_none_or(|wanted| wanted == row.template()))
        .filter(|row| {
            let has = row.metadata();
            metadata.iter().all(|(key, value)| has.get(key) == Some(value))
        })
        .collect();
    if parameter(parts, "order").is_some_and(|order| order == "asc") {
        matching.reverse();
    }
    let page: Vec<Value> = matching.iter().skip(begin).take(limit).map(|row| detail(server, row)).collect();
    let mut response = json_with(StatusCode::OK, &page);
    if begin + page.len() < matching.len() {
        response.headers_mut().insert(NEXT, HeaderValue::from(begin + page.len()));
    }
    Ok(response)
}

/// Reads the metadata of a query, which SDKs encode several times.
fn metadata(text: &str) -> BTreeMap<String, String> {
    let decoded = |text: &str| {
        let pair: String =
            url::form_urlencoded::parse(format!("={text}").as_bytes()).map(|(_, value)| value).collect();
        pair
    };
    let pairs = url::form_urlencoded::parse(text.as_bytes());
    pairs.map(|(key, value)| (decoded(&key), decoded(&value))).collect()
}

fn state(row: &Row) -> &'static str {
    if row.is_paused() == Some(true) { "paused" } else { "running" }
}

/// Returns what a client needs to reach the inside of a sandbox.
fn connection(server: &Server, row: &Row) -> Value {
    json!({
        "sandboxID": row.id,
        "templateID": row.template(),
        "alias": row.template(),
        "clientID": "banger",
        "envdVersion": ENVD,
        "envdAccessToken": server.key.token(&row.id),
        "domain": null,
    })
}

fn detail(server: &Server, row: &Row) -> Value {
    let mut detail = connection(server, row);
    let time = |microseconds: i64| Timestamp::from_microsecond(microseconds).unwrap_or_default().to_string();
    let end = i64::try_from(row.end()).ok().and_then(|end| end.checked_mul(1_000_000)).unwrap_or(i64::MAX);
    detail["state"] = state(row).into();
    detail["startedAt"] = time(row.created()).into();
    detail["endAt"] = time(end).into();
    detail["cpuCount"] = row.vcpus.into();
    detail["memoryMB"] = (row.memory >> 20).into();
    detail["diskSizeMB"] = row.disk_mebibytes().into();
    detail["metadata"] = json!(row.metadata());
    detail["lifecycle"] =
        json!({ "autoResume": false, "onTimeout": if row.pauses() { "pause" } else { "kill" } });
    detail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_of_a_query_is_decoded_as_often_as_sdks_encode_it() {
        // What is left after the query itself was decoded.
        let read = metadata("user=abc&a%2520b=c%253Dd");
        assert_eq!(read.get("user").map(String::as_str), Some("abc"));
        assert_eq!(read.get("a b").map(String::as_str), Some("c=d"));
    }
}
