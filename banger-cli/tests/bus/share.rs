//! Credentials of the user in a sandbox, with git, OpenSSH and the real agent on this host.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
};

use crate::host::{Host, until};

fn host() -> Host {
    let host = Host::new();
    let created = host.banger(&["vm", "create", "-q", "--name", "lasting", "--image", "debian"]);
    assert_eq!(created.status, 0, "{created:?}");
    host
}

/// Runs a shell command in the sandbox with these credentials.
fn shared(host: &Host, shares: &[&str], agent: Option<&Path>, script: &str) -> Output {
    let shares = shares.iter().flat_map(|share| ["--share", share]);
    let words = ["vm", "exec", "-n", "lasting"].into_iter().chain(shares).chain(["--", "sh", "-c", script]);
    let mut command = host.command(&words.collect::<Vec<_>>());
    command.env_remove("SSH_AUTH_SOCK");
    if let Some(agent) = agent {
        command.env("SSH_AUTH_SOCK", agent);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn git_gets_passwords_of_the_shared_host_only() {
    let host = host();
    let helper = "[credential]\nhelper = \"!f() { test $1 = get && echo username=ann && echo password=secret; }; f\"\n";
    fs::create_dir_all(host.home()).unwrap();
    fs::write(host.home().join(".gitconfig"), helper).unwrap();
    let script = "fill() { printf 'protocol=https\\nhost=%s\\n\\n' $1 | GIT_TERMINAL_PROMPT=0 git credential fill; }\n\
        fill one.test; fill two.test || echo none\n\
        ask() { printf 'protocol=https\\nhost=%s\\n' $2 | git credential-cache ${GIT_CONFIG_VALUE_1#cache } $1; }\n\
        ask get two.test; ask store one.test; ask erase one.test; echo ${GIT_CONFIG_VALUE_1#*=}";
    let output = shared(&host, &["git:one.test"], None, script);
    assert!(output.status.success(), "{output:?}");
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    let socket = said.lines().last().unwrap();
    assert_eq!(
        said,
        format!("protocol=https\nhost=one.test\nusername=ann\npassword=secret\nnone\n{socket}\n")
    );
    let told: Vec<&str> = told.lines().filter(|line| line.starts_with("note: ")).collect();
    assert_eq!(
        told,
        [
            "note: lasting uses your password of git for https://one.test.",
            "note: lasting asked for a password of git for https://two.test, which is not shared.",
        ]
    );
    until("the socket is gone", || !Path::new(socket).exists());
    // A flood gets no more than its share, and ends.
    let flood = "for n in $(seq 70); do printf 'protocol=https\\nhost=one.test\\n\\n' | \
        GIT_TERMINAL_PROMPT=0 git credential fill 2> /dev/null | grep -c password=; done | grep -c 1";
    let output = shared(&host, &["git:one.test"], None, flood);
    assert_eq!(text(&output.stdout), "60\n");
    let told = text(&output.stderr);
    assert_eq!(
        told.lines().filter(|line| line.contains("asks for credentials too often")).count(),
        1,
        "{told}"
    );
}

/// Serves empty repositories over HTTP to those who know the password. Returns the port.
fn protected_server() -> u16 {
    const PASSWORD: &str = "Authorization: Basic YW5uOnNlY3JldA==\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut connection in listener.incoming().map(Result::unwrap) {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if connection.read(&mut byte).unwrap() == 0 {
                    break;
                }
                head.extend(byte);
            }
            let status = match text(&head).contains(PASSWORD) {
                true => "200 OK\r\nContent-Type: text/plain",
                false => "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"",
            };
            let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            connection.write_all(reply.as_bytes()).unwrap();
        }
    });
    port
}

#[test]
fn git_in_a_sandbox_gets_into_a_protected_server() {
    let host = host();
    let helper = "[credential]\nhelper = \"!f() { test $1 = get && echo username=ann && echo password=secret; }; f\"\n";
    fs::create_dir_all(host.home()).unwrap();
    fs::write(host.home().join(".gitconfig"), helper).unwrap();
    let site = format!("http://127.0.0.1:{}", protected_server());
    let script = format!("GIT_TERMINAL_PROMPT=0 git ls-remote {site}/repository && echo in");
    let output = shared(&host, &[&format!("git:{site}")], None, &script);
    assert_eq!(text(&output.stdout), "in\n", "{output:?}");
    assert_eq!(text(&output.stderr), format!("note: lasting uses your password of git for {site}.\n"));
    let output = shared(&host, &["git:127.0.0.1"], None, &script);
    assert_ne!(output.status.code(), Some(0), "{output:?}");
}

/// An ssh-agent of this test.
struct SshAgent(Child);

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

#[test]
fn only_the_chosen_key_signs() {
    let host = host();
    let path = |name: &str| host.path(name);
    let run = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).env("SSH_AUTH_SOCK", path("agent")).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        text(&output.stdout)
    };
    let socket = path("agent");
    let agent =
        Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn().unwrap();
    let _agent = SshAgent(agent);
    until("the agent listens", || UnixStream::connect(&socket).is_ok());
    for name in ["mine", "other"] {
        let key = path(name);
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key.to_str().unwrap()]);
        run("ssh-add", &["-q", key.to_str().unwrap()]);
    }
    let sign = |name: &str| {
        format!("ssh-keygen -q -Y sign -n x -f {} < /dev/null > /dev/null 2>&1", path(name).display())
    };
    // Without the private files, the agent has to sign.
    for name in ["mine", "other"] {
        fs::remove_file(path(name)).unwrap();
        fs::copy(path(&format!("{name}.pub")), path(name)).unwrap();
    }
    let script = format!(
        "ssh-add -l | cut -d ' ' -f 3; {} && echo signed; {} || echo refused; ssh-add -D 2> /dev/null || echo kept",
        sign("mine"),
        sign("other")
    );
    let share = format!("ssh-agent:{}", path("mine.pub").display());
    let output = shared(&host, &[&share], Some(&socket), &script);
    assert_eq!(text(&output.stdout), "mine\nsigned\nrefused\nkept\n", "{output:?}");
    let told = text(&output.stderr);
    assert!(told.contains("note: lasting uses SHA256:") && told.contains(" of your ssh-agent.\n"), "{told}");
    assert_eq!(run("ssh-add", &["-l"]).lines().count(), 2);
    let output = shared(&host, &["ssh-agent"], Some(&socket), "ssh-add -l | wc -l");
    assert_eq!(text(&output.stdout), "2\n");
    // One that the agent does not have, before a sandbox is created.
    run("ssh-add", &["-q", "-d", path("other.pub").to_str().unwrap()]);
    let share = format!("ssh-agent:{}", path("other.pub").display());
    let before = host.banger(&["vm", "list", "-q"]).output;
    let mut create = host.command(&["run", "--share", &share, "--", "true"]);
    let output = create.env("SSH_AUTH_SOCK", &socket).output().unwrap();
    let told = text(&output.stderr);
    assert!(told.starts_with("error: cannot share the key SHA256:") && !output.status.success(), "{told}");
    assert_eq!(host.banger(&["vm", "list", "-q"]).output, before);
}

#[test]
fn what_cannot_be_shared_is_refused_before_the_command_runs() {
    let host = host();
    let output = shared(&host, &["ssh-agent"], None, "echo ran");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(125), String::new()));
    assert!(text(&output.stderr).starts_with("error: cannot share the ssh-agent: none is running.\nhint: "));
    for (more, option) in [(&["-d"][..], "--detach"), (&["--session", "s"], "--session")] {
        let words = [&["vm", "exec", "--share", "git:x"][..], more, &["lasting", "--", "true"]].concat();
        let ended = host.banger(&words);
        assert_eq!(ended.status, 125);
        assert!(ended.errors.contains(&format!("hint: leave out `{option}` or `--share`.")), "{ended:?}");
    }
    let ended = host.banger(&["vm", "exec", "--share", "podman:x", "lasting", "--", "true"]);
    assert!(
        ended.status == 2 && ended.errors.contains("it must be git:HOST, docker:REGISTRY or ssh-agent[:KEY]"),
        "{ended:?}"
    );
    // Nothing is known of this registry.
    let ended = host.banger(&["vm", "exec", "--share", "docker:one.test", "lasting", "--", "echo", "ran"]);
    assert_eq!((ended.status, ended.output.as_str()), (125, ""), "{ended:?}");
    let expect =
        "error: cannot share credentials for one.test: you have none.\nhint: `docker login one.test`";
    assert!(ended.errors.starts_with(expect), "{ended:?}");
}

#[test]
fn clients_of_registries_get_credentials_of_the_shared_one_only() {
    let host = host();
    fs::create_dir_all(host.home().join(".docker")).unwrap();
    let config = r#"{"auths": {"one.test": {"auth": "YW5uOnNlY3JldA=="}, "https://index.docker.io/v1/": {"auth": "Ym9iOmh1Yg=="},
        "two.test": {"auth": "ZXZlOm90aGVy"}}}"#;
    fs::write(host.home().join(".docker/config.json"), config).unwrap();
    // As docker and podman find the helper and call it.
    let script = "get() { printf %s $1 | docker-credential-banger get || echo; }\n\
        get one.test; get https://index.docker.io/v1/; get two.test\n\
        docker-credential-banger list; echo '{}' | docker-credential-banger store || echo refused\n\
        cat $DOCKER_CONFIG/config.json; echo; cat $REGISTRY_AUTH_FILE; echo; echo ${REGISTRY_AUTH_FILE%/*}";
    let output = shared(&host, &["docker:one.test", "docker:docker.io"], None, script);
    assert!(output.status.success(), "{output:?}");
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    let json = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    assert_eq!(
        json(lines[0]),
        serde_json::json!({"ServerURL": "one.test", "Username": "ann", "Secret": "secret"})
    );
    assert_eq!((&json(lines[1])["Username"], &json(lines[1])["Secret"]), (&"bob".into(), &"hub".into()));
    assert_eq!(lines[2..5], ["credentials not found in native keychain", "", "{}"]);
    assert!(lines[5].contains("are on the host of the sandbox") && lines[6] == "refused", "{said}");
    for config in &lines[7..9] {
        let helpers = &json(config)["credHelpers"];
        for key in ["one.test", "https://index.docker.io/v1/", "docker.io"] {
            assert_eq!(helpers[key], "banger", "{config}");
        }
        assert!(helpers.get("two.test").is_none() && !config.contains("secret"), "{config}");
    }
    let told: Vec<&str> = told.lines().filter(|line| line.starts_with("note: ")).collect();
    assert_eq!(
        told,
        [
            "note: lasting uses your credentials for one.test.",
            "note: lasting uses your credentials for docker.io.",
            "note: lasting asked for credentials for two.test, which is not shared.",
        ]
    );
    until("the directory is gone", || !Path::new(lines[9]).exists());
}
