//! Counts in messages, which agree with their noun.

/// Formats a number and a noun: `1 file`, `2 files`, `0 entries`.
pub fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    if count == 1 { format!("1 {noun}") } else { format!("{count} {}", plural(noun)) }
}

/// Returns `is` or `are`.
pub fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// Returns the plural of a regular noun.
fn plural(noun: &str) -> String {
    let consonant = |letter: char| !"aeiou".contains(letter);
    match noun.strip_suffix('y') {
        Some(stem) if stem.ends_with(consonant) => format!("{stem}ies"),
        _ if noun.ends_with(['s', 'x']) || noun.ends_with("ch") => format!("{noun}es"),
        _ => format!("{noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_agree_with_their_noun() {
        for (count, noun, expect) in [
            (0u64, "file", "0 files"),
            (1, "file", "1 file"),
            (2, "file", "2 files"),
            (2, "entry", "2 entries"),
            (2, "day", "2 days"),
            (2, "process", "2 processes"),
            (1, "sandbox", "1 sandbox"),
            (2, "sandbox", "2 sandboxes"),
            (2, "patch", "2 patches"),
            (2, "more note", "2 more notes"),
        ] {
            assert_eq!(counted(count, noun), expect);
        }
        assert_eq!((is_or_are(0), is_or_are(1), is_or_are(2)), ("are", "is", "are"));
    }
}
