//! Runs git. All calls are made here. It runs as the user, on repositories that others may have written, so their
//! configuration must not start a program, and the user's environment must not redirect git.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    thread,
};

use super::stop::{Killable, killable};
use crate::error::{Error, Result};

/// Variables that git may see. All others are removed, in particular every `GIT_…`.
const ENVIRONMENT: [&str; 6] = ["HOME", "PATH", "USER", "LOGNAME", "XDG_CONFIG_HOME", "TMPDIR"];
/// Variables that we set: untranslated messages, no prompts, no optional locks, and no fetching of missing objects.
const VARIABLES: [(&str, &str); 4] =
    [("LC_ALL", "C"), ("GIT_TERMINAL_PROMPT", "0"), ("GIT_OPTIONAL_LOCKS", "0"), ("GIT_NO_LAZY_FETCH", "1")];
/// Settings of a repository that could run programs or ask questions (git-config(1)). The command line overrides
/// them.
const SETTINGS: [&str; 10] = [
    // Files of any directory would make it a repository.
    "safe.bareRepository=explicit",
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.untrackedCache=false",
    "core.alternateRefsCommand=",
    "core.sshCommand=false",
    "core.pager=cat",
    "diff.external=",
    "protocol.allow=never",
    "submodule.recurse=false",
];
/// Limit on git's own messages in an error.
const MAX_GIT_MESSAGE: usize = 2000;

/// Git in one directory.
#[derive(Debug, Clone)]
pub struct Git {
    directory: PathBuf,
    /// Options before every command.
    options: Vec<OsString>,
    variables: Vec<(&'static str, OsString)>,
}

impl Git {
    /// Uses the repository that git finds from this directory.
    pub fn within(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), options: Vec::new(), variables: Vec::new() }
    }

    /// Uses one of banger's bare repositories.
    pub fn bare(repository: &Path) -> Self {
        let mut option = OsString::from("--git-dir=");
        option.push(repository);
        Self { directory: PathBuf::from("/"), options: vec![option], variables: Vec::new() }
    }

    /// Sets the work tree.
    pub fn with_work_tree(mut self, work_tree: &Path) -> Self {
        let mut option = OsString::from("--work-tree=");
        option.push(work_tree);
        self.options.push(option);
        self.directory = work_tree.to_owned();
        self
    }

    /// Sets the index file.
    pub fn with_index(mut self, index: &Path) -> Self {
        self.variables.push(("GIT_INDEX_FILE", index.into()));
        self
    }

    /// Adds the objects of another repository.
    pub fn with_objects_of(mut self, objects: &Path) -> Self {
        self.variables.push(("GIT_ALTERNATE_OBJECT_DIRECTORIES", quote(objects.as_os_str())));
        self
    }

    /// Writes new objects to a directory of its own, and adds those of a repository.
    pub fn with_new_objects_in(mut self, directory: &Path, objects: &Path) -> Self {
        self.variables.push(("GIT_OBJECT_DIRECTORY", directory.into()));
        self.with_objects_of(objects)
    }

    /// Sets a variable of the environment.
    pub fn with_variable(mut self, name: &'static str, value: String) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Overrides a setting.
    pub fn with_setting(mut self, setting: &str) -> Self {
        self.options.extend(["-c".into(), setting.into()]);
        self
    }

    fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<Command> {
        let mut command = Command::new(program()?);
        command.env_clear();
        for name in ENVIRONMENT {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(VARIABLES).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.arg("--no-pager").arg("-C").arg(&self.directory);
        for setting in SETTINGS {
            command.arg("-c").arg(setting);
        }
        command.args(&self.options).args(arguments);
        // This process handles signals of the terminal, and cleans up what git has begun.
        command.process_group(0);
        Ok(command)
    }

    /// Runs git to its end, and returns its output and status.
    pub fn output<A: AsRef<OsStr>>(&self, arguments: &[A], input: &[u8]) -> Result<Output> {
        let failed = |source| Error::io("run git", source);
        let mut command = self.command(arguments)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let _killable = killable(&child);
        let stdin = child.stdin.take();
        thread::scope(|scope| {
            scope.spawn(move || {
                // If git stops reading early, its status says why.
                stdin.map(|mut stdin| stdin.write_all(input))
            });
            child.wait_with_output()
        })
        .map_err(failed)
    }

    /// Runs git and returns its output. Fails if git fails.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A], input: &[u8]) -> Result<Vec<u8>> {
        let output = self.output(arguments, input)?;
        if output.status.success() { Ok(output.stdout) } else { Err(git_error(arguments, &output.stderr)) }
    }

    /// Runs git and returns the one line of its output; `None` if git fails.
    pub fn line<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<Option<Vec<u8>>> {
        let output = self.output(arguments, b"")?;
        let line = output.stdout.strip_suffix(b"\n").map(<[u8]>::to_vec);
        Ok(line.filter(|_| output.status.success()))
    }

    /// Starts git with pipes for its input and output.
    pub fn start<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<Running> {
        let mut command = self.command(arguments)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| Error::io("run git", source))?;
        let verb = arguments.first().map(|word| word.as_ref().to_owned()).unwrap_or_default();
        let errors = child.stderr.take().map(|errors| thread::spawn(move || first_bytes(errors)));
        Ok(Running { _killable: killable(&child), child: Some(child), errors, verb })
    }
}

/// A running git. It is killed if this is dropped before it has finished.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    _killable: Killable,
    /// Reads what it says, so that it never waits for that.
    errors: Option<thread::JoinHandle<Vec<u8>>>,
    verb: OsString,
}

impl Running {
    /// Returns the process.
    pub fn child(&mut self) -> Result<&mut Child> {
        self.child.as_mut().ok_or_else(|| Error::io("run git", io::ErrorKind::NotFound.into()))
    }

    /// Closes its input, and waits until it has ended successfully.
    pub fn finish(mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        drop(child.stdin.take());
        let output = child.wait_with_output().map_err(|source| Error::io("run git", source))?;
        let errors = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
        if output.status.success() { Ok(()) } else { Err(git_error(&[&self.verb], &errors)) }
    }
}

/// Reads everything, and returns the beginning.
fn first_bytes(mut from: impl Read) -> Vec<u8> {
    let mut first = Vec::new();
    // What cannot be read is lost.
    let _ = from.by_ref().take(MAX_GIT_MESSAGE as u64).read_to_end(&mut first);
    let _ = io::copy(&mut from, &mut io::sink());
    first
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn git_error<A: AsRef<OsStr>>(arguments: &[A], stderr: &[u8]) -> Error {
    let said = String::from_utf8_lossy(&stderr[..stderr.len().min(MAX_GIT_MESSAGE)]).trim().to_owned();
    let said = said.strip_prefix("fatal: ").unwrap_or(&said).to_owned();
    let verb = arguments.first().map(|word| word.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
    Error::io(format!("run `git {verb}`"), io::Error::other(said))
}

/// Returns the path of git: the first in an absolute directory of PATH, so that no program of the repository is run.
fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| {
        let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let directories = env::split_paths(&path).filter(|directory| directory.is_absolute());
        directories.map(|directory| directory.join("git")).find(|program| is_program(program))
    });
    found.as_deref().ok_or_else(|| {
        Error::Refused("git is not installed on this host".to_owned()).with_hint(
            "install it with `sudo apt install git`, or with the package manager of your distribution.",
        )
    })
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Quotes a path for a list of paths (git(1), GIT_ALTERNATE_OBJECT_DIRECTORIES).
fn quote(path: &OsStr) -> OsString {
    let mut quoted = vec![b'"'];
    for byte in path.as_bytes() {
        match byte {
            b'"' | b'\\' => quoted.extend([b'\\', *byte]),
            b'\n' => quoted.extend(b"\\n"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'"');
    OsStr::from_bytes(&quoted).to_owned()
}
