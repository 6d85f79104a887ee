//! Raw mode of a terminal: every key is passed on unchanged.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Restores the terminal when it is dropped.
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Puts a terminal into raw mode.
    pub fn enter(terminal: impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // An error means that the terminal has hung up. `Drain` could block if no process reads the output any more.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::panic;

    use rustix::{
        fs::{Mode, OFlags, open},
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
        termios::LocalModes,
    };

    use super::*;

    /// Returns both ends of a terminal.
    fn terminal() -> (OwnedFd, OwnedFd) {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let user = open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        (controller, user)
    }

    fn is_raw(terminal: &OwnedFd) -> bool {
        !tcgetattr(terminal).unwrap().local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON)
    }

    #[test]
    fn a_terminal_is_raw_while_the_guard_lives() {
        let (_controller, user) = terminal();
        let guard = RawMode::enter(&user).unwrap();
        assert!(is_raw(&user));
        drop(guard);
        assert!(!is_raw(&user));
    }

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let (_controller, user) = terminal();
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            let _guard = RawMode::enter(&user).unwrap();
            panic::panic_any(is_raw(&user));
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&true));
        assert!(!is_raw(&user));
    }

    #[test]
    fn other_files_have_no_raw_mode() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(RawMode::enter(&reader).is_err());
    }
}
