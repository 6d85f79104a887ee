//! Computes the correction of a guest's clock.
//!
//! A guest counts from the time that it got at boot, and its counter is only as good as the kernel's guess of the
//! counter's rate. So the host compares the clocks: it asks for the time several times and trusts the fastest answer,
//! as NTP does (RFC 5905, section 10). The remaining error is half of that answer's round trip.

use banger_proto::guest::message::{Correction, Pace};

/// Smaller differences are not corrected: file times are compared with about this precision.
const GOOD_ENOUGH: u64 = 1_000;
/// Larger differences are stepped: a slew takes 2000 times as long as the difference.
const MAX_SLEW: u64 = 200_000;

/// A question for the guest's time and its answer. All times are in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The host's time when it asked.
    pub asked: i64,
    /// The guest's time in its answer.
    pub guest: i64,
    /// The host's time when the answer came.
    pub answered: i64,
}

impl Sample {
    fn round_trip(&self) -> i64 {
        self.answered.saturating_sub(self.asked)
    }

    /// Returns how far the guest's clock is behind.
    fn offset(&self) -> i64 {
        self.asked.saturating_add(self.round_trip() / 2).saturating_sub(self.guest)
    }
}

/// Why a clock is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occasion {
    /// The guest has just become ready: nobody has seen its clock yet.
    Boot,
    /// The host's clock was set, or the host slept.
    Jump,
    /// The regular comparison.
    Regular,
}

/// Returns the correction that these answers call for, or `None` if the clock is right or the answers say nothing.
///
/// The host's clock may have been set between question and answer. Such an answer has a negative round trip and does
/// not count.
pub fn correction(samples: &[Sample], occasion: Occasion) -> Option<Correction> {
    let usable = samples.iter().filter(|sample| sample.round_trip() >= 0);
    let best = usable.min_by_key(|sample| sample.round_trip())?;
    let (offset_usec, error) = (best.offset(), best.round_trip().unsigned_abs() / 2);
    if offset_usec.unsigned_abs() <= error.max(GOOD_ENOUGH) {
        return None;
    }
    let is_small = offset_usec.unsigned_abs() <= MAX_SLEW;
    let pace = if occasion == Occasion::Regular && is_small { Pace::Slew } else { Pace::Step };
    Some(Correction { offset_usec, pace })
}

#[cfg(test)]
mod tests {
    use Occasion::{Boot, Jump, Regular};

    use super::*;

    const NOW: i64 = 1_700_000_000_000_000;

    /// Returns the answer of a guest that is behind by `lacks` and took `round_trip` to answer.
    fn sample(lacks: i64, round_trip: i64) -> Sample {
        Sample { asked: NOW, guest: NOW + round_trip / 2 - lacks, answered: NOW + round_trip }
    }

    #[track_caller]
    fn check(samples: &[Sample], occasion: Occasion, expect: Option<(i64, Pace)>) {
        let expect = expect.map(|(offset_usec, pace)| Correction { offset_usec, pace });
        assert_eq!(correction(samples, occasion), expect);
    }

    #[test]
    fn small_differences_are_slewed_and_large_ones_stepped() {
        for (lacks, occasion, expect) in [
            (0, Regular, None),
            (900, Regular, None),
            (-900, Boot, None),
            (30_000, Regular, Some(Pace::Slew)),
            (-30_000, Regular, Some(Pace::Slew)),
            (300_000, Regular, Some(Pace::Step)),
            (-300_000, Regular, Some(Pace::Step)),
            (30_000, Boot, Some(Pace::Step)),
            (30_000, Jump, Some(Pace::Step)),
            (86_400_000_000, Jump, Some(Pace::Step)),
        ] {
            check(&[sample(lacks, 200)], occasion, expect.map(|pace| (lacks, pace)));
        }
    }

    #[test]
    fn the_fastest_answer_is_believed_and_what_it_leaves_unknown_is_not_corrected() {
        check(&[sample(70_000, 90_000), sample(5_000, 400)], Boot, Some((5_000, Pace::Step)));
        check(&[sample(5_000, 12_000)], Boot, None);
        check(&[sample(5_000, 9_000)], Boot, Some((5_000, Pace::Step)));
    }

    #[test]
    fn without_a_usable_answer_nothing_is_done() {
        check(&[], Boot, None);
        check(&[Sample { asked: NOW, guest: 0, answered: NOW - 1 }], Boot, None);
    }

    #[test]
    fn invented_times_overflow_nothing() {
        for guest in [i64::MIN, i64::MAX, 0] {
            for (asked, answered) in [(i64::MIN, i64::MAX), (0, i64::MAX), (NOW, NOW)] {
                let _ = correction(&[Sample { asked, guest, answered }], Regular);
            }
        }
    }
}
