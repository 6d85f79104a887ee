//! Words and variables of Dockerfiles.

use std::collections::BTreeMap;

/// The variables of a build, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: String) {
        self.0.insert(name.to_owned(), value);
    }

    /// Returns a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// Returns whether a text can be the name of a variable.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Splits a text at spaces that are neither quoted nor escaped. The words keep their quotes.
pub fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                word.push(c);
                word.extend(chars.next());
                continue;
            }
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if let Some(quote) = quote {
        return Err(format!("a quotation mark ({quote}) has no end"));
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// Limit on a text with its variables, in bytes. A file that uses variables in variables can ask for any length.
const MAX_EXPANDED: usize = 64 << 10;

/// Removes quotes and escapes, and replaces variables: `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+other}`.
pub fn expand(template: &str, variables: &Variables) -> Result<String, String> {
    let (mut text, mut quote) = (String::new(), None);
    let mut rest = template;
    while let Some(c) = rest.chars().next() {
        if text.len() > MAX_EXPANDED {
            return Err(format!("with its variables it is longer than {} KiB", MAX_EXPANDED >> 10));
        }
        rest = &rest[c.len_utf8()..];
        match (c, quote) {
            ('\'', None) => quote = Some('\''),
            ('"', None) => quote = Some('"'),
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => match rest.chars().next() {
                // In double quotes, other backslashes stay.
                Some(next) if quote.is_none() || matches!(next, '"' | '$' | '\\') => {
                    text.push(next);
                    rest = &rest[next.len_utf8()..];
                }
                _ => text.push('\\'),
            },
            ('$', None | Some('"')) => rest = variable(rest, variables, &mut text)?,
            _ => text.push(c),
        }
    }
    Ok(text)
}

/// Replaces the variable at the beginning of `rest`. Returns what follows it.
fn variable<'a>(rest: &'a str, variables: &Variables, text: &mut String) -> Result<&'a str, String> {
    if let Some(braced) = rest.strip_prefix('{') {
        let (inner, after) = braced.split_once('}').ok_or("a variable in ${…} has no end")?;
        let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
        let (name, how) = inner.split_at(end);
        let value = variables.get(name).filter(|value| !value.is_empty());
        match (is_name(name), how) {
            (true, "") => text.push_str(value.unwrap_or_default()),
            (true, how) if how.starts_with(":-") => match value {
                Some(value) => text.push_str(value),
                None => text.push_str(&expand(&how[2..], variables)?),
            },
            (true, how) if how.starts_with(":+") => {
                if value.is_some() {
                    text.push_str(&expand(&how[2..], variables)?);
                }
            }
            _ => return Err(format!("${{{inner}}} is not supported; write it out")),
        }
        return Ok(after);
    }
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    match is_name(name) {
        true => {
            text.push_str(variables.get(name).unwrap_or_default());
            Ok(after)
        }
        false => {
            text.push('$');
            Ok(rest)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn variables_quotes_and_escapes() {
        let mut variables = Variables::default();
        variables.set("A", "1".to_owned());
        variables.set("EMPTY", String::new());
        for (template, expect) in [
            ("plain", "plain"),
            ("$A-${A}x$Ab", "1-1x"),
            ("'$A' \"$A\" \\$A", "$A 1 $A"),
            ("${B:-two}/${A:-no}/${EMPTY:-$A}", "two/1/1"),
            ("${A:+yes}${B:+no}", "yes"),
            ("a\\ b \"c\\d\\\"\"", "a b c\\d\""),
            ("$ 5$", "$ 5$"),
            ("${A%x}", "error"),
            ("${A", "error"),
        ] {
            match expand(template, &variables) {
                Ok(text) => assert_eq!(text, expect, "{template}"),
                Err(_) => assert_eq!(expect, "error", "{template}"),
            }
        }
    }

    #[test]
    fn words_keep_their_quotes() {
        assert_eq!(words(" a 'b c'  d\\ e \"f \\\" g\" ").unwrap(), ["a", "'b c'", "d\\ e", "\"f \\\" g\""]);
        assert_eq!(words("").unwrap(), [] as [&str; 0]);
        assert!(words("a 'b").is_err());
    }
}
