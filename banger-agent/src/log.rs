//! Lines to the serial console, which the host keeps.

use std::{fs::OpenOptions, io::Write};

/// Something that is good to know when a boot is looked at.
pub fn info(message: &str) {
    line("<6>", message);
}

/// Something that went wrong.
pub fn error(message: &str) {
    line("<3>", message);
}

/// Something that the host is to hear, however quiet the guest's kernel is.
pub fn emergency(message: &str) {
    line("<0>", message);
}

/// The kernel's log reaches the console and, later, the guest's own journal.
fn line(level: &str, message: &str) {
    let line = format!("{level}banger-agent: {}\n", message.replace('\n', " "));
    let written =
        OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(line.as_bytes()));
    if written.is_err() {
        // Without a log there is nobody to tell.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
