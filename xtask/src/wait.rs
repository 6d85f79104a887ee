//! The one way in which xtask waits for something. Its scripts have `wait.sh`.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long to wait, and how often to look.
#[derive(Clone, Copy)]
pub struct Patience {
    /// The longest time.
    pub limit: Duration,
    /// The pause between two looks.
    pub poll: Duration,
}

/// Looks until there is something to return.
///
/// # Errors
/// If a look fails, or finds nothing within the limit; the error then says `what` did not come.
pub fn wait_until<T>(
    what: impl Display,
    patience: Patience,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience.limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for {what}", patience.limit.as_secs_f32());
        }
        thread::sleep(patience.poll);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SHORT: Patience = Patience { limit: Duration::from_millis(20), poll: Duration::from_millis(1) };

    #[test]
    fn a_wait_ends_with_what_is_found_or_says_what_was_not() {
        let mut looks = 0;
        let third = wait_until("the third look", SHORT, || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(third.unwrap(), 3);

        let nothing = wait_until("a miracle", SHORT, || Ok(None::<()>)).unwrap_err();
        assert_eq!(nothing.to_string(), "waited 0.02 s in vain for a miracle");

        let failed = wait_until("a look", SHORT, || bail!("it is dark") as Result<Option<()>>).unwrap_err();
        assert_eq!(failed.to_string(), "it is dark");
    }
}
