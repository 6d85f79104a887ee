//! `banger doctor`.

use banger_proto::bus::record::CheckRow;
use clap::Args;
use serde_json::json;

use crate::{
    client::bus::Bus,
    error::{FAILURE, Result},
    ui::{output, sanitize},
};

/// Check whether this host is ready
///
/// The service runs the same checks as before the start of a sandbox. It changes nothing unless you give --fix. The
/// exit status is 1 if a check fails; warnings do not count.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger doctor
  banger doctor --fix

Each failed check says what to do about it. When all pass, `banger vm run` works.

--fix needs an administrator (dev.banger.host.repair). It removes what deleted sandboxes of all
users have left behind, retries what has failed, restores missing rules of the packet filter, and
removes downloads that nothing has used for 30 days. It prints a line that begins with FIXED for
each repair, and then the checks.")]
pub struct Doctor {
    /// Repair what can be repaired without risk, and print what was done
    #[arg(long)]
    fix: bool,
    /// Print a JSON array of objects with the keys check, status, message and hint
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let checks = if self.fix { bus.repair().await? } else { bus.diagnose().await? };
        if self.json {
            output::json(&checks.iter().map(json).collect())?;
        } else {
            if let Some(server) = bus.server() {
                output::text(&format!("HOST  {server}\n"))?;
            }
            output::text(&checks.iter().map(text).collect::<String>())?;
        }
        Ok(if checks.iter().any(|check| check.status == "fail") { FAILURE } else { 0 })
    }
}

fn json(check: &CheckRow) -> serde_json::Value {
    json!({
        "check": check.check,
        "status": check.status,
        "message": check.message,
        "hint": check.hint,
    })
}

fn text(check: &CheckRow) -> String {
    let status = check.status.to_uppercase();
    let mut text = sanitize::line(&format!("{status:<5} {}: {}", check.check, check.message)) + "\n";
    if !check.hint.is_empty() {
        text.push_str(&sanitize::line(&format!("      hint: {}", check.hint)));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_and_its_hint_take_a_line_each() {
        let row = |status: &str, hint: &str| CheckRow {
            check: "kvm".into(),
            status: status.into(),
            message: "/dev/kvm cannot be opened".into(),
            hint: hint.into(),
        };
        assert_eq!(text(&row("pass", "")), "PASS  kvm: /dev/kvm cannot be opened\n");
        let expect = "FAIL  kvm: /dev/kvm cannot be opened\n      hint: load the module kvm.\n";
        assert_eq!(text(&row("fail", "load the module kvm.")), expect);
        assert_eq!(text(&row("fixed", "")), "FIXED kvm: /dev/kvm cannot be opened\n");
        assert_eq!(json(&row("warn", "x"))["status"], "warn");
    }
}
