//! `banger vm cp`.

mod between;
mod fetch;
mod send;
pub mod side;
mod stream;

use banger_copy::Names;
use clap::Args;

use self::side::Side;
use crate::{
    error::{Error, Result},
    ui::{
        progress::{Progress, ProgressArgs},
        sanitize,
    },
};

/// Copy files and directories into a sandbox, out of it, or between two
///
/// Write a path in a sandbox as SANDBOX:PATH. PATH is absolute, or below the home directory of the user that
/// commands run as (`web:notes`, `web:`) or of another user (`web:~ann/notes`). Directories are copied with
/// everything below them. A copy in a sandbox belongs to the user that commands run as. A copy on the host
/// belongs to you, with permissions that your umask allows. A hyphen means a tar archive on standard
/// input (plain, gzip or zstd) or standard output.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm cp notes.txt web:
  banger vm cp Makefile src web:/srv/app/
  banger vm cp web:/var/log ./logs
  banger vm cp web:/srv/data/. copy-of-data
  banger vm cp web:/etc/hosts db:/tmp/
  tar -cz src | banger vm cp - web:/srv
  banger vm cp web:/etc - | tar -t

If the destination is a directory or ends in a slash, the copy goes into it under its own name. Otherwise the copy gets \
the name of the destination. SOURCE/. copies only the contents of a directory. Missing directories are created. Symbolic links \
are copied as links; sockets, fifos and devices are not copied.")]
pub struct Cp {
    /// What to copy: paths, SANDBOX:PATH, or -
    #[arg(value_name = "FROM", required = true)]
    from: Vec<String>,
    /// Where to copy it: a path, SANDBOX:PATH, or -
    #[arg(value_name = "TO")]
    to: String,
    /// Copy the targets of symbolic links instead of the links
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Give the copy in the sandbox to this user and group
    #[arg(long, value_name = "USER[:GROUP]")]
    chown: Option<String>,
    /// Accepted for users of cp and scp: directories are always copied whole
    #[arg(short = 'r', long = "recursive")]
    _recursive: bool,
    /// Accepted for users of cp and docker: times, permissions and links are always kept
    #[arg(short = 'a', long = "archive")]
    _archive: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

/// How to copy.
pub struct Copying<'a> {
    pub progress: &'a Progress,
    pub follow: bool,
    pub chown: Option<&'a str>,
    /// Names of files on the host that a copy may have.
    pub names: Names,
}

impl Cp {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let copying = Copying {
            progress: &progress,
            follow: self.follow_link,
            chown: self.chown.as_deref(),
            names: Names::Any,
        };
        let (to, sources) = (Side::parse(&self.to), self.from.as_slice());
        if sources.len() > 1 && (to == Side::Stream || sources.iter().any(|source| source == "-")) {
            return Err(Error::Usage("cannot copy an archive together with other paths".to_owned())
                .with_hint("copy the archive and the other paths with separate commands."));
        }
        // Several copies need separate names.
        let to = if sources.len() > 1 { to.into_directory() } else { to };
        for from in sources {
            let from = Side::parse(from);
            let notes = match (&from, &to) {
                (Side::Sandbox(from), Side::Sandbox(to)) => copying.between(from, to).await,
                (_, Side::Sandbox(to)) => copying.send(&from, to).await,
                (Side::Sandbox(_), _) if self.chown.is_some() => {
                    Err(Error::Usage("`--chown` works only for copies into a sandbox".to_owned()))
                }
                (Side::Sandbox(from), _) => copying.fetch(from, &to).await,
                _ => Err(Error::Usage("none of the paths is in a sandbox".to_owned())
                    .with_hint("write a path in a sandbox as SANDBOX:PATH, such as `web:/root/`.")),
            };
            for remark in notes? {
                progress.note(&format!("note: {}.", sanitize::line(&remark)));
            }
        }
        Ok(0)
    }
}
