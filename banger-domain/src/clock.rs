//! How far a guest's clock is from the host's, and what is done about it.
//!
//! A guest counts on from the time that its boot was described with, and its counter is only as good as the
//! kernel's guess of how fast it counts. So the host compares: it asks for the time several times, and believes
//! the answer that took the least, as NTP does (RFC 5905, section 10). What is left unknown is half of that
//! answer's round trip.

use banger_proto::guest::message::{Correction, Pace};

/// Less than this is not corrected: files are compared by times of about this precision.
const GOOD_ENOUGH: u64 = 1_000;
/// More than this is not worth the wait of a slew, which takes 2000 times as long.
const MAX_SLEW: u64 = 200_000;

/// One question for the time. All in microseconds since the Unix epoch.
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

    /// What the guest's clock lacks.
    fn offset(&self) -> i64 {
        self.asked.saturating_add(self.round_trip() / 2).saturating_sub(self.guest)
    }
}

/// When a clock is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occasion {
    /// The guest has just become ready: nobody has seen its clock yet.
    Boot,
    /// The host's clock was set, or the host slept.
    Jump,
    /// Some time has passed.
    Regular,
}

/// The correction that these answers call for; `None` where the clock is right, or nothing can be said. The host's
/// clock may have been set between question and answer: such an answer has no round trip and does not count.
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

    /// An answer of a guest that lacks so much, which took so long.
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
    fn what_a_guest_invents_overflows_nothing() {
        for guest in [i64::MIN, i64::MAX, 0] {
            for (asked, answered) in [(i64::MIN, i64::MAX), (0, i64::MAX), (NOW, NOW)] {
                let _ = correction(&[Sample { asked, guest, answered }], Regular);
            }
        }
    }
}
