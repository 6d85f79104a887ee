//! Draws figures of benchmarks as an SVG: two bars for each, banger's above the peer's, the longer one as long as the
//! chart is wide.

use std::fmt::Write;

/// What is drawn for a benchmark.
pub struct Row {
    /// The name of the benchmark.
    pub name: String,
    /// What banger took.
    pub ours: Figure,
    /// What its peer took, if it has one.
    pub peer: Option<Figure>,
}

impl Row {
    /// Returns banger's figure divided by its peer's.
    pub fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|peer| self.ours.number / peer.number)
    }
}

/// A measured number.
pub struct Figure {
    /// What was measured.
    pub what: String,
    number: f64,
    unit: &'static str,
}

impl Figure {
    /// Creates a figure in this unit.
    pub fn new(what: &str, number: f64, unit: &'static str) -> Self {
        Self { what: what.to_owned(), number, unit }
    }

    /// Formats the number with three digits and its unit.
    pub fn value(&self) -> String {
        let (number, unit) = match self.unit {
            "ms" if self.number >= 1000.0 => (self.number / 1000.0, "s"),
            unit => (self.number, unit),
        };
        let digits = match number {
            _ if number < 10.0 => 2,
            _ if number < 100.0 => 1,
            _ => 0,
        };
        format!("{number:.digits$} {unit}")
    }
}

// In pixels.
const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
/// Where bars begin, right of the names.
const BARS: f64 = 230.0;
/// The longest bar. Its value and what was measured follow it.
const LONGEST: f64 = 300.0;
const BAR: f64 = 14.0;
const ROW: f64 = 44.0;
const HEADER: f64 = 64.0;
const SCALE: &str = "banger above, its peer below; each pair has a scale of its own";

/// Both colours are readable on light and dark pages.
const STYLE: &str = "text { font: 12px sans-serif; fill: #24292f } .title, .name { font-weight: 600 } \
     .page { fill: #ffffff } .ours { fill: #1f6feb } .peer { fill: #8c959f } \
     @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .page { fill: #161b22 } }";

/// Returns the picture.
pub fn draw(title: &str, rows: &[Row]) -> String {
    let height = HEADER + ROW * rows.len() as f64 + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"28\">{title}</text>\n",
        title = escaped(title)
    );
    add_text(&mut svg, "scale", MARGIN, 46.0, SCALE);
    for (number, row) in rows.iter().enumerate() {
        let top = HEADER + ROW * number as f64;
        let longest = row.peer.as_ref().map_or(row.ours.number, |peer| peer.number.max(row.ours.number));
        add_text(&mut svg, "name", MARGIN, top + BAR - 3.0, &row.name);
        add_bar(&mut svg, "ours", top, &row.ours, longest);
        if let Some(peer) = &row.peer {
            add_bar(&mut svg, "peer", top + BAR + 2.0, peer, longest);
        }
    }
    svg + "</svg>\n"
}

fn add_bar(svg: &mut String, class: &str, top: f64, figure: &Figure, longest: f64) {
    // A figure that is missing has no length.
    let part = if longest > 0.0 { (figure.number / longest).clamp(0.0, 1.0) } else { 0.0 };
    let width = (LONGEST * part).max(1.0);
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{BARS}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"
    );
    let said = format!("{} {}", figure.value(), figure.what);
    add_text(svg, "value", BARS + width + 6.0, top + BAR - 3.0, &said);
}

fn add_text(svg: &mut String, class: &str, x: f64, y: f64, text: &str) {
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y}\">{}</text>", escaped(text));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_a_unit_for_people() {
        for (number, unit, expect) in [
            (0.567, "%", "0.57 %"),
            (2.3, "ms", "2.30 ms"),
            (74.96, "ms", "75.0 ms"),
            (184.2, "ms", "184 ms"),
            (4560.0, "ms", "4.56 s"),
            (10.3, "MiB", "10.3 MiB"),
        ] {
            assert_eq!(Figure::new("", number, unit).value(), expect);
        }
    }

    #[test]
    fn the_longer_bar_of_each_row_has_the_full_length() {
        let row = |ours, peer| Row {
            name: "a < b".into(),
            ours: Figure::new("x", ours, "ms"),
            peer: Some(Figure::new("y", peer, "ms")),
        };
        let svg = draw("t", &[row(1.0, 2.0), row(4.0, 1.0)]);
        let widths: Vec<&str> = svg
            .lines()
            .filter(|line| line.contains("class=\"ours\"") || line.contains("class=\"peer\""))
            .filter_map(|line| line.split(" width=\"").nth(1)?.split('"').next())
            .collect();
        assert_eq!(widths, ["150.0", "300.0", "300.0", "75.0"]);
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
    }
}
