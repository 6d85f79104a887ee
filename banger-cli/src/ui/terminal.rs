//! The width of the terminal.

use std::{env, io::IsTerminal, os::fd::AsFd};

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
