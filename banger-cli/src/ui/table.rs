//! Tables without lines, for people and for `cut`.
//!
//! In a terminal that is too narrow, a table drops its least important columns, in a fixed order, and then shortens what
//! is left. A shortened cell ends in [`MARK`]. In a pipe a table always has all columns.

use comfy_table::{Cell, Table as Comfy, presets};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::ui::sanitize;

/// The end of a text that was shortened.
pub const MARK: char = '…';
/// Blanks between two columns.
const GAP: usize = 2;
/// An elastic column is not shortened below this width before other columns are dropped.
const LEAST_ELASTIC: usize = 12;
/// No column is shortened below this width.
const LEAST: usize = 4;

/// What may become of a column in a narrow terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fit {
    /// When it is dropped: the highest number first; 0 for never.
    pub drop: u8,
    /// Whether it is shortened before any column is dropped.
    pub elastic: bool,
}

impl Fit {
    /// It stays.
    pub const KEEP: Self = Self { drop: 0, elastic: false };
    /// It stays, and is shortened first.
    pub const ELASTIC: Self = Self { drop: 0, elastic: true };

    /// It is dropped when all with a higher number are.
    pub const fn dropped(drop: u8) -> Self {
        Self { drop, elastic: false }
    }
}

/// A table.
#[derive(Debug)]
pub struct Table {
    headings: Vec<(String, Fit)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table with these headings.
    pub fn new<const COLUMNS: usize>(headings: [&str; COLUMNS]) -> Self {
        Self::of(headings.map(|heading| (heading.to_owned(), Fit::default())).into())
    }

    /// Creates a table with these headings, and what may become of each column.
    pub fn of(headings: Vec<(String, Fit)>) -> Self {
        Self { headings, rows: Vec::new() }
    }

    /// Says what may become of each column in a narrow terminal.
    pub fn with_fits<const COLUMNS: usize>(mut self, fits: [Fit; COLUMNS]) -> Self {
        self.headings.iter_mut().zip(fits).for_each(|((_, of_column), fit)| *of_column = fit);
        self
    }

    /// Creates a table with two columns and no headings.
    pub fn pairs() -> Self {
        Self::of(Vec::new())
    }

    /// Adds a row. Empty cells become a hyphen, so that the columns can be counted.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cell = |text: String| match sanitize::line(&text) {
            text if text.is_empty() => "-".to_owned(),
            text => text,
        };
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    /// Returns the lines of the table, each with its line feed.
    pub fn text(self) -> String {
        self.fitted(None)
    }

    /// Returns the lines, none of which is wider than this.
    pub fn fitted(mut self, width: Option<usize>) -> String {
        if let Some(room) = width.filter(|_| !self.headings.is_empty()) {
            self.fit(room);
        }
        let mut table = Comfy::new();
        table.load_style(presets::NOTHING);
        if !self.headings.is_empty() {
            table.set_header(self.headings.iter().map(|(heading, _)| Cell::new(heading)));
        }
        for row in self.rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, GAP as u16));
        }
        let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        if text.trim().is_empty() {
            text.clear();
        }
        text
    }

    /// Drops and shortens columns until the lines fit.
    fn fit(&mut self, room: usize) {
        let of_column = |index: usize| {
            let cells = self.rows.iter().filter_map(move |row| row.get(index));
            cells.map(|cell| cell.width()).max().unwrap_or_default().max(self.headings[index].0.width())
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(of_column).collect();
        let fits: Vec<Fit> = self.headings.iter().map(|(_, fit)| *fit).collect();
        let limits = limits(&widths, &fits, room);
        let shortened = |cells: Vec<String>| {
            let kept = cells.into_iter().zip(&limits);
            kept.filter_map(|(cell, limit)| Some(shorten(&cell, (*limit)?))).collect::<Vec<_>>()
        };
        self.rows = std::mem::take(&mut self.rows).into_iter().map(shortened).collect();
        let headings = std::mem::take(&mut self.headings).into_iter().zip(&limits);
        self.headings =
            headings.filter_map(|((text, fit), limit)| Some((shorten(&text, (*limit)?), fit))).collect();
    }
}

/// Returns the width of each column, so that all of them fit into the room; `None` for a dropped column.
fn limits(widths: &[usize], fits: &[Fit], room: usize) -> Vec<Option<usize>> {
    let least = |index: usize| match fits[index].elastic {
        true => widths[index].min(LEAST_ELASTIC),
        false => widths[index],
    };
    let mut kept: Vec<usize> = (0..widths.len()).collect();
    let gaps = |kept: &[usize]| GAP * kept.len().saturating_sub(1);
    while kept.iter().map(|&index| least(index)).sum::<usize>() + gaps(&kept) > room
        && let Some(&next) =
            kept.iter().filter(|&&index| fits[index].drop > 0).max_by_key(|&&index| fits[index].drop)
    {
        kept.retain(|&index| index != next);
    }
    let mut limits: Vec<Option<usize>> =
        widths.iter().enumerate().map(|(index, width)| kept.contains(&index).then_some(*width)).collect();
    let total: usize = limits.iter().flatten().sum();
    let mut excess = (total + gaps(&kept)).saturating_sub(room);
    // The elastic ones give way first, then the widest.
    kept.sort_by_key(|&index| (!fits[index].elastic, std::cmp::Reverse(widths[index])));
    let floors = [LEAST_ELASTIC, LEAST];
    for floor in floors {
        for &index in kept.iter().filter(|&&index| floor == LEAST || fits[index].elastic) {
            let width = limits[index].unwrap_or_default();
            let less = excess.min(width.saturating_sub(floor));
            limits[index] = Some(width - less);
            excess -= less;
        }
    }
    limits
}

/// Cuts a text to this width, with a mark at the end if something is missing.
pub fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut room = width.saturating_sub(1);
    let fits = |letter: &char| {
        let width = letter.width().unwrap_or_default();
        let fits = width <= room;
        room = room.saturating_sub(width);
        fits
    };
    let start: String = text.chars().take_while(fits).collect();
    format!("{}{MARK}", start.trim_end())
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

    /// A list with a name of this length.
    fn list(name: &str) -> Table {
        let fit = |drop, elastic| Fit { drop, elastic };
        let mut table = Table::of(vec![
            ("ID".into(), fit(3, false)),
            ("NAME".into(), fit(0, false)),
            ("STATE".into(), fit(0, false)),
            ("CREATED".into(), fit(2, false)),
            ("DESCRIPTION".into(), fit(1, true)),
        ]);
        let row = ["0123456789ab", name, "running", "3 minutes ago", "a long description of what it is"];
        table.row(row.map(str::to_owned));
        table
    }

    #[test]
    fn a_table_drops_columns_in_order_and_marks_what_it_shortens() {
        for (width, expect) in [
            (
                None,
                "\
ID            NAME        STATE    CREATED        DESCRIPTION
0123456789ab  calm-otter  running  3 minutes ago  a long description of what it is
",
            ),
            (
                Some(70),
                "\
ID            NAME        STATE    CREATED        DESCRIPTION
0123456789ab  calm-otter  running  3 minutes ago  a long description…
",
            ),
            (
                Some(50),
                "\
NAME        STATE    CREATED        DESCRIPTION
calm-otter  running  3 minutes ago  a long descri…
",
            ),
            (
                Some(40),
                "\
NAME        STATE    DESCRIPTION
calm-otter  running  a long description…
",
            ),
            (Some(20), "NAME        STATE\ncalm-otter  running\n"),
            (Some(15), "NAME    STATE\ncalm-…  running\n"),
        ] {
            assert_eq!(list("calm-otter").fitted(width), expect, "{width:?}");
        }
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_no_name_is_cut_without_a_mark() {
        for name in ["x", "calm-otter", "日本日本日本日本日本日本", &"n".repeat(63)] {
            for width in 10..120 {
                let text = list(name).fitted(Some(width));
                assert!(text.lines().all(|line| line.width() <= width), "{width}\n{text}");
                assert!(text.contains(name) || text.contains(MARK), "{width}\n{text}");
                assert!(text.starts_with("ID") || text.starts_with("NAME"), "{width}\n{text}");
            }
        }
    }

    #[test]
    fn a_shortened_text_keeps_its_width() {
        for (text, width, expect) in
            [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("日本語", 5, "日本…"), ("日本語", 4, "日…"), ("", 0, "")]
        {
            assert_eq!(shorten(text, width), expect, "{text} {width}");
        }
    }
}
