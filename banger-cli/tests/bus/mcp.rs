//! The MCP server with clients that behave, and with clients that do not.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    host::{Host, skip, until},
    workspace::Bench,
};

/// A client, with a server of its own.
struct Client {
    server: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    last: u64,
    /// Notifications that have arrived.
    notes: Vec<Value>,
}

impl Client {
    fn start(host: &Host, options: &[&str]) -> Self {
        Self::start_in(host, options, &host.path("agents"))
    }

    fn start_in(host: &Host, options: &[&str], directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        fs::create_dir_all(host.home()).unwrap();
        let mut command = host.command(&[&["mcp"], options].concat());
        command.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().unwrap();
        let (input, output) = (server.stdin.take(), BufReader::new(server.stdout.take().unwrap()));
        let mut client = Self { server, input, output, last: 0, notes: Vec::new() };
        let hello = json!({
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        });
        let id = client.request("initialize", hello);
        assert_eq!(client.reply(id)["result"]["serverInfo"]["name"], "banger");
        client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        client
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.input.as_mut().unwrap(), "{message}").unwrap();
    }

    fn request(&mut self, method: &str, params: Value) -> u64 {
        self.last += 1;
        let id = self.last;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        id
    }

    fn begin(&mut self, tool: &str, arguments: Value) -> u64 {
        self.request("tools/call", json!({"name": tool, "arguments": arguments}))
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "the server has ended");
        serde_json::from_str(&line).unwrap()
    }

    /// Returns the reply to this request.
    fn reply(&mut self, id: u64) -> Value {
        loop {
            let message = self.next();
            match message["id"] == id {
                true => return message,
                false => self.notes.push(message),
            }
        }
    }

    fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let id = self.begin(tool, arguments);
        let reply = self.reply(id);
        assert!(reply["result"].is_object(), "{tool}: {reply}");
        reply["result"].clone()
    }

    /// Calls a tool that succeeds.
    fn done(&mut self, tool: &str, arguments: Value) -> Value {
        let result = self.call(tool, arguments);
        assert_eq!(result["isError"], false, "{tool}: {result}");
        // Clients that know no structured content read the same as text.
        let text = result["content"][0]["text"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), result["structuredContent"]);
        result["structuredContent"].clone()
    }

    /// Calls a tool that fails. Returns the error.
    fn fails(&mut self, tool: &str, arguments: Value) -> Value {
        let result = self.call(tool, arguments);
        assert_eq!(result["isError"], true, "{tool}: {result}");
        result["structuredContent"].clone()
    }

    fn tools(&mut self) -> Vec<String> {
        let id = self.request("tools/list", json!({}));
        let tools = self.reply(id)["result"]["tools"].clone();
        tools.as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Hangs up. Returns the status of the server.
    fn hang_up(mut self) -> i32 {
        drop(self.input.take());
        self.server.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.server.kill();
        self.server.wait().unwrap();
    }
}

/// Returns a host with the sandbox `box`, which the real agent serves, and a directory in it.
fn host() -> (Host, PathBuf) {
    let host = Host::new();
    let created = host.banger(&["vm", "create", "-q", "--name", "box", "--image", "debian"]);
    assert_eq!(created.status, 0, "{created:?}");
    let guest = host.path("guest");
    fs::create_dir(&guest).unwrap();
    (host, guest)
}

/// Returns a command that writes its process id to a file and waits, and the file.
fn waiting(host: &Host, name: &str) -> (Value, PathBuf) {
    let file = host.path(name);
    (json!(format!("echo $$ > {}; exec sleep 1000", file.display())), file)
}

/// Waits until a process has written its id to a file. Returns its directory in /proc.
fn started(file: &Path) -> PathBuf {
    until("the command runs", || fs::read_to_string(file).is_ok_and(|text| text.ends_with('\n')));
    Path::new("/proc").join(fs::read_to_string(file).unwrap().trim())
}

/// Returns whether a process still runs. One whose parent has not asked for its status has no command line.
fn runs(process: &Path) -> bool {
    fs::read(process.join("cmdline")).is_ok_and(|words| !words.is_empty())
}

#[test]
fn an_agent_works_in_a_sandbox_of_its_own() {
    let (host, guest) = host();
    let mut client = Client::start(&host, &[]);
    let path = guest.join("src/hello.sh").display().to_string();
    let wrote = json!({"sandbox": "box", "path": path, "content": "echo hello $1\n", "executable": true});
    assert_eq!(client.done("write_file", wrote)["size"], 14);
    let ran = client.done("exec", json!({"sandbox": "box", "command": [path, "you"]}));
    assert_eq!(
        (&ran["exit_code"], &ran["stdout"], &ran["timed_out"]),
        (&json!(0), &json!("hello you\n"), &json!(false))
    );
    let read = client.done("read_file", json!({"sandbox": "box", "path": path, "offset": 5, "max_bytes": 5}));
    assert_eq!(read, json!({"content": "hello", "encoding": "utf8", "size": 14, "truncated": true}),);
    fs::write(guest.join("bytes"), [0, 255]).unwrap();
    let bytes = client.done("read_file", json!({"sandbox": "box", "path": guest.join("bytes")}));
    assert_eq!((&bytes["content"], &bytes["encoding"]), (&json!("00ff"), &json!("hex")));
    let list = |client: &mut Client, recursive: bool| {
        let listed =
            client.done("list_files", json!({"sandbox": "box", "path": guest, "recursive": recursive}));
        let entries = listed["entries"].as_array().unwrap().clone();
        let mut names: Vec<_> =
            entries.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(list(&mut client, false), ["bytes", "src"]);
    assert_eq!(list(&mut client, true), ["bytes", "src", "src/hello.sh"]);
    let taken =
        client.fails("write_file", json!({"sandbox": "box", "path": guest.join("src"), "content": ""}));
    assert!(taken["message"].as_str().unwrap().ends_with("it is a directory."), "{taken}");
    let missing = client.fails("read_file", json!({"sandbox": "box", "path": "/nonexistent"}));
    assert_eq!(missing["code"], "guest.not-found", "{missing}");
    assert_eq!(client.done("delete", json!({"sandbox": "box", "force": true})), json!({"deleted": "box"}));
    assert_eq!(client.fails("show", json!({"sandbox": "box"}))["code"], "dev.banger.Error.NoSuchVM");
    assert_eq!(client.hang_up(), 0);
}

#[test]
fn a_command_is_bounded_in_time_and_output() {
    let host = Host::new();
    // Long enough for a command to begin, on a machine that does many other things.
    let mut client = Client::start(&host, &["--max-output", "1KiB", "--timeout", "5"]);
    let exec = |command: Value, more: Value| {
        let mut arguments = json!({"sandbox": "web", "command": command});
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        arguments
    };
    let more = json!({"stdin": "in", "env": {"A": "b"}, "timeout_seconds": 60});
    let failed = client.done("exec", exec(json!("cat; echo err >&2; exit 7"), more));
    assert_eq!(
        (&failed["exit_code"], &failed["stdout"], &failed["stderr"]),
        (&json!(7), &json!("in"), &json!("err\n"))
    );
    let much =
        client.done("exec", exec(json!("yes | head -c 1000000; echo end"), json!({"timeout_seconds": 60})));
    assert_eq!((&much["stdout_bytes"], &much["truncated"]), (&json!(1_000_004), &json!(true)));
    let text = much["stdout"].as_str().unwrap();
    assert!(text.len() < 1100 && text.starts_with("y\ny\n") && text.ends_with("y\nend\n"), "{text}");
    let (command, file) = waiting(&host, "pid");
    let slow = client.done("exec", exec(command, json!({})));
    assert_eq!((&slow["timed_out"], slow.get("exit_code")), (&json!(true), None));
    let process = started(&file);
    until("the command has ended", || !runs(&process));
    for (more, what) in [
        (json!({"timeout_seconds": 0}), "timeout_seconds"),
        (json!({"timeout_seconds": 3601}), "timeout_seconds"),
        (json!({"max_output_bytes": 1 << 21}), "max_output_bytes"),
    ] {
        let refused = client.fails("exec", exec(json!("true"), more));
        assert_eq!(refused["code"], "invalid-arguments");
        assert!(refused["message"].as_str().unwrap().starts_with(what), "{refused}");
    }
    let absent = client.fails("exec", exec(json!(["/nonexistent"]), json!({"timeout_seconds": 60})));
    assert_eq!(absent["code"], "guest.not-found");
}

#[test]
fn output_is_progress_if_the_client_asks_for_it() {
    let host = Host::new();
    let mut client = Client::start(&host, &[]);
    let go = host.path("go");
    let command = format!("echo first; while [ ! -e {} ]; do sleep 0.02; done; echo last", go.display());
    let id = client.request(
        "tools/call",
        json!({
            "name": "exec",
            "arguments": {"sandbox": "web", "command": command},
            "_meta": {"progressToken": "p"},
        }),
    );
    let first = client.next();
    assert_eq!(first["method"], "notifications/progress");
    assert_eq!(
        (&first["params"]["progressToken"], &first["params"]["message"]),
        (&json!("p"), &json!("first\n"))
    );
    fs::write(go, "").unwrap();
    let reply = client.reply(id);
    assert_eq!(reply["result"]["structuredContent"]["stdout"], "first\nlast\n");
    assert_eq!(client.notes.last().unwrap()["params"]["message"], "last\n");
    // Stages of a job, too.
    let arguments = json!({"image": "debian", "name": "x"});
    let params = json!({"name": "create", "arguments": arguments, "_meta": {"progressToken": 7}});
    let id = client.request("tools/call", params);
    assert_eq!(client.reply(id)["result"]["structuredContent"]["name"], "x");
    let messages: Vec<_> = client.notes.iter().map(|note| &note["params"]["message"]).collect();
    assert!(messages.contains(&&json!("boot: waiting for the guest")), "{messages:?}");
    client.notes.clear();
    client.done("exec", json!({"sandbox": "web", "command": "echo quiet; sleep 0.5"}));
    assert!(client.notes.is_empty(), "{:?}", client.notes);
}

#[test]
fn a_cancelled_call_ends_what_it_started() {
    let host = Host::new();
    let mut client = Client::start(&host, &[]);
    let (command, file) = waiting(&host, "pid");
    let id = client.begin("exec", json!({"sandbox": "web", "command": command}));
    let process = started(&file);
    client.send(&json!({
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": id, "reason": "enough"},
    }));
    until("the command has ended", || !runs(&process));
    let id = client.begin("create", json!({"name": "hanging", "image": "debian"}));
    until("it is being created", || !host.calls("CreateVM").is_empty());
    client.send(&json!({
        "jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id},
    }));
    until("the job is cancelled", || !host.calls("Cancel").is_empty());
    let names = |listed: &Value| {
        let rows = listed["sandboxes"].as_array().unwrap();
        rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&client.done("list", json!({}))), ["web", "db", "locked"]);
    // Cancelled calls get no reply.
    assert!(client.notes.is_empty(), "{:?}", client.notes);
}

#[test]
fn a_cancelled_call_ends_git() {
    let bench = Bench::new();
    // git waits for somebody who writes into it.
    let exclude = bench.repo.join(".git/info/exclude");
    let _ = fs::remove_file(&exclude);
    fs::create_dir_all(exclude.parent().unwrap()).unwrap();
    assert!(Command::new("mkfifo").arg(&exclude).status().unwrap().success());
    let mut client = Client::start_in(&bench.host, &[], &bench.repo);
    let arguments = json!({"sandbox": "box", "guest_path": bench.guest, "include_untracked": true});
    let id = client.begin("prepare", arguments);
    let server = client.server.id();
    let waiting = move || {
        let all = fs::read_dir(format!("/proc/{server}/task")).unwrap().flatten();
        let of_threads = all.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        let ids: String = of_threads.collect();
        ids.split_whitespace()
            .find(|id| {
                let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&words).contains("ls-files")
            })
            .map(|id| Path::new("/proc").join(id))
    };
    until("git waits", || waiting().is_some());
    let git = waiting().unwrap();
    client.send(&json!({
        "jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id},
    }));
    until("git has ended", || !runs(&git));
    assert!(!bench.guest.exists());
    assert_eq!(client.done("list", json!({}))["sandboxes"].as_array().unwrap().len(), 4);
}

#[test]
fn a_run_needs_the_place_of_one_sandbox() {
    let host = Host::new();
    let mut client = Client::start(&host, &["--max", "1"]);
    // Each gives its place back, and one that is too slow, too.
    for _ in 0..2 {
        client.done("run", json!({"image": "debian", "command": "true"}));
    }
    let (command, file) = waiting(&host, "pid");
    let slow = client.done("run", json!({"image": "debian", "command": command, "timeout_seconds": 5}));
    assert_eq!((&slow["timed_out"], slow.get("exit_code")), (&json!(true), None));
    let process = started(&file);
    until("the command has ended", || !runs(&process));
    let (command, file) = waiting(&host, "another");
    let id = client.begin("run", json!({"image": "debian", "command": command}));
    started(&file);
    let refused = client.fails("run", json!({"image": "debian", "command": "true"}));
    assert_eq!(refused["code"], "not-allowed", "{refused}");
    client.send(&json!({
        "jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id},
    }));
    until("there is a place again", || {
        let result = client.call("run", json!({"image": "debian", "command": "true"}));
        result["isError"] == false
    });
}

#[test]
fn wrong_input_is_an_error_and_changes_nothing() {
    let host = Host::new();
    let mut client = Client::start(&host, &[]);
    let id = client.begin("reboot_everything", json!({}));
    let unknown = client.reply(id);
    assert_eq!(unknown["error"]["code"], -32602, "{unknown}");
    for (tool, arguments, message) in [
        ("exec", json!({"command": "true"}), "cannot read the arguments of exec: missing field `sandbox`."),
        (
            "show",
            json!({"sandbox": "web", "x": 1}),
            "cannot read the arguments of show: unknown field `x`, expected `sandbox`.",
        ),
        (
            "exec",
            json!({"sandbox": "web", "command": ""}),
            "cannot run the command: it is empty or has a null character.",
        ),
        ("create", json!({"memory": "lots"}), "cannot read memory: "),
        ("create", json!({"vcpus": 0}), "cannot read vcpus: it must be 1 or more."),
        ("read_file", json!({"sandbox": "web", "path": "notes"}), "cannot use the path notes: "),
        ("read_file", json!({"sandbox": "web", "path": "/etc/"}), "cannot use the path /etc/: "),
        (
            "read_file",
            json!({"sandbox": "web", "path": "/x", "max_bytes": 1 << 30}),
            "max_bytes must be at most ",
        ),
        ("read_file", json!({"sandbox": "web", "path": "/x", "offset": u64::MAX}), "offset must be at most "),
        (
            "write_file",
            json!({"sandbox": "web", "path": "/x", "content": "0", "encoding": "hex"}),
            "cannot read content: ",
        ),
        ("list_files", json!({"sandbox": "web", "path": "/../etc"}), "cannot list /../etc: "),
        ("publish", json!({"sandbox": "web", "guest_port": 0}), "a port is a number from 1 to 65535."),
        ("prepare", json!({"sandbox": "web", "guest_path": "repo"}), "cannot read guest_path: "),
    ] {
        let refused = client.fails(tool, arguments);
        assert_eq!(refused["code"], "invalid-arguments", "{refused}");
        assert!(refused["message"].as_str().unwrap().starts_with(message), "{refused}");
    }
    let absent = client.fails("exec", json!({"sandbox": "wbe", "command": "true"}));
    assert_eq!(absent["code"], "dev.banger.Error.NoSuchVM");
    assert!(absent["remedy"].as_str().unwrap().starts_with("did you mean web?"), "{absent}");
    // What needs a password is refused, and the user is not asked.
    let locked = client.fails("stop", json!({"sandbox": "locked"}));
    assert_eq!(locked["code"], "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired");
    client.input.as_mut().unwrap().write_all(b"no json\n{\"jsonrpc\":\"2.0\"}\n\xff\xfe\n").unwrap();
    assert_eq!(
        client.done("exec", json!({"sandbox": "web", "command": "echo still here"}))["stdout"],
        "still here\n"
    );
    assert!(host.calls("CreateVM").is_empty() && host.calls("PublishPort").is_empty());
}

#[test]
fn the_options_bound_what_an_agent_may_do() {
    let host = Host::new();
    let mut client = Client::start(
        &host,
        &["--only-label", "agent=a", "--max", "1", "--no-network", "--image", "debian", "--no-host-files"],
    );
    let tools = client.tools();
    assert!(tools.contains(&"exec".to_owned()) && !tools.contains(&"upload".to_owned()), "{tools:?}");
    assert_eq!(client.done("list", json!({})), json!({"sandboxes": []}));
    for tool in ["show", "delete", "stop"] {
        // A sandbox that it may not see looks like one that does not exist.
        let hidden = client.fails(tool, json!({"sandbox": "web"}));
        let absent = client.fails(tool, json!({"sandbox": "we"}));
        assert_eq!(hidden["message"], "there is no sandbox web with the label agent=a.");
        assert_eq!(absent["message"], "there is no sandbox we with the label agent=a.");
        assert_eq!((&hidden["code"], &hidden["remedy"]), (&absent["code"], &absent["remedy"]));
    }
    for arguments in [
        json!({"network": true}),
        json!({"egress": ["git"]}),
        json!({"image": "alpine"}),
        json!({"labels": {"agent": "b"}}),
    ] {
        assert_eq!(client.fails("create", arguments)["code"], "not-allowed");
    }
    let id = client.begin("upload", json!({}));
    assert_eq!(client.reply(id)["error"]["code"], -32602);
    assert!(host.calls("CreateVM").is_empty());
    let made = client.done("create", json!({"name": "mine", "ephemeral": true}));
    assert_eq!((&made["name"], &made["labels"]), (&json!("mine"), &json!({"agent": "a"})));
    let created = &host.calls("CreateVM")[0].options;
    assert_eq!((created["lifetime"].as_str(), created.get("nat")), ("\"caller\"", None));
    let second = client.fails("create", json!({"name": "second"}));
    assert_eq!(
        (&second["code"], &second["message"]),
        (&json!("not-allowed"), &json!("cannot create a sandbox: at most 1 may exist at once."))
    );
    client.done("delete", json!({"sandbox": "mine", "force": true}));
    client.done("create", json!({"name": "third"}));
}

#[test]
fn an_agent_reaches_no_more_than_its_server_allows() {
    let host = Host::new();
    let options = ["--image", "debian", "--egress", "git,a.example", "--egress", "*.b.example:443"];
    let mut client = Client::start(&host, &options);
    for beyond in
        [json!(["c.example"]), json!(["all"]), json!(["b.example:443"]), json!(["git", "x.b.example"])]
    {
        let refused = client.fails("create", json!({"egress": beyond}));
        assert_eq!(refused["code"], "not-allowed");
        let remedy = refused["remedy"].as_str().unwrap();
        assert!(remedy.contains("git, a.example, *.b.example:443"), "{remedy}");
    }
    let both = client.fails("create", json!({"network": false, "egress": ["git"]}));
    assert_eq!(both["code"], "invalid-arguments");
    assert!(host.calls("CreateVM").is_empty());

    for arguments in [
        json!({"network": true}),
        json!({"egress": ["a.example:443", "x.b.example:443"]}),
        json!({"network": true, "egress": ["GIT"]}),
        json!({}),
        json!({"network": false}),
    ] {
        client.done("create", arguments);
    }
    let asked: Vec<Option<String>> = host
        .calls("CreateVM")
        .iter()
        .map(|call| {
            assert_eq!(call.options.get("nat"), None);
            call.options.get("egress").map(|words| words.replace('"', ""))
        })
        .collect();
    let expect = [
        Some("git,a.example,*.b.example:443"),
        Some("a.example:443,x.b.example:443"),
        Some("git"),
        None,
        None,
    ];
    assert_eq!(asked.iter().map(Option::as_deref).collect::<Vec<_>>(), expect);
}

#[test]
fn only_the_directory_of_the_user_is_copied_from_and_to() {
    let (host, guest) = host();
    let directory = host.path("project");
    fs::create_dir_all(directory.join("sub")).unwrap();
    fs::write(directory.join("sub/file"), "from the host").unwrap();
    fs::write(host.path("secret"), "secret").unwrap();
    symlink(host.path("secret"), directory.join("link")).unwrap();
    symlink(host.path(""), directory.join("up")).unwrap();
    fs::write(guest.join("out"), "from the guest").unwrap();
    let mut client = Client::start_in(&host, &[], &directory);
    let to = guest.join("in").display().to_string();
    client.done("upload", json!({"sandbox": "box", "from": "sub", "to": to}));
    assert_eq!(fs::read_to_string(guest.join("in/file")).unwrap(), "from the host");
    let out = guest.join("out");
    client.done("download", json!({"sandbox": "box", "from": out, "to": "sub/"}));
    assert_eq!(fs::read_to_string(directory.join("sub/out")).unwrap(), "from the guest");
    fs::create_dir(directory.join(".git")).unwrap();
    fs::write(directory.join(".git/config"), "token").unwrap();
    client.done("upload", json!({"sandbox": "box", "from": ".", "to": guest.join("all")}));
    assert!(guest.join("all/sub/file").exists() && !guest.join("all/.git").exists());
    fs::remove_dir_all(directory.join(".git")).unwrap();
    for path in ["../secret", "link", "up/secret", "/etc/passwd", ".git/config", "up"] {
        let refused = client.fails("upload", json!({"sandbox": "box", "from": path, "to": to}));
        assert_eq!(refused["code"], "not-allowed", "{path}: {refused}");
        let refused = client.fails("download", json!({"sandbox": "box", "from": out, "to": path}));
        assert_eq!(refused["code"], "not-allowed", "{path}: {refused}");
    }
    assert_eq!(fs::read_to_string(host.path("secret")).unwrap(), "secret");
    // A guest cannot bring in what git would run.
    fs::create_dir_all(guest.join("evil/.git/hooks")).unwrap();
    fs::write(guest.join("evil/.git/hooks/pre-commit"), "").unwrap();
    client.fails("download", json!({"sandbox": "box", "from": guest.join("evil"), "to": "evil"}));
    client.fails("download", json!({"sandbox": "box", "from": guest.join("evil/.git"), "to": "."}));
    assert!(!directory.join("evil").exists() && !directory.join(".git").exists());
    // What a guest leaves as a link is not followed later.
    symlink("/etc", guest.join("etc")).unwrap();
    client.done("download", json!({"sandbox": "box", "from": guest.join("etc"), "to": "etc"}));
    let through = client.fails("upload", json!({"sandbox": "box", "from": "etc/passwd", "to": to}));
    assert_eq!(through["code"], "not-allowed");
    let missing = client.fails("upload", json!({"sandbox": "box", "from": "nothing", "to": to}));
    assert!(missing["message"].as_str().unwrap().contains("project/nothing: it does not exist"), "{missing}");
    // Many agents start their servers in the home directory.
    let mut at_home = Client::start_in(&host, &[], &host.home());
    assert!(!at_home.tools().contains(&"upload".to_owned()));
}

#[test]
fn work_comes_back_into_the_repository() {
    let bench = Bench::new();
    let host = &bench.host;
    let mut client = Client::start_in(host, &[], &bench.repo);
    let sent = client.done("prepare", json!({"sandbox": "box", "guest_path": bench.guest}));
    assert_eq!((&sent["branch"], &sent["guest_path"]), (&json!("refs/heads/main"), &json!(bench.guest)));
    assert_eq!(
        client.done("exec", json!({"sandbox": "box", "command": "pwd; echo new > lines"}))["stdout"],
        format!("{}\n", bench.guest.display())
    );
    let diff = client.done("diff", json!({"sandbox": "box"}));
    assert_eq!(
        (&diff["count"], &diff["files"]),
        (&json!(1), &json!([{"path": "lines", "status": "modified"}]))
    );
    assert!(diff["patch"].as_str().unwrap().ends_with("+new\n"), "{diff}");
    // Another server has another directory.
    let mut other = Client::start(host, &[]);
    assert_eq!(other.fails("apply", json!({"sandbox": "box"}))["code"], "not-allowed");
    assert_eq!(other.fails("prepare", json!({"sandbox": "box", "path": bench.repo}))["code"], "not-allowed");
    let applied = client.done("apply", json!({"sandbox": "box"}));
    assert_eq!(applied["count"], 1);
    assert_eq!(fs::read_to_string(bench.repo.join("lines")).unwrap(), "new\n");
    bench.guest_git(&["commit", "-qam", "in the sandbox"]);
    assert_eq!(other.fails("fetch_commits", json!({"sandbox": "box"}))["code"], "not-allowed");
    let fetched = client.done("fetch_commits", json!({"sandbox": "box"}));
    assert_eq!((&fetched["current"], &fetched["uncommitted"]), (&json!("refs/banger/box/main"), &json!([])));
    assert_eq!(fetched["branches"][0]["new_commits"], 1);
    let commit = bench.git(&["rev-parse", "refs/banger/box/main"]);
    assert_eq!(commit, bench.guest_git(&["rev-parse", "HEAD"]));
    let none = client.fails("diff", json!({"sandbox": "web"}));
    assert_eq!(none["code"], "refused", "{none}");
}

#[test]
fn a_directory_inside_a_larger_repository_does_not_open_all_of_it() {
    let bench = Bench::new();
    let mut client = Client::start_in(&bench.host, &[], &bench.repo.join("src"));
    let refused = client.fails("prepare", json!({"sandbox": "box", "guest_path": bench.guest}));
    assert_eq!(refused["code"], "not-allowed", "{refused}");
    assert!(!bench.guest.exists());
}

/// Files of a directory that git would take for a bare repository, with another work tree.
fn plant_repository(at: &Path, work_tree: &Path) {
    fs::create_dir_all(at.join("objects")).unwrap();
    fs::create_dir_all(at.join("refs")).unwrap();
    fs::write(at.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    let config = format!("[core]\nrepositoryformatversion = 0\nworktree = {}\n", work_tree.display());
    fs::write(at.join("config"), config).unwrap();
}

#[test]
fn files_of_a_sandbox_are_no_repository() {
    let bench = Bench::new();
    let (host, guest) = (&bench.host, bench.guest.with_file_name("planted"));
    let victim = host.path("victim");
    fs::create_dir_all(&victim).unwrap();
    fs::write(victim.join("lines"), "victim").unwrap();
    let mut client = Client::start_in(host, &[], &bench.repo);
    client.done("prepare", json!({"sandbox": "box", "guest_path": bench.guest}));
    client.done("exec", json!({"sandbox": "box", "command": "echo new > lines"}));
    plant_repository(&guest, &victim);
    client.done("download", json!({"sandbox": "box", "from": guest, "to": "planted"}));
    assert!(bench.repo.join("planted/HEAD").exists());
    let elsewhere = bench.guest.with_file_name("elsewhere");
    let refused =
        client.fails("prepare", json!({"sandbox": "box", "path": "planted", "guest_path": elsewhere}));
    assert!(refused["message"].as_str().unwrap().contains("is a bare repository"), "{refused}");
    // Without the user's repository, git finds another one.
    fs::rename(bench.repo.join(".git"), host.path("moved")).unwrap();
    client.done("download", json!({"sandbox": "box", "from": guest.join("."), "to": "."}));
    assert!(bench.repo.join("HEAD").exists());
    client.fails("apply", json!({"sandbox": "box", "merge": true}));
    assert_eq!(fs::read_to_string(victim.join("lines")).unwrap(), "victim");
    for name in ["HEAD", "config"] {
        fs::remove_file(bench.repo.join(name)).unwrap();
    }
    fs::write(bench.repo.join(".git"), format!("gitdir: {}\n", host.path("moved").display())).unwrap();
    let config = host.path("moved/config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[core]\nworktree = {}\n", victim.display())).unwrap();
    client.fails("apply", json!({"sandbox": "box", "merge": true}));
    client.fails("fetch_commits", json!({"sandbox": "box"}));
    assert_eq!(fs::read_to_string(victim.join("lines")).unwrap(), "victim");
}

#[test]
fn only_a_repository_that_is_in_the_directory_as_a_whole_is_sent() {
    let bench = Bench::new();
    let host = &bench.host;
    let mut client = Client::start_in(host, &[], &bench.repo);
    let mut refused = |what: &str| {
        let refused = client.fails("prepare", json!({"sandbox": "box", "guest_path": bench.guest}));
        assert_eq!(refused["code"], "not-allowed", "{what}: {refused}");
        assert!(!bench.guest.exists(), "{what}");
    };
    let (git, moved) = (bench.repo.join(".git"), host.path("moved"));
    let alternates = git.join("objects/info/alternates");
    fs::create_dir_all(alternates.parent().unwrap()).unwrap();
    fs::write(&alternates, host.path("").display().to_string()).unwrap();
    refused("alternates");
    fs::remove_file(&alternates).unwrap();
    for inner in ["objects", "index"] {
        fs::rename(git.join(inner), &moved).unwrap();
        symlink(&moved, git.join(inner)).unwrap();
        refused(inner);
        fs::remove_file(git.join(inner)).unwrap();
        fs::rename(&moved, git.join(inner)).unwrap();
    }
    fs::rename(&git, &moved).unwrap();
    symlink(&moved, &git).unwrap();
    refused("a link");
    fs::remove_file(&git).unwrap();
    fs::write(&git, format!("gitdir: {}\n", moved.display())).unwrap();
    refused("a file");
    fs::remove_file(&git).unwrap();
    fs::rename(&moved, &git).unwrap();
    client.done("prepare", json!({"sandbox": "box", "guest_path": bench.guest}));
}

#[test]
fn a_client_that_floods_gets_an_answer_to_each_call() {
    const CALLS: usize = 400;
    let host = Host::new();
    let mut client = Client::start(&host, &[]);
    // A client that reads nothing at first, and sends one request that is too long. No command ends before the first
    // call is refused.
    let (mut lines, go) = (String::new(), host.path("go"));
    let command = format!("until [ -e {} ]; do sleep 0.1; done", go.display());
    for id in 1000..1000 + CALLS {
        let call = json!({"name": "exec", "arguments": {"sandbox": "web", "command": command}});
        lines.push_str(&format!(
            "{}\n",
            json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": call})
        ));
    }
    let mut input = client.input.take().unwrap();
    let writer = std::thread::spawn(move || {
        input.write_all(lines.as_bytes()).unwrap();
        input.write_all(&vec![b'x'; 5 << 20]).unwrap();
        input.write_all(b"\n").unwrap();
        input
    });
    let (mut ran, mut refused) = (0, 0);
    while ran + refused < CALLS {
        let reply = client.next();
        let Some(content) = reply["result"].get("structuredContent") else {
            assert!(reply["error"].is_object(), "{reply}");
            continue;
        };
        match content["code"].as_str() {
            Some("dev.banger.Error.TooManyRequests") => {
                refused += 1;
                fs::write(&go, "").unwrap();
            }
            None => ran += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(ran >= 64 && refused > 0, "{ran} ran, {refused} were refused");
    client.input = Some(writer.join().unwrap());
    assert_eq!(client.done("exec", json!({"sandbox": "web", "command": "echo after"}))["stdout"], "after\n");
}

#[test]
fn a_client_that_vanishes_leaves_no_command_behind() {
    let host = Host::new();
    for kill in [false, true] {
        let mut client = Client::start(&host, &[]);
        let (command, file) = waiting(&host, if kill { "killed" } else { "closed" });
        client.begin("exec", json!({"sandbox": "web", "command": command}));
        let process = started(&file);
        if kill {
            client.server.kill().unwrap();
        } else {
            assert_eq!(client.hang_up(), 0);
        }
        until("the command has ended", || !runs(&process));
    }
    let ended = host.banger(&["mcp"]);
    assert_eq!(
        (ended.status, ended.output.as_str()),
        (0, ""),
        "a client that never says anything: {ended:?}"
    );
    let host = Host::without_service();
    let bus =
        host.command(&["mcp"]).env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent").output().unwrap();
    assert!(String::from_utf8_lossy(&bus.stderr).contains("cannot reach the system bus"));
}

#[test]
fn a_run_leaves_nothing() {
    let host = Host::new();
    let mut client = Client::start(&host, &[]);
    let ran = client.done("run", json!({"image": "debian", "command": "echo out; exit 3"}));
    assert_eq!((&ran["exit_code"], &ran["stdout"]), (&json!(3), &json!("out\n")));
    assert_eq!(host.calls("CreateVM")[0].options["lifetime"], "\"caller\"");
    until("the sandbox is deleted", || host.calls("Delete").len() == 1);
    assert_eq!(host.calls("Delete")[0].options["force"], "true");
    let (command, file) = waiting(&host, "pid");
    let id = client.begin("run", json!({"image": "debian", "command": command}));
    let process = started(&file);
    client.send(&json!({
        "jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id},
    }));
    until("the sandbox is deleted", || host.calls("Delete").len() == 2);
    until("the command has ended", || !runs(&process));
}

/// The official client for Python, which checks every result against the schema of its tool.
#[test]
fn the_client_of_python_works() {
    let Some(python) = std::env::var_os("BANGER_TEST_MCP_PYTHON") else {
        return skip(
            "the Python package mcp: `cargo xtask test` installs it, and sets BANGER_TEST_MCP_PYTHON",
        );
    };
    let (host, guest) = host();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bus/mcp_client.py");
    let banger = host.command(&["mcp"]);
    let mut command = Command::new(python);
    command.arg(script).arg(banger.get_program()).arg(&guest).current_dir(host.path(""));
    for (name, value) in banger.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
}
