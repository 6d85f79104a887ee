//! The command against a service on a real bus, with commands that really run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agent;
mod ask;
mod coding_agents;
mod commits;
mod copies;
mod devcontainer;
mod documented;
mod e2b;
mod host;
mod inspect;
mod interrupts;
mod mcp;
mod mount;
mod push;
mod real;
mod registry;
mod remote;
mod schemas;
mod sdk;
mod service;
mod sessions;
mod settings;
mod share;
mod shells;
mod snapshots;
mod ssh;
mod sync;
mod verbs;
mod workspace;

use std::{fs, io::Write};

use host::{Ended, Host, until};
use rustix::process::Signal;
use serde_json::Value;

fn input(text: &str) -> std::process::Stdio {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    fs::File::from(writer).write_all(text.as_bytes()).unwrap();
    reader.into()
}

#[test]
fn a_run_passes_everything_on_and_leaves_nothing() {
    let host = Host::new();
    let script = "cat; echo err >&2; exit 42";
    let ended = host.banger_with(
        &["vm", "run", "--rm", "-q", "--image", "debian", "--", "sh", "-c", script],
        input("hello"),
    );
    assert_eq!(ended, Ended { status: 42, output: "hello".into(), errors: "err\n".into() });
    assert_eq!(host.calls("CreateVM")[0].options["lifetime"], "\"caller\"");
    assert_eq!(host.calls("Delete")[0].options["force"], "true");
    assert!(!host.banger(&["vm", "list", "-q"]).output.contains("calm-otter"));
}

#[test]
fn progress_is_plain_lines_without_a_terminal() {
    let host = Host::new();
    let ended = host.banger(&["vm", "run", "--rm", "--image", "debian", "--", "true"]);
    let lines: Vec<_> = ended.errors.lines().collect();
    assert_eq!(
        lines,
        ["disk: cloning debian", "boot: waiting for the guest", "work: Delete of calm-otter"],
        "{ended:?}"
    );
    assert_eq!((ended.status, ended.output.as_str()), (0, ""));
}

#[test]
fn a_run_reminds_of_a_running_sandbox() {
    let host = Host::new();
    let ended = host.banger(&["vm", "run", "--name", "x", "--image", "debian", "--", "false"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.contains("x is still running: `banger vm exec x`"), "{ended:?}");
    assert!(host.calls("Delete").is_empty());
    assert_eq!(host.calls("CreateVM")[0].options["lifetime"], "\"persistent\"");
}

#[test]
fn a_sandbox_that_does_not_become_ready_stays_for_its_logs() {
    let host = Host::new();
    let ended = host.banger(&["vm", "run", "--rm", "--name", "slow", "--image", "debian", "--", "true"]);
    assert_eq!(ended.status, 125);
    assert!(ended.errors.contains("error: the guest of slow did not become ready within 1 s"), "{ended:?}");
    assert!(ended.errors.contains("hint: it was kept: `banger vm logs slow`"), "{ended:?}");
    assert!(host.calls("Delete").is_empty());
}

#[test]
fn a_failed_start_has_bangers_exit_status() {
    let host = Host::new();
    let ended = host.banger(&["vm", "run", "-q", "--name", "broken", "--image", "debian", "--", "true"]);
    assert_eq!(ended.status, 125);
    assert!(ended.errors.starts_with("error: qemu did not start.\nhint: "), "{ended:?}");
    assert!(!ended.errors.contains("it was kept"), "{ended:?}");
}

#[test]
fn the_hint_of_a_run_fits_whether_the_sandbox_stays() {
    let host = Host::new();
    let run = |options: &[&str]| {
        let ended =
            host.banger(&[&["vm", "run", "-q", "--image", "debian"], options, &["--", "hang-up"]].concat());
        assert_eq!(ended.status, 125, "{ended:?}");
        ended.errors
    };
    let (stays, goes) = (run(&["--name", "x"]), run(&["--rm"]));
    assert!(stays.contains("and `banger vm logs x` its console."), "{stays}");
    assert!(goes.contains("hint: without `--rm` the sandbox stays"), "{goes}");
}

#[test]
fn a_missing_default_image_is_explained() {
    let host = Host::new();
    let ended = host.banger(&["vm", "create"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.starts_with("error: there is no image debian-bookworm.\nhint: the default image"));
}

#[test]
fn an_interrupt_cancels_the_job() {
    let host = Host::new();
    let mut running =
        host.start(&["vm", "run", "--rm", "--name", "hanging", "--image", "debian", "--", "true"]);
    assert_eq!(running.next_error(), "disk: cloning debian");
    assert_eq!(running.next_error(), "boot: waiting for the guest");
    running.signal(Signal::INT);
    let ended = running.end();
    assert_eq!(ended.status, 130, "{ended:?}");
    assert_eq!(host.calls("Cancel").len(), 1);
}

#[test]
fn statuses_of_commands_are_exact() {
    let host = Host::new();
    for (script, expect) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137)] {
        assert_eq!(host.banger(&["vm", "exec", "web", "--", "sh", "-c", script]).status, expect, "{script}");
    }
    let ended = host.banger(&["vm", "exec", "web", "--", "/nonexistent"]);
    assert_eq!(ended.status, 127);
    assert!(ended.errors.starts_with("error: cannot run /nonexistent"), "{ended:?}");
    let ended = host.banger(&["vm", "exec", "web", "--", "hang-up"]);
    assert_eq!(ended.status, 125);
    assert!(ended.errors.contains("because: the sandbox has stopped"), "{ended:?}");
    assert_eq!(host.banger(&["vm", "exec", "nope", "--", "true"]).status, 125);
    assert_eq!(host.banger(&["vm", "exec"]).status, 2);
}

#[test]
fn arguments_of_a_command_are_not_split() {
    let host = Host::new();
    let words = ["a b", "", "c'd", "\"", "$HOME", "*", "x;y", "new\nline", "-n", "--"];
    let command = [&["vm", "exec", "web", "--", "printf", "[%s]"][..], &words].concat();
    let expect: String = words.iter().map(|word| format!("[{word}]")).collect();
    assert_eq!(host.banger(&command).output, expect);
}

#[test]
fn large_input_and_output_are_unchanged() {
    let host = Host::new();
    let file = host.path("much");
    let much: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
    fs::write(&file, &much).unwrap();
    let mut command = host.command(&["vm", "exec", "web", "--", "cat"]);
    let output = command.stdin(fs::File::open(&file).unwrap()).output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == much, "{} bytes of {}", output.stdout.len(), much.len());
}

#[test]
fn signals_reach_the_command() {
    let host = Host::new();
    let script = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.02; done";
    let mut running = host.start(&["vm", "exec", "web", "--", "sh", "-c", script]);
    assert_eq!(running.next_output(), "ready");
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!((ended.status, ended.output.as_str()), (7, "caught\n"), "{ended:?}");
}

#[test]
fn a_second_interrupt_leaves_a_command_that_does_not_listen() {
    let host = Host::new();
    let script = "trap 'echo again' INT; echo ready; while :; do sleep 0.02; done";
    let mut running = host.start(&["vm", "exec", "web", "--", "sh", "-c", script]);
    assert_eq!(running.next_output(), "ready");
    running.signal(Signal::INT);
    assert_eq!(running.next_output(), "again");
    running.signal(Signal::INT);
    assert_eq!(running.end().status, 130);
}

#[test]
fn a_closed_output_ends_the_command() {
    let host = Host::new();
    let mut running = host.start(&["vm", "exec", "web", "--", "yes"]);
    assert_eq!(running.next_output(), "y");
    let (mut child, _errors) = running.close_output();
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn a_detached_command_keeps_running() {
    let host = Host::new();
    let file = host.path("mark");
    let script = format!("echo done > {}", file.display());
    let ended = host.banger(&["vm", "exec", "-d", "web", "--", "sh", "-c", &script]);
    assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{ended:?}");
    assert_eq!(ended.output, "1\n", "the number of the command");
    until("the command has run", || fs::read_to_string(&file).is_ok_and(|mark| mark == "done\n"));
}

#[test]
fn a_shell_uses_the_terminal_and_restores_it() {
    let host = Host::new();
    let mut terminal = host.start_in_terminal(&["vm", "exec", "web"]);
    terminal.wait_for("vt100 24x80\r\n");
    assert!(terminal.is_raw());
    terminal.resize(50, 132);
    terminal.wait_for("50x132\r\n");
    terminal.type_in("\x03");
    terminal.wait_for(r"[\x03]");
    terminal.type_in("\x04");
    until("the terminal is as it was", || !terminal.is_raw());
    assert_eq!(terminal.end().0.code(), Some(7));
}

#[test]
fn the_terminal_is_restored_after_errors_and_signals() {
    let host = Host::new();
    let mut terminal = host.start_in_terminal(&["vm", "exec", "web", "--", "hang-up"]);
    terminal.wait_for("because: the sandbox has stopped");
    until("the terminal is as it was", || !terminal.is_raw());
    assert_eq!(terminal.end().0.code(), Some(125));

    let mut terminal = host.start_in_terminal(&["vm", "exec", "web"]);
    terminal.wait_for("vt100 24x80\r\n");
    assert!(terminal.is_raw());
    terminal.signal(Signal::TERM);
    terminal.type_in("still here");
    terminal.wait_for("[still here]");
    terminal.signal(Signal::HUP);
    until("the terminal is as it was", || !terminal.is_raw());
    assert_eq!(terminal.end().0.code(), Some(129));
}

#[test]
fn closing_the_window_ends_the_command_and_the_sandbox() {
    let host = Host::new();
    let mut terminal = host.start_in_terminal(&["vm", "run", "--rm", "--image", "debian"]);
    terminal.wait_for("vt100 24x80\r\n");
    assert_eq!(terminal.close().code(), Some(129));
    assert_eq!(host.calls("Delete").len(), 1);
}

#[test]
fn a_command_behind_nohup_survives_the_hangup() {
    let host = Host::new();
    let script = "trap 'echo bad' HUP; trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done";
    let command = host.command(&["vm", "exec", "web", "--", "sh", "-c", script]);
    let mut running = host.start_with("nohup", &command);
    assert_eq!(running.next_output(), "ready");
    running.signal(Signal::HUP);
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!((ended.status, ended.output.as_str()), (7, ""), "{ended:?}");
}

#[test]
fn lists_need_one_call() {
    let host = Host::new();
    let ended = host.banger(&["ps"]);
    let lines: Vec<_> = ended.output.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["ID", "NAME", "STATE", "IMAGE", "ADDRESS", "VCPU", "MEM", "DISK", "CREATED", "PORTS"]
    );
    assert!(lines[1].starts_with("000000000000  web "), "{ended:?}");
    assert_eq!(lines.len(), 4);
    assert_eq!(host.all_calls(), ["GetManagedObjects"]);
}

#[test]
fn json_has_the_names_of_the_bus() {
    let host = Host::new();
    let list: Value = serde_json::from_str(&host.banger(&["vm", "list", "--json"]).output).unwrap();
    assert_eq!(list[1]["name"], "db");
    assert_eq!(list[1]["image_name"], "debian");
    assert_eq!(list[1]["owner_uid"], 1000);
    let mut show: Value = serde_json::from_str(&host.banger(&["vm", "show", "--json", "db"]).output).unwrap();
    // Reported by the agent, which is missing here.
    assert_eq!(show.as_object_mut().unwrap().remove("phases"), Some(Value::Null));
    assert_eq!(show, list[1]);
    let create = ["vm", "create", "--json", "--name", "new", "--image", "debian", "--no-start"];
    let created: Value = serde_json::from_str(&host.banger(&create).output).unwrap();
    assert_eq!(created["name"], "new");
    assert_eq!(host.calls("CreateVM")[0].options["start"], "false");
}

#[test]
fn create_prints_the_name_of_the_sandbox() {
    let host = Host::new();
    let ended = host.banger(&["vm", "create", "-q", "--image", "debian", "--vcpu", "2", "--memory", "2GiB"]);
    assert_eq!(ended, Ended { status: 0, output: "calm-otter\n".into(), errors: String::new() });
    let options = &host.calls("CreateVM")[0].options;
    assert_eq!((options["vcpus"].as_str(), options["memory"].as_str()), ("2", "2147483648"));
}

#[test]
fn results_are_in_order_even_if_one_fails() {
    let host = Host::new();
    let id = host.banger(&["vm", "show", "--json", "web"]).output;
    let id = serde_json::from_str::<Value>(&id).unwrap()["id"].as_str().unwrap().to_owned();
    let ended = host.banger(&["vm", "stop", "-q", "web", "nope", "db", "web", &id]);
    let errors = "error: nope: there is no sandbox nope.\nhint: `banger vm list` shows your sandboxes.\n";
    assert_eq!(
        ended,
        Ended { status: 1, output: "web: stopped\ndb: stopped\n".into(), errors: errors.into() }
    );
    assert_eq!(host.calls("Stop").len(), 2);
}

#[test]
fn what_is_already_so_is_said() {
    let host = Host::new();
    let said = |verb: &str| host.banger(&["vm", verb, "-q", "web"]).output;
    assert_eq!(said("start"), "web: already running\n");
    assert_eq!(said("stop"), "web: stopped\n");
    assert_eq!(said("stop"), "web: already stopped\n");
    let rows = host.banger(&["vm", "stop", "-q", "--json", "web", "db"]).output;
    let rows: Value = serde_json::from_str(&rows).unwrap();
    let found = [&rows[0], &rows[1]].map(|row| (row["done"].as_str(), row["changed"].as_bool()));
    assert_eq!(found, [(Some("stopped"), Some(false)), (Some("stopped"), Some(true))]);
    assert_eq!(said("start"), "web: started\n");
    assert_eq!(said("restart"), "web: restarted\n");
}

#[test]
fn options_of_stop_reach_the_service() {
    let host = Host::new();
    assert_eq!(host.banger(&["vm", "stop", "--timeout", "3", "web"]).status, 0);
    assert_eq!(host.calls("Stop")[0].options["timeout-usec"], "3000000");
    assert_eq!(host.banger(&["vm", "restart", "--force", "web"]).status, 0);
    assert_eq!(host.calls("Restart")[0].options["force"], "true");
    assert_eq!(host.banger(&["vm", "kill", "--signal", "TERM", "web"]).output, "web: killed\n");
    assert_eq!(host.banger(&["vm", "delete", "web"]).output, "web: deleted\n");
    assert_eq!(host.calls("Delete")[0].options["force"], "false");
}

#[test]
fn without_a_terminal_there_is_no_prompt() {
    let host = Host::new();
    let ended = host.banger(&["vm", "stop", "locked"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.starts_with("error: an administrator has to allow this.\nhint: "), "{ended:?}");
    let asked: Vec<bool> = host.calls("Stop").iter().map(|call| call.interactive).collect();
    assert_eq!(asked, [false]);
}

#[test]
fn in_a_terminal_the_call_is_repeated_interactively() {
    let host = Host::new();
    let mut terminal = host.start_in_terminal(&["vm", "stop", "locked"]);
    terminal.wait_for("locked: stopped");
    let (status, _) = terminal.end();
    assert!(status.success());
    let asked: Vec<bool> = host.calls("Stop").iter().map(|call| call.interactive).collect();
    assert_eq!(asked, [false, true]);
}

#[test]
fn logs_are_unchanged_in_a_pipe_and_sanitized_on_a_terminal() {
    let host = Host::new();
    let ended = host.banger(&["vm", "logs", "-f", "-n", "5", "web"]);
    assert_eq!(ended.output, "[\x1b[0;32m  OK  \x1b[0m] Started\r\n");
    let options = &host.calls("OpenLog")[0].options;
    assert_eq!((options["follow"].as_str(), options["tail"].as_str()), ("true", "5"));
    let (status, seen) = {
        let mut terminal = host.start_in_terminal(&["vm", "logs", "web"]);
        terminal.wait_for("Started");
        terminal.end()
    };
    assert!(status.success());
    assert_eq!(seen, "[  OK  ] Started\r\n");
}

#[test]
fn files_are_passed_as_descriptors() {
    let host = Host::new();
    let rootfs = host.path("rootfs");
    fs::write(&rootfs, "a file system").unwrap();
    let rootfs = rootfs.to_str().unwrap();
    let ended = host.banger(&["image", "register", "-q", "--name", "mine", "--rootfs", rootfs]);
    assert_eq!(ended, Ended { status: 0, output: "mine\n".into(), errors: String::new() });
    let show = host.banger(&["image", "show", "--json", "mine"]).output;
    assert_eq!(serde_json::from_str::<Value>(&show).unwrap()["source"], "rootfs=a file system");

    let modules = host.path("modules");
    fs::create_dir(&modules).unwrap();
    fs::write(modules.join("a.ko"), "module").unwrap();
    let args = ["kernel", "import", "--json", "--name", "k", "--vmlinuz", rootfs, "--modules"];
    let ended = host.banger(&[&args[..], &[modules.to_str().unwrap()]].concat());
    let kernel: Value = serde_json::from_str(&ended.output).unwrap();
    assert_eq!(kernel["source"], "kernel=a file system modules=2048 bytes");

    assert_eq!(host.banger(&["kernel", "rm", "k"]).output, "k: deleted\n");
    let ended = host.banger(&["image", "register", "--name", "x", "--rootfs", "/nonexistent"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.starts_with("error: cannot open /nonexistent.\n  because: "), "{ended:?}");
    let ended = host.banger(&["image", "register", "--name", "x", "--rootfs", modules.to_str().unwrap()]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.contains("is not a regular file") && !ended.errors.contains("--oci"), "{ended:?}");
}

#[test]
fn a_failed_check_is_a_failure() {
    let host = Host::new();
    let ended = host.banger(&["doctor"]);
    assert_eq!(ended.status, 1);
    assert_eq!(ended.output, "PASS  kvm: it works\nFAIL  disk: it is full\n      hint: buy another one\n");
}

#[test]
fn a_repair_prints_what_it_did_and_then_the_checks() {
    let host = Host::new();
    let ended = host.banger(&["doctor", "--fix"]);
    assert_eq!(
        (ended.status, ended.output.as_str()),
        (0, "FIXED cache: removed 1 download\nPASS  kvm: it works\n")
    );
}

#[test]
fn a_missing_service_is_reported_with_a_hint() {
    let host = Host::without_service();
    let ended = host.banger(&["vm", "list"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.contains("sudo systemctl start banger-system"), "{ended:?}");
    assert_eq!(host.banger(&["vm", "run"]).status, 125);
    assert_eq!(host.banger(&["version"]).status, 0);
}
