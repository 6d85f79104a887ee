//! The terminal: its width, and what is printed there beside results.

use std::{
    env,
    io::{self, IsTerminal, Write as _},
    os::fd::AsFd,
};

/// Returns how many columns a line may have, or `None` for a file or a pipe: programs read whole lines. `COLUMNS` is
/// what the user wishes, where it is set.
pub fn width(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    if !stream.is_terminal() {
        return None;
    }
    let wanted = env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    wanted
        .or_else(|| Some(usize::from(rustix::termios::tcgetwinsize(stream).ok()?.ws_col)))
        .filter(|&n| n > 0)
}

/// Prints a question, and leaves the cursor behind it. In one write: what the user types meanwhile, or another program prints, comes
/// before it or after it.
pub fn question(text: &str) -> io::Result<()> {
    io::stderr().write_all(format!("{text} ").as_bytes())
}

/// Prints a line, in one write as [`question`]. A command may have put the terminal into raw mode.
pub fn line_in_raw_mode(line: &str) {
    let text = if io::stderr().is_terminal() { format!("\r\n{line}\r\n") } else { format!("{line}\n") };
    // Nobody can be told that nobody can be told.
    let _ = io::stderr().write_all(text.as_bytes());
}
