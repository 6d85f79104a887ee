//! Converts JSON with comments to plain JSON, and keeps everything on its line.

/// Returns the text without a byte order mark, comments and trailing commas.
pub fn plain(text: &str) -> String {
    without_commas(&without_comments(text.trim_start_matches('\u{feff}')))
}

/// The position in a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    Outside,
    Text,
    /// After a backslash in a string.
    Escaped,
    Line,
    Block,
}

fn without_comments(text: &str) -> String {
    let (mut plain, mut position) = (String::with_capacity(text.len()), Position::Outside);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let next = letters.peek().copied();
        match (position, letter, next) {
            (Position::Outside, '/', Some(kind @ ('/' | '*'))) => {
                letters.next();
                position = if kind == '/' { Position::Line } else { Position::Block };
            }
            (Position::Line, '\n', _) => {
                plain.push('\n');
                position = Position::Outside;
            }
            (Position::Block, '*', Some('/')) => {
                letters.next();
                plain.push(' ');
                position = Position::Outside;
            }
            (Position::Line | Position::Block, letter, _) => {
                if letter == '\n' {
                    plain.push('\n');
                }
            }
            (Position::Outside | Position::Text | Position::Escaped, letter, _) => {
                plain.push(letter);
                position = advance(position, letter);
            }
        }
    }
    plain
}

/// Returns the position after a character outside of comments.
fn advance(position: Position, letter: char) -> Position {
    match (position, letter) {
        (Position::Outside, '"') | (Position::Escaped, _) => Position::Text,
        (Position::Text, '"') => Position::Outside,
        (Position::Text, '\\') => Position::Escaped,
        (position, _) => position,
    }
}

fn without_commas(text: &str) -> String {
    let (mut plain, mut position) = (String::with_capacity(text.len()), Position::Outside);
    for (index, letter) in text.char_indices() {
        let last = position == Position::Outside
            && letter == ','
            && text.get(index + 1..).is_some_and(|rest| rest.trim_start().starts_with(['}', ']']));
        if !last {
            plain.push(letter);
        }
        position = advance(position, letter);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_trailing_commas_are_removed_outside_of_strings() {
        for (text, expect) in [
            ("{}", "{}"),
            ("\u{feff}{\"a\": \"\u{feff}\"}", "{\"a\": \"\u{feff}\"}"),
            ("{ // a\n}", "{ \n}"),
            ("{ /* a\n b */ }", "{ \n  }"),
            ("[1, 2, ]", "[1, 2 ]"),
            ("{\"a\": 1, // b\n}", "{\"a\": 1 \n}"),
            (
                r#"{"a": "x // y", "b": "/* z */", "c": "q\"//,]"}"#,
                r#"{"a": "x // y", "b": "/* z */", "c": "q\"//,]"}"#,
            ),
            (r#"["\\"/**/, "b"]"#, r#"["\\" , "b"]"#),
            ("// all", ""),
            ("/* open", ""),
            ("/", "/"),
        ] {
            assert_eq!(plain(text), expect, "{text}");
        }
    }
}
