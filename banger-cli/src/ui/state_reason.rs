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
    ("lost", "the VMM was gone when the service started"),
];

/// Adds the meaning to a reason; unknown ones stay as they are.
pub fn describe(reason: &str) -> String {
    let word = reason.split(':').next().unwrap_or_default();
    match SENTENCES.iter().find(|(known, _)| *known == word) {
        Some((_, sentence)) => format!("{reason} ({sentence})"),
        None => reason.to_owned(),
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
    fn a_reason_is_shown_with_what_it_means() {
        assert_eq!(describe("guest-halt"), "guest-halt (the guest halted)");
        assert_eq!(describe("vmm-exit:killed:9"), "vmm-exit:killed:9 (the VMM ended with that status)");
        assert_eq!((describe(""), describe("new")), (String::new(), "new".to_owned()));
    }
}
