//! The columns of a list: what each shows of a row, and what happens to it in a narrow terminal.
//!
//! A row is the JSON object that `--json` prints, so that columns, sorting and templates all use the same keys.

use std::cmp::Ordering;

use banger_proto::size::Bytes;
use serde_json::Value;

use crate::ui::{age, schema, suggest, table::Fit};

/// How many digits of an id people see.
const SHORT_ID: usize = 12;

/// A list: its verb, which has a schema, and its columns.
#[derive(Debug, Clone, Copy)]
pub struct List {
    /// The verb, such as `vm list`.
    pub verb: &'static str,
    /// The columns, from left to right.
    pub columns: &'static [Column],
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    heading: &'static str,
    key: &'static str,
    show: fn(Cell<'_>) -> String,
    order: fn(Cell<'_>) -> Value,
    fit: Fit,
}

impl Column {
    /// Creates a column that shows the value with this key, and is sorted by it.
    pub const fn new(heading: &'static str, key: &'static str, show: fn(Cell<'_>) -> String) -> Self {
        Self { heading, key, show, order: |cell| cell.value().clone(), fit: Fit { drop: 0, elastic: false } }
    }

    /// Says when a narrow terminal drops it: the highest number first.
    pub const fn drop(mut self, drop: u8) -> Self {
        self.fit.drop = drop;
        self
    }

    /// Says that a narrow terminal may shorten it before it drops any column.
    pub const fn elastic(mut self) -> Self {
        self.fit.elastic = true;
        self
    }

    /// Says what it is sorted by, if that is not the value itself.
    pub const fn by(mut self, order: fn(Cell<'_>) -> Value) -> Self {
        self.order = order;
        self
    }

    /// Returns its name on the command line: the heading in lower case, with `_` between words.
    pub fn name(&self) -> String {
        let words: Vec<&str> =
            self.heading.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
        words.join("_").to_lowercase()
    }
}

/// What a word on the command line selects of a row.
#[derive(Debug, Clone)]
pub enum Field {
    /// What a column shows.
    Column(Column),
    /// The value with this key, and with further keys below it.
    Key(Vec<String>),
}

impl Field {
    /// Returns the heading.
    pub fn heading(&self) -> String {
        match self {
            Field::Column(column) => column.heading.to_owned(),
            Field::Key(keys) => keys.join(" ").replace('_', " ").to_uppercase(),
        }
    }

    /// Returns what may become of it in a narrow terminal.
    pub fn fit(&self) -> Fit {
        match self {
            Field::Column(column) => column.fit,
            Field::Key(_) => Fit::default(),
        }
    }

    /// Returns the text for a row.
    pub fn text(&self, row: &Value, now: u64) -> String {
        match self {
            Field::Column(column) => (column.show)(Cell { row, key: column.key, now }),
            Field::Key(_) => plain(&self.value(row)),
        }
    }

    /// Returns the value by which a row is sorted.
    pub fn value(&self, row: &Value) -> Value {
        match self {
            Field::Column(column) => (column.order)(Cell { row, key: column.key, now: 0 }),
            Field::Key(keys) => {
                keys.iter().try_fold(row, |value, key| value.get(key)).cloned().unwrap_or_default()
            }
        }
    }
}

impl List {
    /// Returns the column with this name.
    pub fn column(&self, word: &str) -> Option<Field> {
        let column = self.columns.iter().find(|column| same(&column.name(), word));
        column.map(|column| Field::Column(*column))
    }

    /// Returns the key with this name, in any spelling: `ImageName` is `image_name`.
    pub fn key(&self, word: &str) -> Option<Field> {
        let mut parts = word.split('.');
        let first = parts.next()?;
        let key = schema::keys(self.verb).into_iter().find(|key| same(key, first))?;
        Some(Field::Key([key].into_iter().chain(parts.map(str::to_owned)).collect()))
    }

    /// Returns what can be selected: the columns, then other keys.
    pub fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.columns.iter().map(Column::name).collect();
        let keys = schema::keys(self.verb).into_iter().filter(|key| !words.contains(key));
        words.extend(keys.collect::<Vec<_>>());
        words
    }

    /// Returns the sentence for a word that selects nothing, and its hint.
    pub fn unknown(&self, word: &str) -> (String, String) {
        let words = self.words();
        let columns: Vec<String> = self.columns.iter().map(Column::name).collect();
        let suggestion = suggest::closest(&word.to_lowercase(), words.iter().map(String::as_str));
        let suggestion = suggestion.map(|word| format!("did you mean {word}? ")).unwrap_or_default();
        let keys = format!("`banger schema {}` shows the keys.", self.verb);
        match columns.is_empty() {
            true => (format!("there is no key {word:?}"), format!("{suggestion}{keys}")),
            false => (
                format!("there is no column or key {word:?}"),
                format!("{suggestion}the columns are {}; {keys}", columns.join(", ")),
            ),
        }
    }
}

/// Compares names without regard to case, `_` and `-`.
fn same(one: &str, other: &str) -> bool {
    let letters = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    letters(one) == letters(other)
}

/// A cell: a row, and the key of its column.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    row: &'a Value,
    key: &'a str,
    now: u64,
}

impl<'a> Cell<'a> {
    /// Returns the value.
    pub fn value(self) -> &'a Value {
        self.of(self.key)
    }

    /// Returns the value of another key of the row.
    pub fn of(self, key: &str) -> &'a Value {
        &self.row[key]
    }

    /// Returns a number of the row; 0 if there is none.
    pub fn number(self, key: &str) -> u64 {
        self.of(key).as_u64().unwrap_or_default()
    }
}

/// Formats any value of a cell.
pub fn text(cell: Cell<'_>) -> String {
    plain(cell.value())
}

/// Formats a number of bytes.
pub fn size(cell: Cell<'_>) -> String {
    cell.value().as_u64().map(|bytes| Bytes(bytes).to_string()).unwrap_or_default()
}

/// Formats a share in percent.
pub fn percent(cell: Cell<'_>) -> String {
    cell.value().as_f64().map(|share| format!("{share:.1} %")).unwrap_or_default()
}

/// Formats how long ago a time was.
pub fn age(cell: Cell<'_>) -> String {
    age::ago(cell.value().as_u64().unwrap_or_default(), cell.now)
}

/// Formats a boolean.
pub fn yes_or_no(cell: Cell<'_>) -> String {
    if cell.value() == &Value::Bool(true) { "yes" } else { "no" }.to_owned()
}

/// Formats the first digits of an id.
pub fn short_id(cell: Cell<'_>) -> String {
    text(cell).chars().take(SHORT_ID).collect()
}

/// Formats a value for people and scripts: texts without quotes, lists and labels with commas.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::Object(fields) => {
            let pairs = fields.iter().map(|(key, value)| format!("{key}={}", plain(value)));
            pairs.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// Compares two values: numbers by size, anything else as text.
pub fn compare(one: &Value, other: &Value) -> Ordering {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one.total_cmp(&other),
        _ => plain(one).cmp(&plain(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_plain_text() {
        for (value, expect) in [
            (json!(null), ""),
            (json!("a b"), "a b"),
            (json!(7), "7"),
            (json!(["a", 1]), "a,1"),
            (json!({"team": "web", "x": ""}), "team=web,x="),
        ] {
            assert_eq!(plain(&value), expect, "{value}");
        }
    }

    #[test]
    fn numbers_are_compared_by_size() {
        assert_eq!(compare(&json!(9), &json!(10)), Ordering::Less);
        assert_eq!(compare(&json!("9"), &json!("10")), Ordering::Greater);
        assert_eq!(compare(&json!(null), &json!("a")), Ordering::Less);
    }
}
