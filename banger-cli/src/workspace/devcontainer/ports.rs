//! The ports of a devcontainer.json. They are forwarded on the loopback of the host, whatever address the file names.

use serde_json::Value;

/// Limit on the ports.
pub const MAX_PORTS: usize = 64;

/// A port of the host and the port of the sandbox that it reaches.
pub type Pair = (u16, u16);

/// Reads an entry of `forwardPorts`: `3000`, `"3000"` or `"localhost:3000"`.
pub fn forwarded(value: &Value) -> Result<Pair, String> {
    let port = match value {
        Value::Number(number) => number.as_u64().map(|number| number.to_string()),
        Value::String(text) => match text.rsplit_once(':') {
            Some(("localhost" | "127.0.0.1", port)) => Some(port.to_owned()),
            Some((host, _)) if !host.is_empty() && !host.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err("it is a port of another container".to_owned());
            }
            Some(_) => None,
            None => Some(text.clone()),
        },
        _ => None,
    };
    let port = port.and_then(|port| number(&port)).ok_or_else(not_a_port)?;
    Ok((port, port))
}

/// Reads an entry of `appPort`: a number, or the form of `docker run --publish`.
pub fn published(value: &Value) -> Result<Pair, String> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return Err(not_a_port()),
    };
    let text = match text.split_once('/') {
        Some((text, "tcp")) => text,
        Some(_) => return Err("only TCP is forwarded".to_owned()),
        None => text.as_str(),
    };
    let mut parts = text.rsplitn(3, ':').map(number);
    match (parts.next().flatten(), parts.next()) {
        (Some(guest), None) => Ok((guest, guest)),
        (Some(guest), Some(Some(host))) => Ok((host, guest)),
        _ => Err(not_a_port()),
    }
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

fn not_a_port() -> String {
    "it is not a port".to_owned()
}
