//! What belongs to the user: settings, directories, registry credentials, and what sandboxes get from the user's
//! environment (files, locale, time zone).

pub mod credentials;
pub mod dirs;
pub mod locale;
pub mod settings;
pub mod timezone;
pub mod user_files;
