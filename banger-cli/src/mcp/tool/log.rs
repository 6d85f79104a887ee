//! The tool that reads logs.

use banger_proto::{
    bus::{option::log, proxy::Options},
    guest::{Request, message::DetachedLog},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use zbus::Variant;

use super::{Call, Effect, Found, Tool};
use crate::{
    error::{Error, Result},
    guest::attach::Input,
    mcp::capture::Clip,
    ui::{sanitize::Filter, signals::unless_ended},
};

/// How many lines are returned unless the call says otherwise.
const LINES: u32 = 100;

/// Arguments of `logs`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// Name, id or id prefix of the sandbox.
    sandbox: String,
    /// The number of a background command, as `exec` returned it. The console of the guest if absent.
    #[serde(default)]
    background_id: Option<u64>,
    /// How many of the last lines to return: 100 if absent.
    #[serde(default)]
    lines: Option<u32>,
}

/// Result of `logs`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Log {
    /// The lines, without control sequences; the middle is left out if there is too much.
    text: String,
    /// Whether something is left out of `text`.
    truncated: bool,
}

impl Tool for Logs {
    const NAME: &'static str = "logs";
    const ABOUT: &'static str =
        "Shows the last lines of the console of a sandbox, or of the output of a background command.";
    const EFFECT: Effect = Effect::Reads;
    type Output = Log;

    async fn run(self, call: Call) -> Result<Log> {
        let found = call.find(&self.sandbox).await?;
        let lines = self.lines.unwrap_or(LINES);
        let clip = Clip::new(call.policy().output_limit);
        let read = match self.background_id {
            Some(id) => of_command(&call, &found, id, lines, clip).await,
            None => unless_ended(&mut call.listener(), of_console(&call, &found, lines, clip)).await,
        };
        let clip = read.map_err(|error| found.about(error))?;
        Ok(Log { text: clip.text(), truncated: clip.left_out() > 0 })
    }
}

async fn of_console(call: &Call, found: &Found, lines: u32, mut clip: Clip) -> Result<Clip> {
    let failed = |source| Error::io("read the log", source);
    let options = Options::from([(log::TAIL, Variant::from(lines))]);
    let pipe = call.bus().open_log(&found.path, log::CONSOLE, &options).await?;
    let mut pipe = Input::new(pipe).map_err(failed)?;
    let (mut filter, mut buffer) = (Filter::default(), vec![0; 64 << 10]);
    loop {
        match pipe.read(&mut buffer).await.map_err(failed)? {
            0 => return Ok(clip),
            count => clip.push(&filter.pass(&buffer[..count])),
        }
    }
}

async fn of_command(call: &Call, found: &Found, id: u64, lines: u32, mut clip: Clip) -> Result<Clip> {
    let request = Request::DetachedLog(DetachedLog { id, lines: Some(lines), follow: false });
    let mut guest = call.guest(found);
    let reading = guest.call(request, move |call| {
        let mut filter = Filter::default();
        while let Some(bytes) = call.output()? {
            clip.push(&filter.pass(&bytes));
        }
        Ok(clip)
    });
    reading.await
}
