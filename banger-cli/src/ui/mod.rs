//! What people see and type: output, tables and progress, hints and suggestions, times, and signals.
//!
//! Everything that comes from a guest, a registry or another user goes through [`sanitize`] before it reaches a
//! terminal. Snapshots of all messages are in `snapshots/`.

pub mod age;
pub mod column;
pub mod hint;
#[cfg(test)]
mod option_values;
pub mod output;
pub mod progress;
mod progress_line;
pub mod sanitize;
pub mod schema;
pub mod signals;
pub mod state_reason;
pub mod suggest;
pub mod table;
pub mod template;
pub mod terminal;
pub mod time;
#[cfg(test)]
pub mod wording;
