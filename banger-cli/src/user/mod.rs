//! What belongs to the user: settings, directories, registry credentials, and what sandboxes get from the user's
//! environment (files, locale, time zone).

pub mod credential_helper;
pub mod credentials;
pub mod defaults;
pub mod dirs;
pub mod locale;
pub mod proxy;
pub mod settings;
pub mod settings_file;
pub mod timezone;
pub mod user_files;
