//! Explains the reasons of states to people. `docs/lifecycle.md` has the same texts.

/// The keyword of a reason before its colon, and what it means.
const SENTENCES: &[(&str, &str)] = &[
    ("user-request", "a user asked for it"),
    ("guest-shutdown", "the guest powered off"),
    ("guest-reboot", "the guest rebooted"),
    ("guest-halt", "the guest halted"),
    ("guest-panic", "the guest's kernel panicked"),
    ("reboot-loop", "the guest rebooted more than five times in five minutes"),
    ("vmm-out-of-memory", "memory ran out, and the kernel killed the VMM"),
    ("vmm-exit", "the VMM ended with that status"),
    ("start-failed", "it could not be started"),
    ("boot-timeout", "the guest did not answer in time"),
    ("caller-vanished", "the client that it was bound to disconnected"),
    ("idle", "idle"),
    ("lost", "the VMM was gone when the service started"),
    ("host-restart", "the host was shut down or restarted while it ran"),
    ("host-boot", "it was started because the host has booted"),
    ("restarted", "its restart policy started it again"),
    ("woken", "it had idled, and was used again"),
];

/// Returns a reason in words, with its keyword; unknown ones stay as they are.
pub fn describe(reason: &str) -> String {
    let (word, detail) = reason.split_once(':').unwrap_or((reason, ""));
    let Some((_, sentence)) = SENTENCES.iter().find(|(known, _)| *known == word) else {
        return reason.to_owned();
    };
    match (word, detail.split_once(':')) {
        ("vmm-exit", Some(("exited", status))) => format!("the VMM ended with status {status} ({word})"),
        ("vmm-exit", Some(("killed" | "dumped", signal))) => {
            format!("signal {signal} ended the VMM ({word})")
        }
        ("idle", _) if !detail.is_empty() => format!("idle for {detail}"),
        ("restarted", _) => format!("{sentence} after an end: {}", describe(detail)),
        _ if detail.is_empty() => format!("{sentence} ({word})"),
        _ => format!("{sentence}: {detail} ({word})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_reason_has_the_documented_text() {
        let page = include_str!("../../../docs/lifecycle.md");
        let (_, table) = page.split_once("| `state_reason` | state | what happened |\n").unwrap_or_default();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(rows.len(), SENTENCES.len());
        for (row, (word, sentence)) in rows.iter().zip(SENTENCES) {
            let (reason, happened) = (row[1].trim_matches('`'), row[3]);
            assert_eq!(reason.split(':').next(), Some(*word));
            assert!(happened.starts_with(sentence), "{word}: {sentence:?} is not how {happened:?} begins");
        }
    }

    #[test]
    fn a_reason_is_shown_in_words() {
        for (reason, expect) in [
            ("guest-halt", "the guest halted (guest-halt)"),
            ("vmm-exit:killed:9", "signal 9 ended the VMM (vmm-exit)"),
            ("vmm-exit:exited:1", "the VMM ended with status 1 (vmm-exit)"),
            (
                "restarted:vmm-exit:killed:9",
                "its restart policy started it again after an end: signal 9 ended the VMM (vmm-exit)",
            ),
            ("vmm-exit:odd", "the VMM ended with that status: odd (vmm-exit)"),
            (
                "start-failed:cannot open /x: no such file",
                "it could not be started: cannot open /x: no such file (start-failed)",
            ),
            ("idle:30 minutes", "idle for 30 minutes"),
            ("", ""),
            ("new", "new"),
        ] {
            assert_eq!(describe(reason), expect);
        }
    }
}
