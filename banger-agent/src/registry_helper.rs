//! Credentials of registries for one command: this program is offered to docker, podman and skopeo as the credential helper
//! `docker-credential-banger` (docker/docker-credential-helpers, README.md), which asks the host.
//!
//! ```text
//!   DIRECTORY/bin/docker-credential-banger     a copy of this program
//!   DIRECTORY/docker/config.json               DOCKER_CONFIG: the user's, and the helper for the shared registries
//!   DIRECTORY/auth.json                        REGISTRY_AUTH_FILE: the same for podman and skopeo
//!   DIRECTORY/socket                           where the host answers
//! ```
//!
//! The directory is in memory and root's; the configurations and the socket belong to the user of the command. It goes when
//! the host hangs up.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt, fchown, lchown, symlink},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use banger_proto::guest::{
    FailureKind, Frame,
    message::{RegistryHelper, Started},
};
use rustix::process::{Gid, Uid};
use serde_json::{Map, Value};

use crate::{
    account::Account,
    conversation::{kind_of, refuse},
    port::Port,
    runtime_dir,
};

/// What follows `docker-credential-` in configurations.
const HELPER: &str = "banger";
const PROGRAM: &str = "docker-credential-banger";
const SOCKET: &str = "socket";
/// More than any configuration has.
const MAX_CONFIG: u64 = 4 << 20;
/// Limit on the name of a registry, and on an answer of the host.
const MAX_SERVER: u64 = 4 << 10;
const MAX_ANSWER: u64 = 256 << 10;
/// Limit on entries of the user's directory of docker that are offered as well.
const MAX_ENTRIES: usize = 256;
/// How long the host may take, with the time of the user's own helper.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// How long the user's files may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// What clients know as the answer that there are no credentials.
const NOT_FOUND: &str = "credentials not found in native keychain";
const NOT_HERE: &str =
    "the credentials of this registry are on the host of the sandbox, and cannot be changed here";

/// Offers the helper until the host hangs up.
pub fn offer(port: &mut Port, wanted: &RegistryHelper) -> io::Result<()> {
    let account = match Account::find(&wanted.user)? {
        Some(account) => account,
        None => {
            return refuse(port, FailureKind::BadRequest, &format!("there is no user {}", wanted.user));
        }
    };
    let directory = match Directory::create(wanted, &account) {
        Ok(directory) => directory,
        Err(error) => {
            return refuse(
                port,
                kind_of(&error),
                &format!("cannot offer credentials of registries: {error}"),
            );
        }
    };
    port.send(&Frame::Started(Started::new(0)))?;
    // Nothing follows.
    let ended = port.wait_frame().map(drop);
    drop(directory);
    ended
}

/// The directory, which is removed when this is dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Directory {
    fn create(wanted: &RegistryHelper, account: &Account) -> io::Result<Self> {
        let path = PathBuf::from(&wanted.directory);
        if !path.is_absolute() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let OfUser { configurations: [docker, podman], entries } = OfUser::read(account, &wanted.registries)?;
        DirBuilder::new().mode(0o711).create(&path)?;
        // Removed if anything fails from here on.
        let this = Self(path);
        let make = |name: &str, mode: u32| {
            let path = this.0.join(name);
            DirBuilder::new().mode(mode).create(&path).map(|()| path)
        };
        let (bin, of_docker) = (make("bin", 0o755)?, make("docker", 0o700)?);
        let mut program = create(&bin.join(PROGRAM), 0o755)?;
        io::copy(&mut File::open("/proc/self/exe")?, &mut program)?;
        // Files are given away by their descriptors, and the directory above them stays root's: a user who can rename in it
        // could make root give away something else.
        let give = |path: &Path, text: String| {
            let mut file = create(path, 0o600)?;
            file.write_all(text.as_bytes())?;
            fchown(&file, Some(account.uid), Some(account.gid))
        };
        give(&of_docker.join("config.json"), docker.to_string())?;
        give(&this.0.join("auth.json"), podman.to_string())?;
        // What else the user's docker has stays reachable, such as its plug-ins and contexts.
        for entry in entries {
            if let Some(name) = entry.file_name() {
                symlink(&entry, of_docker.join(name))?;
            }
        }
        lchown(&of_docker, Some(account.uid), Some(account.gid))?;
        Ok(this)
    }
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// What the user has in the sandbox.
struct OfUser {
    /// Those of docker and of podman, with the helper.
    configurations: [Value; 2],
    /// The other entries of docker's directory.
    entries: Vec<PathBuf>,
}

impl OfUser {
    /// Reads it with the user's rights: names and links in a home are the user's to choose, and root may read more. It is read
    /// in a thread of its own, because a file system of the user may hang.
    fn read(account: &Account, registries: &[String]) -> io::Result<Self> {
        let runtime = runtime_dir::of(account);
        let (account, registries) = (account.clone(), registries.to_vec());
        let (done, reading) = mpsc::channel();
        let read = move || {
            become_user(&account)?;
            let configurations = configurations(&account, runtime.as_deref(), &registries)?;
            let directory = fs::read_dir(Path::new(&account.home).join(".docker"));
            let entries =
                directory.into_iter().flatten().flatten().take(MAX_ENTRIES).map(|entry| entry.path());
            let entries = entries.filter(|path| !path.ends_with("config.json")).collect();
            Ok(Self { configurations, entries })
        };
        thread::Builder::new().name("configurations".to_owned()).spawn(move || {
            // The request may have been given up.
            let _ = done.send(read());
        })?;
        let late =
            |_| Err(io::Error::new(io::ErrorKind::TimedOut, "the user's files cannot be read in time"));
        reading.recv_timeout(READ_TIMEOUT).unwrap_or_else(late)
    }
}

/// Gives this thread the rights of a user, and takes all others from it.
fn become_user(account: &Account) -> io::Result<()> {
    // Only root can; tests may run as another user.
    if account.uid == 0 || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let groups: Vec<Gid> = account.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_gid(Gid::from_raw(account.gid))?;
    rustix::thread::set_thread_uid(Uid::from_raw(account.uid))?;
    Ok(())
}

/// Returns the configurations of docker and of podman: those that the user has, with the helper for these registries.
fn configurations(
    account: &Account,
    runtime: Option<&Path>,
    registries: &[String],
) -> io::Result<[Value; 2]> {
    let home = Path::new(&account.home);
    let docker = read(&home.join(".docker/config.json"))?;
    let mut podman = Map::new();
    // As containers-auth.json(5) reads them: the last of these counts first.
    let others = [
        Some(home.join(".config/containers/auth.json")),
        runtime.map(|dir| dir.join("containers/auth.json")),
    ];
    let others = others.into_iter().flatten().map(|path| read(&path)).collect::<io::Result<Vec<_>>>()?;
    for config in [&docker].into_iter().chain(&others) {
        for key in ["auths", "credHelpers"] {
            if let Some(Value::Object(entries)) = config.get(key)
                && let Value::Object(known) = podman.entry(key).or_insert_with(|| Map::new().into())
            {
                known.extend(entries.clone());
            }
        }
    }
    Ok([with_helper(docker, registries).into(), with_helper(podman, registries).into()])
}

/// Adds the helper for these registries, which counts before everything else in the configuration.
fn with_helper(mut config: Map<String, Value>, registries: &[String]) -> Map<String, Value> {
    let mut helpers = match config.remove("credHelpers") {
        Some(Value::Object(helpers)) => helpers,
        _ => Map::new(),
    };
    helpers.extend(registries.iter().map(|registry| (registry.clone(), HELPER.into())));
    config.insert("credHelpers".to_owned(), helpers.into());
    config
}

/// Reads a configuration of the user. Returns an empty one if the file does not exist.
fn read(path: &Path) -> io::Result<Map<String, Value>> {
    // Opening a pipe does not wait.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{} {why}", path.display()));
    let file = match opened {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Map::new());
        }
        Err(error) => {
            return Err(io::Error::new(error.kind(), format!("{} cannot be read: {error}", path.display())));
        }
    };
    if !file.metadata()?.is_file() {
        return Err(wrong("is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(wrong("is larger than 4 MiB"));
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(config)) => Ok(config),
        // docker takes an empty file.
        _ if bytes.iter().all(u8::is_ascii_whitespace) => Ok(Map::new()),
        _ => Err(wrong("is not valid JSON with an object")),
    }
}

/// Returns whether a client of registries has started this process as its helper.
pub fn is_request(arguments: &[String]) -> bool {
    let program = arguments.first().map(Path::new).and_then(Path::file_name);
    program.is_some_and(|name| name == PROGRAM)
}

/// Runs as the helper.
pub fn run(arguments: &[String]) -> ExitCode {
    let socket = env::current_exe().ok().and_then(|program| Some(program.parent()?.parent()?.join(SOCKET)));
    let verb = arguments.get(1).map(String::as_str).unwrap_or_default();
    let mut input = String::new();
    if verb != "list" {
        let _ = io::stdin().take(MAX_SERVER).read_to_string(&mut input);
    }
    // Clients read errors from the standard output, too.
    let (said, code) = match helped(verb, &input, &socket.unwrap_or_default()) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(why) => (why, ExitCode::FAILURE),
    };
    let _ = writeln!(io::stdout(), "{said}");
    code
}

fn helped(verb: &str, input: &str, socket: &Path) -> Result<String, String> {
    match verb {
        "get" => match ask(input.trim(), socket) {
            Ok(answer) if answer.is_empty() => Err(NOT_FOUND.to_owned()),
            Ok(answer) => Ok(answer),
            Err(error) => Err(format!("cannot ask the host of the sandbox: {error}")),
        },
        // Only the host knows, and says it for one registry at a time.
        "list" => Ok("{}".to_owned()),
        "store" | "erase" => Err(NOT_HERE.to_owned()),
        _ => Err(format!("usage: {PROGRAM} get|list|store|erase")),
    }
}

/// Asks the host for the credentials of a server. The answer is empty if there are none.
fn ask(server: &str, socket: &Path) -> io::Result<String> {
    let mut host = UnixStream::connect(socket)?;
    host.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    writeln!(host, "get {}", server.lines().next().unwrap_or_default())?;
    host.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    host.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixListener,
    };

    use banger_proto::guest::Request;
    use rustix::fs::{FileType, Mode};
    use serde_json::json;

    use super::*;
    use crate::test_host::Host;

    fn account(home: &Path) -> Account {
        Account {
            name: "ann".into(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: Vec::new(),
            home: home.to_str().unwrap().to_owned(),
            shell: "/bin/sh".into(),
        }
    }

    #[test]
    fn configurations_of_the_user_stay_valid() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let registries = ["ghcr.io".to_owned()];
        let read = |registries: &[String]| {
            configurations(&account(home.path()), Some(&home.path().join("run")), registries)
        };
        let only = json!({"credHelpers": {"ghcr.io": "banger"}});
        assert_eq!(read(&registries).unwrap(), [only.clone(), only]);
        write(
            ".docker/config.json",
            r#"{"auths": {"a": {"auth": "1"}}, "credsStore": "pass", "credHelpers": {"ghcr.io": "x", "b": "y"}, "proxies": {}}"#,
        );
        write(".config/containers/auth.json", r#"{"auths": {"a": {"auth": "2"}, "c": {}}}"#);
        write("run/containers/auth.json", r#"{"auths": {"a": {"auth": "3"}}}"#);
        let [docker, podman] = read(&registries).unwrap();
        assert_eq!(
            docker,
            json!({
                "auths": {"a": {"auth": "1"}}, "credsStore": "pass", "proxies": {},
                "credHelpers": {"ghcr.io": "banger", "b": "y"},
            })
        );
        assert_eq!(
            podman,
            json!({"auths": {"a": {"auth": "3"}, "c": {}}, "credHelpers": {"ghcr.io": "banger", "b": "y"}})
        );
        for wrong in ["{", "[]", "null"] {
            write(".docker/config.json", wrong);
            let why = read(&registries).unwrap_err().to_string();
            assert!(why.ends_with(".docker/config.json is not valid JSON with an object"), "{why}");
        }
        write(".docker/config.json", "\n");
        assert!(read(&registries).is_ok());
    }

    #[test]
    fn a_pipe_is_no_configuration_and_does_not_block() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".docker")).unwrap();
        let path = home.path().join(".docker/config.json");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let refused = OfUser::read(&account(home.path()), &[]).err().unwrap().to_string();
        assert!(refused.ends_with("config.json is not a file"), "{refused}");
    }

    #[test]
    fn the_files_of_others_are_not_read() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (home, of_root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        allow(home.path(), 0o755);
        allow(of_root.path(), 0o700);
        let other = Account { uid: 4242, gid: 4242, ..account(home.path()) };
        let read = || OfUser::read(&other, &[]);
        let path = home.path().join(".docker/config.json");
        fs::create_dir(home.path().join(".docker")).unwrap();
        fs::write(&path, "{\"proxies\": {}}").unwrap();
        fs::write(home.path().join(".docker/contexts"), "").unwrap();
        allow(&path, 0o600);
        assert!(read().err().unwrap().to_string().contains("config.json cannot be read: Permission denied"));
        // Those that an image has for everybody are.
        allow(&path, 0o644);
        let found = read().ok().unwrap();
        assert!(found.configurations[0].get("proxies").is_some());
        assert_eq!(found.entries, [home.path().join(".docker/contexts")]);
        // A link does not lead where the user may not go.
        fs::remove_dir_all(home.path().join(".docker")).unwrap();
        fs::write(of_root.path().join("config.json"), "{}").unwrap();
        fs::write(of_root.path().join("secret-name"), "").unwrap();
        symlink(of_root.path(), home.path().join(".docker")).unwrap();
        assert_eq!(read().err().unwrap().kind(), io::ErrorKind::PermissionDenied);
        fs::remove_file(of_root.path().join("config.json")).unwrap();
        assert!(read().is_err());
        // This thread has kept its own.
        assert!(rustix::process::geteuid().is_root() && fs::read(of_root.path().join("secret-name")).is_ok());
    }

    #[test]
    fn the_helper_says_what_the_host_answers() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join(SOCKET);
        let listener = UnixListener::bind(&socket).unwrap();
        let host = thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in ["{\"Username\":\"ann\"}", ""] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                stream.read_to_string(&mut request).unwrap();
                asked.push(request);
                stream.write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        assert_eq!(helped("get", "ghcr.io\n", &socket), Ok("{\"Username\":\"ann\"}".to_owned()));
        assert_eq!(helped("get", "other.test", &socket), Err(NOT_FOUND.to_owned()));
        assert_eq!(host.join().unwrap(), ["get ghcr.io\n", "get other.test\n"]);
        assert_eq!(helped("list", "", &socket), Ok("{}".to_owned()));
        for verb in ["store", "erase"] {
            assert_eq!(helped(verb, "{}", &socket), Err(NOT_HERE.to_owned()));
        }
        assert!(helped("version", "", &socket).unwrap_err().starts_with("usage: "));
        assert!(
            helped("get", "x", &directory.path().join("none"))
                .unwrap_err()
                .starts_with("cannot ask the host")
        );
    }

    #[test]
    fn the_name_of_the_program_says_what_it_is() {
        let is =
            |words: &[&str]| is_request(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert!(is(&["docker-credential-banger", "get"]) && is(&["/run/x/bin/docker-credential-banger"]));
        assert!(!is(&["/init"]) && !is(&["banger-agent", "docker-credential-banger"]) && !is(&[]));
    }

    #[test]
    fn the_directory_goes_when_the_host_hangs_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shared");
        let helper = |user: &str| {
            let registries = vec!["ghcr.io".to_owned()];
            let directory = path.to_str().unwrap().to_owned();
            Host::ask(Request::RegistryHelper(RegistryHelper {
                directory,
                registries,
                user: user.to_owned(),
            }))
        };
        let uid = rustix::process::geteuid().as_raw().to_string();
        let mut host = helper(&uid);
        assert!(matches!(host.next(), Frame::Started(_)));
        let mode = |name: &str| fs::metadata(path.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("."), mode("auth.json"), mode("docker/config.json")), (0o711, 0o600, 0o600));
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert_eq!(size(&path.join("bin").join(PROGRAM)), size(Path::new("/proc/self/exe")));
        let own = rustix::process::geteuid().as_raw();
        if own == 0 {
            // Only the leaves are given away.
            drop(host);
            host = helper("4242");
            assert!(matches!(host.next(), Frame::Started(_)));
            let owner = |name: &str| fs::metadata(path.join(name)).unwrap().uid();
            assert_eq!(["auth.json", "docker", "docker/config.json"].map(owner), [4242; 3]);
            assert_eq!([".", "bin"].map(owner), [0; 2]);
        }
        // Another one may not have its name.
        let Frame::Failed(failure) = helper(&uid).next() else { panic!("it was replaced") };
        assert_eq!(failure.kind, FailureKind::AlreadyExists, "{failure:?}");
        assert!(path.exists());
        drop(host); // Waits for the agent's thread.
        assert!(!path.exists());
        assert!(matches!(helper("nobody-of-this-name").next(), Frame::Failed(_)));
        assert!(!path.exists());
    }
}
