//! Desktop notifications for banger: of jobs of some length that ended, of jobs that failed, and of guests that failed.
//!
//! It runs in a user's session and follows the objects that this user may see in the D-Bus API. It never starts the
//! service: without one, it waits.
//!
//! ```text
//! system bus ──► news: what is worth a notification ──► pace: not too many of them ──► session bus
//! ```

mod desktop;
mod news;
mod pace;
mod service;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::StreamExt;
use zbus::{Connection, MessageStream};

use crate::{desktop::Desktop, news::News, pace::Pace};

/// The time to the next check when nothing is held back.
const IDLE: Duration = Duration::from_secs(3600);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banger-notify: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Follows the service until a bus ends.
async fn run() -> anyhow::Result<()> {
    let system = Connection::system().await.context("cannot reach the system bus")?;
    let session = Connection::session().await.context("cannot reach the session bus")?;
    let mut desktop = Desktop::new(session.clone());
    let (mut news, mut pace) = (News::default(), Pace::default());
    // Created before the subscription, so that nothing is missed.
    let mut messages = MessageStream::from(&system);
    let mut owners = service::owners(&system).await.context("cannot watch the service")?;
    let mut owner = follow(&system, &mut news).await;
    loop {
        let wait = pace.due(Instant::now()).unwrap_or(IDLE);
        tokio::select! {
            message = messages.next() => {
                let message = message.context("the system bus ended")?.context("cannot read from the system bus")?;
                if let Some(change) = service::change(&message, owner.as_deref())
                    && let Some(note) = news.hear(change, Instant::now())
                {
                    pace.add(note);
                }
            }
            change = owners.next() => {
                change.context("the system bus ended")?;
                // A service that starts again knows none of its subscribers.
                owner = follow(&system, &mut news).await;
            }
            () = session.closed() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
        while let Some(note) = pace.next(Instant::now()) {
            desktop.show(&note).await;
        }
    }
}

/// Subscribes to the service, if it runs. Returns its unique name.
async fn follow(system: &Connection, news: &mut News) -> Option<String> {
    let owner = service::owner(system).await?;
    match service::subscribe(system).await {
        Ok(objects) => news.reset(objects),
        Err(error) => eprintln!("banger-notify: cannot follow the service: {error}"),
    }
    Some(owner)
}
