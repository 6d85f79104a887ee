//! The user's locale, which goes along with a command as ssh sends it.

use std::{env, ffi::OsString};

use banger_proto::guest::{Exec, message::is_locale};

/// `LANG` and `LC_*` of the caller.
pub fn of_caller() -> Vec<(String, String)> {
    of(env::vars_os())
}

/// What is no locale stays here: the agent would not heed it either.
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
    fn only_what_is_about_the_locale_goes_along() {
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
