//! The tools that a repository asks for, which mise installs in the sandbox (https://mise.jdx.dev).

use std::collections::BTreeMap;

use banger_proto::guest::{Exec, Frame, Request};

use super::{prepare::Plan, record::Record};
use crate::{
    error::{Error, Result},
    guest::Guest,
    plain::Filter,
};

/// The files by which mise knows what a repository wants, at its top.
const FILES: [&str; 4] = ["mise.toml", ".mise.toml", ".config/mise.toml", ".tool-versions"];
/// What is said in the sandbox when mise has not come with the image.
pub const NO_MISE: u8 = 127;
/// Whose the workspaces are, whatever user the image has for its own programs.
pub const OWNER: &str = "root";
/// As much of what a program says as is shown, in lines and in bytes.
const LINES: usize = 20;
const MOST: usize = 16 << 10;
/// Where what mise says is kept in the sandbox, below the home of whose the workspace is.
pub const LOG: &str = ".cache/banger/mise-install.log";

/// The file by which this repository asks for tools, if it does.
pub fn wanted(plan: &Plan) -> Option<&'static str> {
    FILES.into_iter().find(|name| plan.files.iter().any(|file| file.path == name.as_bytes()))
}

/// Tools come over the network: without a way out nothing can be installed, which is better known before.
pub fn check(plan: &Plan, nat: bool) -> Result<()> {
    match wanted(plan) {
        Some(file) if !nat => Err(Error::Refused(format!(
            "the repository asks for tools in {file}, and the sandbox has no internet access"
        ))
        .advise("`--nat` gives it internet access; `--no-bootstrap` skips the tools.")),
        _ => Ok(()),
    }
}

/// Installs the tools of a workspace. Returns the status, and the last of what mise said where that is not 0.
pub async fn install(guest: &mut Guest, record: &Record) -> Result<(u8, Vec<u8>)> {
    let script = format!(
        "command -v mise > /dev/null || exit {NO_MISE}\n\
         log=$HOME/{LOG}\n\
         mkdir -p \"$(dirname \"$log\")\"\n\
         mise trust --quiet --all . > \"$log\" 2>&1\n\
         mise install --yes >> \"$log\" 2>&1 && exit 0\n\
         tail -n {LINES} \"$log\"\n\
         exit 1"
    );
    run(guest, record, &["sh".to_owned(), "-c".to_owned(), script]).await
}

/// Runs a command in a workspace, without input. Returns its status, and the last of what it said.
pub async fn run(guest: &mut Guest, record: &Record, argv: &[String]) -> Result<(u8, Vec<u8>)> {
    let mut exec = Exec {
        argv: argv.to_vec(),
        cwd: Some(record.guest_path.clone()),
        user: Some(record.owner().to_owned()),
        ..Exec::default()
    };
    put_env(&mut exec, &record.env);
    hear(guest, exec).await
}

async fn hear(guest: &mut Guest, exec: Exec) -> Result<(u8, Vec<u8>)> {
    guest
        .call(Request::Exec(exec), |call| {
            call.end_input()?;
            let mut said = Vec::new();
            loop {
                match call.frame()? {
                    Frame::Output(bytes) | Frame::ErrorOutput(bytes) => {
                        said.extend(bytes);
                        said.drain(..said.len().saturating_sub(MOST));
                    }
                    Frame::Exit(exit) => return Ok((exit.status(), said)),
                    Frame::Failed(failure) => return Err(Error::Guest(failure)),
                    _ => {}
                }
            }
        })
        .await
}

/// The last lines of what a program said, for people.
pub fn last_lines(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(&Filter::default().pass(said)).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("{line}\n")).collect()
}

/// Variables of a workspace, where the user has not set them for a command.
pub fn put_env(exec: &mut Exec, env: &BTreeMap<String, String>) {
    let unset = |(name, _): &(&String, &String)| exec.env.iter().all(|(set, _)| set != *name);
    let more: Vec<_> = env.iter().filter(unset).map(|(name, value)| (name.clone(), value.clone())).collect();
    exec.env.extend(more);
}

/// Gives all of a workspace to a user of the sandbox; whether there is that user.
pub async fn give(guest: &mut Guest, path: &str, user: &str) -> Result<bool> {
    const SCRIPT: &str = "id -u -- \"$1\" > /dev/null 2>&1 || exit 3\nexec chown -hR -- \"$1\" \"$2\"";
    let words = ["sh", "-c", SCRIPT, "sh", user, path].map(str::to_owned);
    let exec = Exec {
        argv: words.to_vec(),
        cwd: Some("/".to_owned()),
        user: Some(OWNER.to_owned()),
        ..Exec::default()
    };
    match hear(guest, exec).await? {
        (0, _) => Ok(true),
        (3, _) => Ok(false),
        (_, said) => Err(Error::Refused(format!(
            "cannot give {path} to {user} in the sandbox: {}",
            last_lines(&said).trim_end()
        ))),
    }
}

/// A command that finds the tools of the workspace that it runs in.
pub fn wrapped(argv: &[String]) -> Vec<String> {
    ["mise", "exec", "--"].map(str::to_owned).into_iter().chain(argv.iter().cloned()).collect()
}
