//! JSON with comments, as files for editors have it: made plain JSON, with everything on the line where it was.

/// The text without comments, and without commas that nothing follows.
pub fn plain(text: &str) -> String {
    without_commas(&without_comments(text))
}

/// Where in a text we are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    Text,
    /// Behind a backslash in a text.
    Escaped,
    Line,
    Block,
}

fn without_comments(text: &str) -> String {
    let (mut plain, mut place) = (String::with_capacity(text.len()), Place::Outside);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let next = letters.peek().copied();
        match (place, letter, next) {
            (Place::Outside, '/', Some(kind @ ('/' | '*'))) => {
                letters.next();
                place = if kind == '/' { Place::Line } else { Place::Block };
            }
            (Place::Line, '\n', _) => {
                plain.push('\n');
                place = Place::Outside;
            }
            (Place::Block, '*', Some('/')) => {
                letters.next();
                plain.push(' ');
                place = Place::Outside;
            }
            (Place::Line | Place::Block, letter, _) => {
                if letter == '\n' {
                    plain.push('\n');
                }
            }
            (Place::Outside | Place::Text | Place::Escaped, letter, _) => {
                plain.push(letter);
                place = behind(place, letter);
            }
        }
    }
    plain
}

/// Where a letter leads that is no part of a comment.
fn behind(place: Place, letter: char) -> Place {
    match (place, letter) {
        (Place::Outside, '"') | (Place::Escaped, _) => Place::Text,
        (Place::Text, '"') => Place::Outside,
        (Place::Text, '\\') => Place::Escaped,
        (place, _) => place,
    }
}

fn without_commas(text: &str) -> String {
    let (mut plain, mut place) = (String::with_capacity(text.len()), Place::Outside);
    for (index, letter) in text.char_indices() {
        let last = place == Place::Outside
            && letter == ','
            && text.get(index + 1..).is_some_and(|rest| rest.trim_start().starts_with(['}', ']']));
        if !last {
            plain.push(letter);
        }
        place = behind(place, letter);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_last_commas_go_and_texts_stay() {
        for (text, expect) in [
            ("{}", "{}"),
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
