//! Questions about what a sandbox was denied, on the terminal of its command.

use crate::host::{Host, until};

#[test]
fn what_a_sandbox_is_denied_is_allowed_from_the_terminal_of_its_command() {
    let host = Host::new();
    let script = "stty raw -echo; dd bs=1 count=4 2> /dev/null | od -An -tx1";
    let run = ["vm", "run", "--ask", "--egress", "git", "--image", "debian", "--name", "box-denied"];
    let mut terminal = host.start_in_terminal(&[&run[..], &["--", "sh", "-c", script]].concat());
    terminal.wait_for("denied evil.example. Press Ctrl-] y");
    until("the command has the terminal", || terminal.is_raw());
    terminal.type_in("\x1dy");
    terminal.wait_for("the sandbox may reach evil.example from now on");
    terminal.wait_for("denied good.example.");
    terminal.type_in("\x1dn");
    terminal.wait_for("good.example stays denied");
    terminal.wait_for("denied 192.0.2.7:443.");
    // Nothing else is an answer. The command gets it.
    terminal.type_in("yn\x1dx");
    terminal.wait_for("79 6e 1d 78");
    let (status, seen) = terminal.end();
    assert!(status.success(), "{seen}");
    let asked: Vec<_> = host.calls("ChangeEgress").into_iter().map(|call| call.options).collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!((asked[0]["allow"].as_str(), asked[0]["deny"].as_str()), ("\"evil.example\"", ""));
}

#[test]
fn nobody_is_asked_without_a_terminal_or_a_policy() {
    let host = Host::new();
    for (options, expect) in [
        (&["--egress", "git"][..], "--ask needs a terminal"),
        (&[], "--ask needs an egress policy"),
        (&["--nat"], "--ask needs an egress policy"),
        (&["--egress", "none"], "--ask needs an egress policy"),
    ] {
        let refused = host.banger(&[&["vm", "run", "--ask", "--image", "debian"], options].concat());
        assert_eq!(refused.status, 2, "{refused:?}");
        assert!(refused.errors.contains(expect), "{refused:?}");
    }
    assert!(host.calls("CreateVM").is_empty());
}
