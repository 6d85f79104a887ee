//! The tools that a repository asks for, which mise installs in the sandbox (https://mise.jdx.dev).

use banger_proto::guest::{Exec, Frame, Request};

use super::prepare::Plan;
use crate::{
    error::{Error, Result},
    guest::Guest,
};

/// The files by which mise knows what a repository wants, at its top.
const FILES: [&str; 4] = ["mise.toml", ".mise.toml", ".config/mise.toml", ".tool-versions"];
/// What is said in the sandbox when mise has not come with the image.
pub const NO_MISE: u8 = 127;
/// Whose the workspaces are, whatever user the image has for its own programs.
pub const OWNER: &str = "root";
/// As much of what it says as is shown, in lines and in bytes.
const LINES: u32 = 20;
const MOST: usize = 64 << 10;
/// Where what mise says is kept in the sandbox.
pub const LOG: &str = "/root/.cache/banger/mise-install.log";

/// The file by which this repository asks for tools, if it does.
pub fn wanted(plan: &Plan) -> Option<&'static str> {
    FILES.into_iter().find(|name| plan.files.iter().any(|file| file.path == name.as_bytes()))
}

/// Tools come over the network: without a way out nothing can be installed, which is better known before.
pub fn check(plan: &Plan, nat: bool) -> Result<()> {
    match wanted(plan) {
        Some(file) if !nat => Err(Error::Refused(format!(
            "the repository asks for tools in {file}, and the sandbox would not reach what lies beyond this host"
        ))
        .advise("`--nat` lets it; `--no-bootstrap` does without the tools.")),
        _ => Ok(()),
    }
}

/// Installs the tools of a workspace. Returns the status, and the last of what mise said where that is not 0.
pub async fn install(guest: &mut Guest, guest_path: &str) -> Result<(u8, Vec<u8>)> {
    let script = format!(
        "command -v mise > /dev/null || exit {NO_MISE}\n\
         mkdir -p \"$(dirname {LOG})\"\n\
         mise trust --quiet --all . > {LOG} 2>&1\n\
         mise install --yes >> {LOG} 2>&1 && exit 0\n\
         tail -n {LINES} {LOG} >&2\n\
         exit 1"
    );
    let exec = Exec {
        argv: vec!["sh".to_owned(), "-c".to_owned(), script],
        cwd: Some(guest_path.to_owned()),
        user: Some(OWNER.to_owned()),
        ..Exec::default()
    };
    guest
        .call(Request::Exec(exec), |call| {
            call.end_input()?;
            let mut said = Vec::new();
            loop {
                match call.frame()? {
                    Frame::ErrorOutput(bytes) if said.len() < MOST => said.extend(bytes),
                    Frame::Exit(exit) => return Ok((exit.status(), said)),
                    Frame::Failed(failure) => return Err(Error::Guest(failure)),
                    _ => {}
                }
            }
        })
        .await
}

/// A command that finds the tools of the workspace that it runs in.
pub fn wrapped(argv: &[String]) -> Vec<String> {
    ["mise", "exec", "--"].map(str::to_owned).into_iter().chain(argv.iter().cloned()).collect()
}
