//! Suggestions for mistyped names.

/// Returns the name that is most similar to what was typed, or `None` if all are too different.
pub fn closest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One letter of three may be wrong.
    let limit = typed.chars().count().div_ceil(3);
    let distances = names.into_iter().map(|name| (strsim::osa_distance(typed, name), name));
    distances
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_words_are_not_suggested() {
        let names = ["web", "worker", "calm-otter"];
        assert_eq!(closest("wbe", names), Some("web"));
        assert_eq!(closest("clam-oter", names), Some("calm-otter"));
        // Letters count, not bytes; swapped ones count once.
        assert_eq!(closest("größe", ["grösse", "gröse"]), Some("gröse"));
        assert_eq!(closest("ba", ["ab"]), Some("ab"));
        assert_eq!(closest("db", names), None);
        assert_eq!(closest("", names), None);
    }
}
