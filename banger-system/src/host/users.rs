//! The accounts of the host, from its name service.

use banger_domain::id::Uid;

use crate::ports::Users;

/// The accounts of the host.
pub struct Accounts;

impl Users for Accounts {
    fn uid_of(&self, login: &str) -> Option<Uid> {
        if let Ok(number) = login.parse() {
            return Some(Uid(number));
        }
        uzers::get_user_by_name(login).map(|user| Uid(user.uid()))
    }

    fn name_of(&self, uid: Uid) -> String {
        let name = uzers::get_user_by_uid(uid.0).map(|user| user.name().to_string_lossy().into_owned());
        name.unwrap_or_else(|| uid.to_string())
    }
}
