//! Long jobs on a terminal: their progress, and how to interrupt them.

use std::fs;

use crate::host::Host;

/// The character of Ctrl-C.
const CTRL_C: &str = "\x03";

#[test]
fn a_first_interrupt_cancels_and_nothing_is_left() {
    let host = Host::new();
    let mut terminal = host.start_in_terminal(&["vm", "create", "--name", "hanging", "--image", "debian"]);
    terminal.wait_for("waiting for the guest");
    terminal.type_in(CTRL_C);
    terminal.wait_for("error: interrupted.");
    let (status, seen) = terminal.end();
    assert_eq!(status.code(), Some(130), "{seen}");
    assert_eq!(host.calls("Cancel").len(), 1);
    assert!(!host.banger(&["vm", "list", "-q"]).output.contains("hanging"));
}

#[test]
fn a_second_interrupt_detaches_and_says_how_to_return() {
    let host = Host::new();
    let mut terminal = host.start_in_terminal(&["vm", "create", "--name", "stubborn", "--image", "debian"]);
    terminal.wait_for("waiting for the guest");
    terminal.type_in(CTRL_C);
    terminal.wait_for("it can no longer be cancelled");
    terminal.type_in(CTRL_C);
    terminal.wait_for("`banger vm exec stubborn` opens a shell once it is ready");
    let (status, seen) = terminal.end();
    assert_eq!(status.code(), Some(130), "{seen}");
    assert!(seen.contains("error: detached after a second interrupt."), "{seen}");
    assert_eq!(host.calls("Cancel").len(), 1);
    assert!(host.banger(&["vm", "list", "-q"]).output.contains("stubborn"));
}

#[test]
fn an_interrupt_after_the_job_of_a_creation_leaves_a_program_the_id() {
    let host = Host::new();
    host.hang_agents();
    let words = ["vm", "create", "--name", "box", "--image", "debian", "--wait", "boot", "--json"];
    let mut terminal = host.start_in_terminal(&words);
    // Its job is over: its guest is asked for.
    crate::host::until("the agent is called", || !host.calls("OpenAgent").is_empty());
    terminal.type_in(CTRL_C);
    terminal.wait_for("error: interrupted.");
    let (status, seen) = terminal.end();
    assert_eq!(status.code(), Some(130), "{seen}");
    assert!(seen.contains("\"name\": \"box\""), "{seen}");
    assert!(host.banger(&["vm", "list", "-q"]).output.contains("box"));
}

#[test]
fn an_interrupted_copy_leaves_nothing_on_the_host() {
    let host = Host::new();
    let place = host.path("place");
    fs::create_dir(&place).unwrap();
    let to = place.join("file");
    let mut terminal = host.start_in_terminal(&["vm", "cp", "web:/srv/file", to.to_str().unwrap()]);
    terminal.wait_for("web:/srv/file to ");
    crate::host::until("the copy has begun", || fs::read_dir(&place).unwrap().count() == 1);
    terminal.type_in(CTRL_C);
    terminal.wait_for("error: interrupted.");
    assert_eq!(terminal.end().0.code(), Some(130));
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
}

#[test]
fn copies_show_their_bytes_on_a_terminal_and_a_line_in_a_pipe() {
    let host = Host::new();
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "box", "--image", "debian"]).status, 0);
    let file = host.path("file");
    // Real data, because holes are not sent, and so much that a fast host shows progress, too.
    fs::write(&file, vec![1; 256 << 20]).unwrap();
    let (file, there) = (file.to_str().unwrap(), format!("box:{}", host.path("there").display()));
    let mut terminal = host.start_in_terminal(&["vm", "cp", file, &there]);
    terminal.wait_for("of 256 MiB");
    assert!(terminal.end().0.success());
    let said = format!("copy: {file} to {there}\n");
    assert!(host.banger(&["vm", "cp", file, &there]).errors.starts_with(&said));
    assert_eq!(host.banger(&["vm", "cp", "-q", file, &there]).errors, "");
    let back = host.path("back");
    let mut terminal = host.start_in_terminal(&["vm", "cp", &there, back.to_str().unwrap()]);
    terminal.wait_for(" MiB");
    assert!(terminal.end().0.success());
    assert_eq!(fs::metadata(back).unwrap().len(), 256 << 20);
}
