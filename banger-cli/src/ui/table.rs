//! Tables without lines, for people and for `cut`.

use comfy_table::{Cell, Table as Comfy, presets};

use crate::ui::sanitize;

/// A table.
#[derive(Debug)]
pub struct Table(Comfy);

impl Table {
    /// Creates a table with these headings.
    pub fn new<const COLUMNS: usize>(headings: [&str; COLUMNS]) -> Self {
        let mut table = Comfy::new();
        table.load_style(presets::NOTHING);
        table.set_header(headings.map(Cell::new));
        Self(table)
    }

    /// Creates a table with two columns and no headings.
    pub fn pairs() -> Self {
        let mut table = Comfy::new();
        table.load_style(presets::NOTHING);
        Self(table)
    }

    /// Adds a row. Empty cells become a hyphen, so that the columns can be counted.
    pub fn row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        self.0.add_row(cells.map(|text| match sanitize::line(&text) {
            text if text.is_empty() => Cell::new("-"),
            text => Cell::new(text),
        }));
    }

    /// Returns the lines of the table, each with its line feed.
    pub fn text(mut self) -> String {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text: String = self.0.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        if text.trim().is_empty() {
            text.clear();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_blanks() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["calm-otter".into(), "running".into()]);
        table.row(["x".into(), String::new()]);
        assert_eq!(table.text(), "NAME        STATE\ncalm-otter  running\nx           -\n");
    }

    #[test]
    fn wide_letters_take_two_columns_and_combining_ones_none() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["日本".into(), "running".into()]);
        table.row(["e\u{301}te\u{301}".into(), "x".into()]);
        assert_eq!(table.text(), "NAME  STATE\n日本  running\ne\u{301}te\u{301}   x\n");
    }

    #[test]
    fn a_cell_is_always_one_line() {
        let mut table = Table::pairs();
        table.row(["source".into(), "a\nb\x1b[31m".into()]);
        assert_eq!(table.text(), "source  a b\n");
    }
}
