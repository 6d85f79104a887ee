//! Contents of files in a sandbox: `/files` of envd. Bytes go through a command that runs as the user in the sandbox, and
//! are never kept in memory as a whole.

use std::io;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{StatusCode, body::Incoming, http::request::Parts};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::ChildStdin,
    sync::mpsc,
    time::timeout,
};

use super::{
    filesystem::{BEGIN, cleaned, failed, shell},
    multipart::{Form, Item},
};
use crate::{
    banger::{REPLY, Running, up_to},
    http::{Body, Code, Refusal, Response, Result, header, json_with, parameter, with_type},
    server::Server,
};

/// Limit on one upload.
const MAX_UPLOAD: u64 = 16 << 30;
/// Limit on files of one upload.
const MAX_FILES: usize = 1000;
/// How much is read from a file at once.
const PIECE: usize = 64 << 10;
/// How many pieces wait for the client.
const QUEUE: usize = 4;
/// Limit on what is kept of an error.
const MAX_ERROR: u64 = 4 << 10;

const READ: &str = r#"
[ -e "$path" ] || fail 65 "$path does not exist."
[ -d "$path" ] && fail 67 "$path is a directory."
[ -r "$path" ] || fail 68 "$path cannot be read."
exec cat -- "$path"
"#;
const WRITE: &str = r#"
[ -d "$path" ] && fail 67 "$path is a directory."
case $path in */*) mkdir -p -- "${path%/*}/" || exit 68 ;; esac
cat >"$path" || exit 68
printf '%s' "$path"
"#;

/// Sends the content of a file.
pub async fn download(server: &Server, sandbox: &str, parts: &Parts) -> Result<Response> {
    let path = path(parts)?.ok_or_else(|| Refusal::new(Code::InvalidArgument, "The path is missing."))?;
    server.sandboxes.check_running(sandbox).await?;
    let exec = shell(parameter(parts, "username"), &[BEGIN, READ].concat(), &[&path], false);
    let mut running = server.banger.exec(sandbox, &exec)?;
    let mut output = running.child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    let mut piece = vec![0; PIECE];
    // The first bytes, or their absence, say whether there is a file at all.
    let late = |_| Refusal::new(Code::DeadlineExceeded, "The sandbox did not answer in time.");
    let length = timeout(REPLY, output.read(&mut piece)).await.map_err(late)??;
    if length == 0 {
        ended(running).await?;
        return Ok(with_type(StatusCode::OK, "application/octet-stream", Body::Whole(Bytes::new())));
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut length = length;
        loop {
            if sender.send(Ok(Bytes::copy_from_slice(&piece[..length]))).await.is_err() {
                return;
            }
            length = match output.read(&mut piece).await {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) => return drop(sender.send(Err(error)).await),
            };
        }
        if let Err(refusal) = ended(running).await {
            // The client sees that the response is not whole.
            drop(sender.send(Err(io::Error::other(refusal.message))).await);
        }
    });
    Ok(with_type(StatusCode::OK, "application/octet-stream", Body::Stream(receiver)))
}

/// Writes files, and returns what was written.
pub async fn upload(server: &Server, sandbox: &str, parts: &Parts, body: Incoming) -> Result<Response> {
    if header(parts, "content-encoding").is_some_and(|encoding| encoding != "identity") {
        return Err(Refusal::unimplemented("compressed files"));
    }
    if parts.headers.keys().any(|name| name.as_str().starts_with("x-metadata-")) {
        return Err(Refusal::unimplemented("metadata of files"));
    }
    let user = parameter(parts, "username");
    let path = path(parts)?;
    server.sandboxes.check_running(sandbox).await?;
    let begin = |path: &str| Writing::begin(server, sandbox, user.clone(), path);
    let kind = header(parts, "content-type").unwrap_or_default();
    let mut body = Pieces { body, left: MAX_UPLOAD };
    let mut written = Vec::new();
    if kind.to_ascii_lowercase().starts_with("multipart/form-data") {
        let mut form = Form::new(kind)?;
        let mut file: Option<Writing> = None;
        while let Some(bytes) = body.next().await? {
            form.push(&bytes);
            while let Some(item) = form.next_item()? {
                match item {
                    Item::Part(Some(_)) if written.len() >= MAX_FILES => {
                        let message = format!("There are more than {MAX_FILES} files.");
                        return Err(Refusal::new(Code::InvalidArgument, message));
                    }
                    Item::Part(name) => {
                        // The path of the query is that of the only file.
                        let name =
                            name.map(|name| path.clone().map_or_else(|| cleaned(&name), Ok)).transpose()?;
                        file = name.map(|name| begin(&name)).transpose()?;
                    }
                    Item::Data(bytes) => {
                        if let Some(file) = &mut file {
                            file.write(&bytes).await?;
                        }
                    }
                    Item::End => {
                        if let Some(file) = file.take() {
                            written.push(file.end().await?);
                        }
                    }
                }
            }
        }
        form.finish()?;
    } else {
        let path = path.ok_or_else(|| Refusal::new(Code::InvalidArgument, "The path is missing."))?;
        let mut file = begin(&path)?;
        while let Some(bytes) = body.next().await? {
            file.write(&bytes).await?;
        }
        written.push(file.end().await?);
    }
    Ok(json_with(StatusCode::OK, &written))
}

fn path(parts: &Parts) -> Result<Option<String>> {
    parameter(parts, "path").filter(|path| !path.is_empty()).map(|path| cleaned(&path)).transpose()
}

/// A body that comes in pieces, up to a limit.
struct Pieces {
    body: Incoming,
    left: u64,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let broken =
                |error| Refusal::new(Code::InvalidArgument, format!("The body ended early: {error}."));
            let Ok(bytes) = frame.map_err(broken)?.into_data() else { continue };
            let left = self.left.checked_sub(bytes.len() as u64);
            let long = || {
                Refusal::new(Code::InvalidArgument, format!("The body is longer than {MAX_UPLOAD} bytes."))
            };
            self.left = left.ok_or_else(long)?;
            return Ok(Some(bytes));
        }
        Ok(None)
    }
}

/// A file that is being written. Dropping it ends the program in the sandbox, and leaves what it has.
struct Writing {
    running: Running,
    input: Option<ChildStdin>,
}

impl Writing {
    fn begin(server: &Server, sandbox: &str, user: Option<String>, path: &str) -> Result<Self> {
        let exec = shell(user, &[BEGIN, WRITE].concat(), &[path], true);
        let mut running = server.banger.exec(sandbox, &exec)?;
        let input = running.child.stdin.take();
        Ok(Self { running, input })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(input) = &mut self.input else { return Ok(()) };
        if timeout(REPLY, input.write_all(bytes)).await.is_err() {
            return Err(Refusal::new(Code::DeadlineExceeded, "The sandbox took no more bytes."));
        }
        // If the program has ended, its errors say why.
        Ok(())
    }

    async fn end(mut self) -> Result<Value> {
        drop(self.input.take());
        let path = ended(self.running).await?;
        let path = String::from_utf8_lossy(&path);
        let name = path.rsplit('/').next().unwrap_or_default();
        Ok(json!({ "name": name, "type": "file", "path": path }))
    }
}

/// Waits for the end of a program, and returns what it still prints.
async fn ended(mut running: Running) -> Result<Vec<u8>> {
    let (stdout, stderr) = (running.child.stdout.take(), running.child.stderr.take());
    let all = async {
        let (output, errors) = tokio::try_join!(up_to(stdout, PIECE as u64), up_to(stderr, MAX_ERROR))?;
        Ok::<_, io::Error>((output, errors, running.child.wait().await?.code()))
    };
    let late = |_| Refusal::new(Code::DeadlineExceeded, "The sandbox did not answer in time.");
    let (output, errors, status) = timeout(REPLY, all).await.map_err(late)??;
    match (running.failure(status), status) {
        (Some(refusal), _) => Err(refusal),
        (None, Some(0)) => Ok(output),
        (None, status) => Err(failed(status, &errors)),
    }
}
