//! The user's locale, which is sent with a command as ssh does.

use std::{env, ffi::OsString};

use banger_proto::guest::{Exec, message::is_locale};

/// Returns `LANG` and `LC_*` of the caller.
pub fn of_caller() -> Vec<(String, String)> {
    of(env::vars_os())
}

/// Selects valid locale variables. Others are not sent, because the agent would ignore them.
fn of(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let mut locale: Vec<_> =
        variables.filter_map(text).filter(|(name, value)| is_locale(name, value)).collect();
    locale.sort();
    locale.truncate(Exec::MAX_LOCALE);
    locale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_locale_variables_are_sent() {
        let variables =
            [("PATH", "/bin"), ("LC_TIME", "C"), ("LANG", "de_DE.UTF-8"), ("LC_ALL", ""), ("LC_X", "a;b")];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let expect = [("LANG", "de_DE.UTF-8"), ("LC_TIME", "C")];
        assert_eq!(
            of(variables.into_iter()),
            expect.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
