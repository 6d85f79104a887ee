//! The recent history of a sandbox, for `banger vm show --events`.

use banger_proto::bus::record::{ChangeRow, PhaseRow};
use serde_json::{Value, json};

use crate::ui::{age, state_reason, table::Table};

/// Formats the phases of the last start in milliseconds, and the changes of the state, the oldest first.
pub fn text(changes: &[ChangeRow], phases: &[PhaseRow]) -> String {
    let mut text = String::new();
    if !phases.is_empty() {
        let mut table = Table::new(["PHASE", "MS"]);
        for row in phases {
            table.row([row.phase.clone(), msec(row.usec)]);
        }
        table.row(["total".to_owned(), msec(phases.iter().map(|row| row.usec).sum())]);
        text = table.text();
        text.push('\n');
    }
    let mut table = Table::new(["WHEN", "STATE", "REASON"]);
    for row in changes {
        let state = if row.ready { format!("{}, ready", row.state) } else { row.state.clone() };
        table.row([age::stamp(row.at_usec), state, state_reason::describe(&row.reason)]);
    }
    text + &table.text()
}

/// Returns the phases as JSON, in order.
pub fn phases_json(phases: &[PhaseRow]) -> Value {
    phases.iter().map(|row| json!({ "phase": row.phase, "usec": row.usec })).collect()
}

/// Returns the changes as JSON, the oldest first.
pub fn changes_json(changes: &[ChangeRow]) -> Value {
    let object = |row: &ChangeRow| json!({ "at": row.at_usec, "state": row.state, "ready": row.ready, "state_reason": row.reason });
    changes.iter().map(object).collect()
}

/// Formats a time in milliseconds.
fn msec(usec: u64) -> String {
    format!("{}.{}", usec / 1000, usec % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_two_tables() {
        let phases = [("disks", 3_250), ("guest", 1_200_000)];
        let phases = phases.map(|(phase, usec)| PhaseRow { phase: phase.to_owned(), usec });
        let change = |state: &str, ready, reason: &str| ChangeRow {
            at_usec: 0,
            state: state.to_owned(),
            ready,
            reason: reason.to_owned(),
        };
        let changes = [change("running", true, ""), change("failed", false, "vmm-exit:killed:9")];
        let text = text(&changes, &phases);
        let (first, second) = text.split_once("\n\n").unwrap_or_default();
        assert_eq!(first, "PHASE  MS\ndisks  3.2\nguest  1200.0\ntotal  1203.2");
        let ends: Vec<&str> =
            second.lines().map(|line| line.split("  ").last().unwrap_or_default().trim()).collect();
        assert_eq!(ends, ["REASON", "-", "signal 9 ended the VMM (vmm-exit)"]);
        assert!(second.contains("running, ready") && !second.contains("failed, ready"), "{second}");
        assert!(!self::text(&changes, &[]).contains("PHASE"));
    }
}
