//! Suggestions for mistyped names.

/// Returns the name that is most similar to what was typed, or `None` if all are too different.
pub fn closest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One letter of three may be wrong.
    let limit = typed.chars().count().div_ceil(3);
    let distances = names.into_iter().map(|name| (distance(typed, name), name));
    distances
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Returns how many letters have to be added, removed, changed or swapped with the next to turn one word into the
/// other.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut before = vec![0; other.len() + 1];
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut next = vec![i + 1; other.len() + 1];
        for (j, b) in other.iter().enumerate() {
            let change = row[j] + usize::from(a != b);
            next[j + 1] = change.min(next[j] + 1).min(row[j + 1] + 1);
            if i > 0 && j > 0 && one[i - 1] == *b && other[j - 1] == *a {
                next[j + 1] = next[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut row, next);
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_changed_letters() {
        for (one, other, expect) in [
            ("", "", 0),
            ("a", "", 1),
            ("web", "wbe", 1),
            ("web", "wep", 1),
            ("kitten", "sitting", 3),
            ("ä", "a", 1),
        ] {
            assert_eq!(distance(one, other), expect, "{one} {other}");
            assert_eq!(distance(other, one), expect, "{other} {one}");
        }
    }

    #[test]
    fn different_words_are_not_suggested() {
        let names = ["web", "worker", "calm-otter"];
        assert_eq!(closest("wbe", names), Some("web"));
        assert_eq!(closest("clam-oter", names), Some("calm-otter"));
        assert_eq!(closest("db", names), None);
        assert_eq!(closest("", names), None);
    }
}
