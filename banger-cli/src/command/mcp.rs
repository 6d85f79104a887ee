//! `banger mcp`.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use banger_proto::size::Bytes;
use clap::{Args, ValueHint};

use super::vm::{numbers::positive, size_args::size};
use crate::{
    client::bus::Bus,
    error::{Error, Result},
    mcp::{
        self, HostDir,
        egress_bound::EgressBound,
        policy::{LabelRule, Policy},
    },
    user::dirs::UserDirs,
};

/// The highest limits that the options may set.
const MAX_TIME: u32 = 3600;
const MAX_OUTPUT: u64 = 1 << 20;

/// Serve coding agents over MCP
///
/// Speaks the Model Context Protocol on standard input and output: add `banger mcp` to the MCP servers of your agent,
/// which starts it. The agent gets tools that create sandboxes, run commands in them, and read and write their
/// files. There is no port and no token: the server has your rights, and these options narrow them.
///
/// The agent can copy files between sandboxes and the current directory, unless that is / or your home directory.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger mcp                                     every tool, and the files of the current directory
  banger mcp --only-label agent --max 3          at most three sandboxes, all with this label
  banger mcp --no-network --no-host-files        neither internet access nor files of this host
  banger mcp --egress packages,github.com        package registries and GitHub at most
  banger mcp --image debian-bookworm --host-dir ~/src/web

In the configuration of an agent:
  {\"mcpServers\": {\"banger\": {\"command\": \"banger\", \"args\": [\"mcp\"]}}}")]
pub struct Mcp {
    /// How many sandboxes the agent may have at once
    #[arg(long, value_name = "COUNT", default_value = "10", value_parser = positive)]
    max: u32,
    /// Let the agent see only sandboxes with this label, and add the label to those that it creates. Those of earlier
    /// sessions then count for --max, too
    #[arg(long, value_name = "KEY[=VALUE]")]
    only_label: Option<LabelRule>,
    /// Give the agent's sandboxes no internet access
    #[arg(long)]
    no_network: bool,
    /// Let sandboxes of the agent reach at most this beyond the host: presets such as `packages`, or
    /// HOST[:PORT][/PROTOCOL], as for `banger vm run`. Can be repeated
    #[arg(long, value_name = "EGRESS", value_delimiter = ',', conflicts_with = "no_network")]
    egress: Vec<String>,
    /// Allow only this image; several can be given, and the first one is the default
    #[arg(long, value_name = "IMAGE")]
    image: Vec<String>,
    /// Let the agent copy files from and to this directory [default: the current one]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    host_dir: Option<PathBuf>,
    /// Let the agent copy no files from or to this host, and copy none of your own files into its sandboxes
    #[arg(long, conflicts_with = "host_dir")]
    no_host_files: bool,
    /// How long a command may run, unless the agent asks for another time; at most an hour
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = positive)]
    timeout: u32,
    /// How much of the output of a command to return, unless the agent asks for another size; at most 1MiB
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = size)]
    max_output: Bytes,
}

impl Mcp {
    pub async fn run(&self) -> Result<u8> {
        let policy = self.policy()?;
        // Standard input is the agent's, not the user's.
        let bus = Bus::connect().await?.without_prompts();
        mcp::serve(bus, policy).await.map(|()| 0)
    }

    fn policy(&self) -> Result<Policy> {
        if self.timeout > MAX_TIME {
            return Err(Error::Usage(format!("--timeout must be at most {MAX_TIME}")));
        }
        let output_limit = Some(self.max_output.0).filter(|bytes| *bytes <= MAX_OUTPUT);
        let output_limit = output_limit.and_then(|bytes| usize::try_from(bytes).ok());
        Ok(Policy {
            max: self.max,
            label: self.only_label.clone(),
            egress: match (self.no_network, self.egress.as_slice()) {
                (true, _) => Some(EgressBound::Only(Vec::new())),
                (false, []) => None,
                (false, words) => Some(
                    EgressBound::of(words)
                        .map_err(|error| Error::Usage(format!("cannot use --egress: {error}")))?,
                ),
            },
            images: self.image.clone(),
            host_dir: self.host_dir()?,
            time_limit: Duration::from_secs(self.timeout.into()),
            output_limit: output_limit
                .ok_or_else(|| Error::Usage("--max-output must be at most 1MiB".to_owned()))?,
        })
    }

    fn host_dir(&self) -> Result<Option<HostDir>> {
        if self.no_host_files {
            return Ok(None);
        }
        if let Some(path) = &self.host_dir {
            return HostDir::open(path).map(Some);
        }
        let current = env::current_dir().map_err(|source| Error::io("find the current directory", source))?;
        let home = UserDirs::of_caller().map(|dirs| dirs.home)?;
        match is_too_wide(&current, &home) {
            true => Ok(None),
            false => HostDir::open(&current).map(Some),
        }
    }
}

/// Returns whether a directory is one that an agent gets only if the user names it: many agents start their servers
/// there.
fn is_too_wide(directory: &Path, home: &Path) -> bool {
    home.canonicalize().unwrap_or_else(|_| home.to_owned()).starts_with(directory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::parse_args;

    #[test]
    fn options_bound_what_an_agent_may_do() {
        let policy = |line: &str| parse_args::<Mcp>(line).ok().and_then(|mcp| mcp.policy().ok());
        let narrow = policy("--max 3 --only-label a=b --no-network --image x --image y --no-host-files");
        let narrow = narrow.unwrap();
        assert_eq!(
            (narrow.max, narrow.egress, narrow.images.as_slice()),
            (3, Some(EgressBound::Only(Vec::new())), &["x".to_owned(), "y".to_owned()][..])
        );
        let git = EgressBound::Only(vec!["git".to_owned(), "a.example".to_owned()]);
        assert_eq!(policy("--egress git,a.example").unwrap().egress, Some(git));
        assert_eq!(policy("").unwrap().egress, None);
        assert!(narrow.host_dir.is_none() && narrow.label.is_some());
        assert_eq!(policy("--host-dir /tmp").unwrap().host_dir.unwrap().path(), Path::new("/tmp"));
        for wrong in [
            "--max 0",
            "--only-label =x",
            "--timeout 0",
            "--timeout 3601",
            "--max-output 2MiB",
            "--max-output 0",
            "--egress git,all",
            "--egress git --no-network",
            "--host-dir /nonexistent",
            "--host-dir /tmp --no-host-files",
        ] {
            assert!(policy(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn the_directory_of_all_files_has_to_be_named() {
        let home = Path::new("/home/ann");
        for (directory, expect) in
            [("/", true), ("/home", true), ("/home/ann", true), ("/home/ann/src", false), ("/srv", false)]
        {
            assert_eq!(is_too_wide(directory.as_ref(), home), expect, "{directory}");
        }
    }
}
