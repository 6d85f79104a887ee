//! Writes lines to the kernel log, whose console the host keeps.

use std::{fs::OpenOptions, io::Write};

use banger_proto::causes::without_codes;

/// Logs a fact that helps to understand a boot.
pub fn info(message: &str) {
    line("<6>", message);
}

/// Logs a failure.
pub fn error(message: &str) {
    line("<3>", message);
}

/// Logs a message that must reach the host, however quiet the guest's kernel is.
pub fn emergency(message: &str) {
    line("<0>", message);
}

/// Writes a line to the kernel log, which reaches the console and, later, the guest's own journal.
fn line(level: &str, message: &str) {
    let line = format!("{level}banger-agent: {}\n", without_codes(message).replace('\n', " "));
    let written =
        OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(line.as_bytes()));
    if written.is_err() {
        // Without a kernel log, there is nowhere else to report this.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
