//! Checks of the host.

/// The result of a check that `doctor` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// The result.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it; empty if there is nothing to do.
    pub hint: String,
}

/// The status of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It works.
    Pass,
    /// It works with restrictions.
    Warn,
    /// Sandboxes do not work.
    Fail,
    /// It did not work, and was repaired.
    Fixed,
}
