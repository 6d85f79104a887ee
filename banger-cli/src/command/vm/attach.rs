//! `banger vm attach`.

use banger_proto::{
    bus::option::agent,
    guest::{FailureKind, Request, facts::Detached, message::is_session_name},
};
use clap::Args;

use super::sessions;
use crate::{
    error::{Error, Result},
    guest::{
        agent::Guest,
        attach::{self, Ended, Stdin},
    },
    ui::signals::{Signals, unless_ended},
};

/// Attach to a session in a sandbox
///
/// `banger vm exec --session NAME` and `banger vm shell --session NAME` start a session. It continues when your terminal or
/// the connection is gone. This shows the last 64 KiB of its output and passes on what you type. Ctrl-P Ctrl-Q leaves it
/// running, and so does Ctrl-C with `--no-stdin`. One client is attached at a time: the next one takes over.
///
/// A session that has ended shows the end of its output, and its exit status is that of this command.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm shell --session work web
  banger vm attach web
  banger vm attach web work
  banger vm sessions web                    all sessions, and how they ended

Exit status:
  that of the session's command, or 128 plus the number of the signal that ended it
  0    you left the session with Ctrl-P Ctrl-Q, or with Ctrl-C and `--no-stdin`
  125  banger itself failed
  126  another client has taken over")]
pub struct AttachCommand {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Name of the session [default: the running one that was started last]
    #[arg(value_name = "SESSION", value_parser = session_name)]
    session: Option<String>,
    /// Only watch: pass on neither input nor signals
    #[arg(short = 'n', long)]
    no_stdin: bool,
}

impl AttachCommand {
    pub async fn run(&self) -> Result<u8> {
        let mut guest = Guest::of(&self.sandbox).await?;
        let commands: Vec<Detached> = guest.query_to_use(Request::Detached).await?;
        let found = self.choose(sessions::latest(commands))?;
        let session = found.session.as_deref().unwrap_or_default();
        let mut listener = Signals::catch()?.listen();
        let opening = guest.bus().open_agent(guest.vm(), agent::COMMAND, None);
        let stream =
            unless_ended(&mut listener, opening).await.map_err(|error| error.about(&self.sandbox))?;
        let stdin = if self.no_stdin { Stdin::Null } else { Stdin::Ours };
        let ended = attach::resume(stream, session, found.terminal, stdin, &mut listener).await;
        finish(ended, &self.sandbox, session)
    }

    /// Chooses among the sessions of the sandbox.
    fn choose(&self, sessions: Vec<Detached>) -> Result<Detached> {
        let sandbox = &self.sandbox;
        match &self.session {
            Some(name) => sessions
                .into_iter()
                .find(|found| found.session.as_ref() == Some(name))
                .ok_or_else(|| sessions::unknown(sandbox, name)),
            None => {
                sessions.into_iter().filter(|found| found.running).max_by_key(|found| found.id).ok_or_else(
                    || {
                        Error::Refused(format!("no session runs in {sandbox}"))
                            .with_hint(format!("`banger vm shell --session NAME {sandbox}` starts one."))
                    },
                )
            }
        }
    }
}

/// Returns the exit status of a client that was attached to a session. Says how to attach again.
pub fn finish(ended: Result<Ended>, sandbox: &str, session: &str) -> Result<u8> {
    match ended {
        Ok(Ended::Exit(status)) => Ok(status),
        Ok(Ended::Left) => {
            eprintln!(
                "the session {session} continues; `banger vm attach {sandbox} {session}` attaches again"
            );
            Ok(0)
        }
        Err(error) if continues(&error) => {
            Err(error.with_hint(format!("`banger vm attach {sandbox} {session}` attaches to the session.")))
        }
        Err(error) => Err(error.about(sandbox)),
    }
}

/// Returns whether the session still runs, or did when the client left.
fn continues(error: &Error) -> bool {
    match error {
        Error::Attach(_) | Error::Interrupted { .. } | Error::Remote(_) => true,
        Error::Guest(failure) => failure.kind == FailureKind::AlreadyExists,
        _ => false,
    }
}

/// Parses the name of a session.
pub fn session_name(text: &str) -> Result<String, String> {
    if is_session_name(text) {
        return Ok(text.to_owned());
    }
    Err("a session has a name of at most 64 letters, digits, `.`, `_` and `-`, and begins with a letter or digit"
        .to_owned())
}

#[cfg(test)]
mod tests {
    use banger_proto::guest::Failure;

    use super::*;
    use crate::{
        cli::parse_args,
        ui::wording::{check, shown},
    };

    #[test]
    fn a_session_needs_a_valid_name() {
        for (line, fits) in [
            ("web work", true),
            ("web -n work", true),
            ("web", true),
            ("web a/b", false),
            ("web -- -x", false),
            ("web work more", false),
        ] {
            assert_eq!(parse_args::<AttachCommand>(line).is_ok(), fits, "{line}");
        }
    }

    #[test]
    fn errors_of_attach_say_how_to_continue() {
        let message = "another client has attached to the session work".to_owned();
        let taken = Error::Guest(Failure { kind: FailureKind::Other, message });
        let message = "a session work runs already".to_owned();
        let busy = Error::Guest(Failure { kind: FailureKind::AlreadyExists, message });
        let errors = [
            ("lost", Error::Attach(attach::Error::HungUp)),
            ("interrupted", Error::Interrupted { signal: 1 }),
            ("taken over", taken),
            ("busy", busy),
        ];
        let finished = errors.map(|(name, error)| (name, finish(Err(error), "web", "work").err()));
        let failed = finished.into_iter().filter_map(|(name, error)| Some((name, error?)));
        check("errors_of_attach", &shown(failed));
        assert!(matches!(finish(Ok(Ended::Left), "web", "work"), Ok(0)));
        assert!(matches!(finish(Ok(Ended::Exit(7)), "web", "work"), Ok(7)));
    }
}
