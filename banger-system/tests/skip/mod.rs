//! Skips tests that need what a machine may lack.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test binary uses a part of this"
)]

use std::{fs, io::Write};

/// Skips the test, with a message, if the machine lacks something.
macro_rules! require {
    ($condition:expr, $what:literal) => {
        if !$condition {
            crate::skip::skipped(concat!("this test needs ", $what));
            return;
        }
    };
}
pub(crate) use require;

/// Returns whether the kernel has the driver of a device: a node may be there without one.
pub fn has_device(path: &str) -> bool {
    fs::OpenOptions::new().read(true).write(true).open(path).is_ok()
}

/// Reports why a test is skipped, to programs that count tests too.
pub fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
    if let Some(path) = std::env::var_os("BANGER_TEST_SKIPS") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        writeln!(file, "{test}: {why}").unwrap();
    }
}
