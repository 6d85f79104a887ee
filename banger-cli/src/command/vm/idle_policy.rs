//! `--idle`: what happens to a sandbox that idles.

use std::time::Duration;

use banger_proto::bus::{option::create, proxy::Options};
use zbus::Variant;

use super::numbers::time;

/// What no policy is called.
const OFF: &str = "off";
const ACTIONS: [&str; 3] = ["suspend", "suspend-no-wake", "stop"];

/// What happens to a sandbox that idles: an action after some time, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdlePolicy(Option<(&'static str, Duration)>);

/// Parses `suspend=TIME`, `suspend-no-wake=TIME`, `stop=TIME` or `off`.
pub fn idle_policy(text: &str) -> Result<IdlePolicy, String> {
    if text == OFF {
        return Ok(IdlePolicy(None));
    }
    let (action, after) = text.split_once('=').unwrap_or((text, ""));
    let action = ACTIONS.into_iter().find(|known| *known == action);
    let action = action.ok_or_else(|| {
        "write suspend=TIME, suspend-no-wake=TIME, stop=TIME or off, such as suspend=30m".to_owned()
    })?;
    Ok(IdlePolicy(Some((action, time(after)?))))
}

impl IdlePolicy {
    /// Returns it as options of `CreateVM` and `Configure`.
    pub fn options(self) -> Options<'static> {
        let Self(policy) = self;
        let mut options =
            Options::from([(create::IDLE_ACTION, Variant::from(policy.map_or("", |(action, _)| action)))]);
        if let Some((_, after)) = policy {
            let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
            options.insert(create::IDLE_AFTER, Variant::from(micros));
        }
        options
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_policy_is_an_action_and_a_time_or_off() {
        let options = |text: &str| idle_policy(text).unwrap().options();
        let expect = Options::from([
            ("idle-action", Variant::from("suspend")),
            ("idle-after-usec", Variant::from(1_800_000_000u64)),
        ]);
        assert_eq!(options("suspend=30m"), expect);
        assert_eq!(options("suspend-no-wake=1h")["idle-action"], Variant::from("suspend-no-wake"));
        assert_eq!(options("stop=2h")["idle-after-usec"], Variant::from(7_200_000_000u64));
        assert_eq!(options("off"), Options::from([("idle-action", Variant::from(""))]));
        for text in ["", "30m", "suspend", "suspend=", "suspend=30", "delete=1h", "off=1h", "stop=-1m"] {
            assert!(idle_policy(text).is_err(), "{text}");
        }
    }
}
