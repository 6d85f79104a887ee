//! Draws a recording as an SVG that plays once and then shows the last screen. Programs that do not play it show the
//! last screen at once.
//!
//! Only what changes is in the file: each state of a line, with the times when it appears and disappears.

use std::fmt::Write;

use vt100::{Cell, Color, Screen};

use super::Recording;

/// How a line at which a command is typed begins.
const PROMPT: &str = "$";
/// How long a command may take in the picture, in seconds. A longer one is sped up.
const LONGEST: f64 = 3.0;
/// How long the result of a command stays before the next one.
const HOLD: f64 = 1.2;
/// The shortest time between two states: a spinner is not worth more of them.
const STEP: f64 = 0.25;

/// The size of a character and the margin, in pixels.
const WIDTH: f64 = 8.4;
const HEIGHT: f64 = 20.0;
const MARGIN: f64 = 16.0;

/// The colours of a terminal, on a background that stands out from light and dark pages.
const BACKGROUND: &str = "#161b22";
const FOREGROUND: &str = "#e6edf3";
const PALETTE: [&str; 16] = [
    "#6e7681", "#ff7b72", "#7ee787", "#e3b341", "#79c0ff", "#d2a8ff", "#76e3ea", "#e6edf3", "#8b949e",
    "#ffa198", "#7ee787", "#f2cc60", "#a5d6ff", "#e2c5ff", "#b3f0ff", "#ffffff",
];

/// A piece of a line in one style.
#[derive(Clone, PartialEq)]
struct Piece {
    column: u16,
    /// The number of columns.
    length: u16,
    text: String,
    style: Style,
}

#[derive(Clone, Copy, PartialEq)]
struct Style {
    color: Color,
    bold: bool,
    dim: bool,
}

type Line = Vec<Piece>;

/// A state of the screen, and the seconds at which it appears in the picture.
struct Frame {
    time: f64,
    lines: Vec<Line>,
}

/// Returns the picture.
pub fn draw(recording: &Recording) -> String {
    let frames = frames(recording);
    let used =
        |frame: &Frame| frame.lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
    let rows = frames.iter().map(used).max().unwrap_or(0);
    let width = f64::from(recording.columns.get()) * WIDTH + 2.0 * MARGIN;
    let height = rows as f64 * HEIGHT + 2.0 * MARGIN;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" role="img" xml:space="preserve">
<title>A terminal with commands of banger</title>
<style>
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:{FOREGROUND};white-space:pre}}
.b{{font-weight:bold}}.d{{opacity:.7}}
.s{{animation:s 1ms both}}.h{{visibility:hidden;animation:s 1ms both,h 1ms forwards}}
@keyframes s{{from{{visibility:hidden}}to{{visibility:visible}}}}
@keyframes h{{from{{visibility:visible}}to{{visibility:hidden}}}}
@media(prefers-reduced-motion:reduce){{.s,.h{{animation:none}}}}
</style>
<rect x=".5" y=".5" width="{:.0}" height="{:.0}" rx="8" fill="{BACKGROUND}" stroke="#8b949e"/>
"##,
        width - 1.0,
        height - 1.0
    );
    for row in 0..rows {
        draw_row(&mut svg, &frames, row);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Draws all states of a row.
fn draw_row(svg: &mut String, frames: &[Frame], row: usize) {
    let empty = Line::new();
    let line = |frame: &Frame| frame.lines.get(row).cloned().unwrap_or_default();
    let mut begin = 0;
    while begin < frames.len() {
        let state = line(&frames[begin]);
        let end = frames[begin..].iter().position(|frame| line(frame) != state).map(|count| begin + count);
        if state != empty {
            let appears = frames[begin].time;
            // Writing to a string does not fail.
            let _ = match end.map(|end| frames[end].time) {
                None => write!(svg, r#"<g class="s" style="animation-delay:{appears:.2}s">"#),
                Some(disappears) => {
                    write!(svg, r#"<g class="h" style="animation-delay:{appears:.2}s,{disappears:.2}s">"#)
                }
            };
            for piece in &state {
                draw_piece(svg, piece, row);
            }
            svg.push_str("</g>\n");
        }
        begin = end.unwrap_or(frames.len());
    }
}

fn draw_piece(svg: &mut String, piece: &Piece, row: usize) {
    let x = MARGIN + f64::from(piece.column) * WIDTH;
    let y = MARGIN + row as f64 * HEIGHT + 15.0;
    // Any font fits into the columns.
    let length = f64::from(piece.length) * WIDTH;
    let Style { color, bold, dim } = piece.style;
    let class = match (bold, dim) {
        (false, false) => "",
        (true, false) => r#" class="b""#,
        (false, true) => r#" class="d""#,
        (true, true) => r#" class="b d""#,
    };
    let fill = match color {
        Color::Idx(index) if usize::from(index) < PALETTE.len() => {
            format!(r#" style="fill:{}""#, PALETTE[usize::from(index)])
        }
        Color::Rgb(red, green, blue) => format!(r#" style="fill:#{red:02x}{green:02x}{blue:02x}""#),
        _ => String::new(),
    };
    let text = piece.text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.0}" textLength="{length:.1}"{class}{fill}>{text}</text>"#);
}

/// Returns the states of the screen that the picture shows, with their times in it.
fn frames(recording: &Recording) -> Vec<Frame> {
    let mut parser = vt100::Parser::new(recording.rows, recording.columns, 0);
    let mut raw: Vec<(usize, Frame)> = Vec::new();
    let mut prompts = 0;
    for (time, written) in &recording.events {
        parser.process(written.as_bytes());
        let lines = lines(parser.screen());
        let is_prompt = |line: &&Line| {
            let first = line.first().and_then(|piece| piece.text.split(' ').next());
            first == Some(PROMPT)
        };
        // A command begins where its prompt appears.
        prompts = prompts.max(lines.iter().filter(is_prompt).count());
        raw.push((prompts, Frame { time: *time, lines }));
    }
    let mut frames: Vec<Frame> = Vec::new();
    let mut now = 0.0;
    for command in raw.chunk_by(|(one, _), (other, _)| one == other) {
        let begin = command.first().map_or(0.0, |(_, frame)| frame.time);
        let took = command.last().map_or(0.0, |(_, frame)| frame.time) - begin;
        let speed = (took / LONGEST).max(1.0);
        for (number, (_, frame)) in command.iter().enumerate() {
            let time = now + (frame.time - begin) / speed;
            let is_soon = number > 0 && frames.last().is_some_and(|last| time - last.time < STEP);
            match frames.last_mut().filter(|_| is_soon) {
                // Only the latest state of each step is kept.
                Some(last) => last.lines.clone_from(&frame.lines),
                None => frames.push(Frame { time, lines: frame.lines.clone() }),
            }
        }
        now += took / speed + HOLD;
    }
    frames
}

fn lines(screen: &Screen) -> Vec<Line> {
    let (rows, columns) = screen.size();
    (0..rows.get()).map(|row| line(screen, row, columns.get())).collect()
}

fn line(screen: &Screen, row: u16, columns: u16) -> Line {
    let mut line = Line::new();
    for column in 0..columns {
        let Some(cell) = screen.cell(row, column).filter(|cell| !cell.is_wide_continuation()) else {
            continue;
        };
        let style = style(cell);
        let text = if cell.has_contents() { cell.contents() } else { " " };
        let length = if cell.is_wide() { 2 } else { 1 };
        match line.last_mut() {
            // Blanks have any style.
            Some(last) if last.style == style || text == " " => {
                last.text.push_str(text);
                last.length += length;
            }
            _ => line.push(Piece { column, length, text: text.to_owned(), style }),
        }
    }
    // Blanks at the end of a piece are not drawn.
    for piece in &mut line {
        let kept = piece.text.trim_end_matches(' ').len();
        piece.length -= u16::try_from(piece.text.len() - kept).unwrap_or(0);
        piece.text.truncate(kept);
    }
    line.retain(|piece| !piece.text.is_empty());
    line
}

fn style(cell: &Cell) -> Style {
    Style { color: cell.fgcolor(), bold: cell.bold(), dim: cell.dim() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::num::NonZeroU16;

    use super::*;

    fn recording(events: &[(f64, &str)]) -> Recording {
        let events = events.iter().map(|(time, text)| (*time, (*text).to_owned())).collect();
        Recording { columns: NonZeroU16::new(40).unwrap(), rows: NonZeroU16::new(10).unwrap(), events }
    }

    #[test]
    fn a_line_is_drawn_in_its_columns_and_styles() {
        let svg = draw(&recording(&[(0.0, "a  \u{1b}[1;32m<b> & c\u{1b}[0m\r\n\r\nd")]));
        assert!(svg.contains(r#"<text x="16.0" y="31" textLength="8.4">a</text>"#), "{svg}");
        let bold = r##"<text x="41.2" y="31" textLength="58.8" class="b" style="fill:#7ee787">&lt;b&gt; &amp; c</text>"##;
        assert!(svg.contains(bold), "{svg}");
        // Three rows are used.
        assert!(svg.contains(r#"viewBox="0 0 368 92""#), "{svg}");
    }

    #[test]
    fn what_disappears_is_hidden_where_nothing_is_animated() {
        let svg = draw(&recording(&[(0.0, "$ go\r\nwait"), (1.0, "\rdone"), (2.0, "\r\n$ ")]));
        let classes: Vec<(&str, &str)> = svg
            .lines()
            .filter_map(|line| Some((line.strip_prefix("<g class=\"")?.get(..1)?, line.split('>').nth(2)?)))
            .map(|(class, text)| (class, text.trim_end_matches("</text")))
            .collect();
        // The same number of letters is overwritten.
        assert_eq!(classes, [("s", "$ go"), ("h", "wait"), ("s", "done"), ("s", "$")]);
        assert!(svg.contains(r#"style="animation-delay:0.00s,1.00s""#), "{svg}");
        // The next prompt comes after the result has been seen.
        assert!(svg.contains(r#"style="animation-delay:2.20s""#), "{svg}");
    }

    #[test]
    fn a_long_wait_is_short_and_a_spinner_costs_little() {
        let mut events = vec![(0.0, "$ go\r\n".to_owned())];
        events.extend((1..600).map(|tick| (f64::from(tick) / 10.0, format!("\r{}", tick % 7))));
        events.push((60.0, "\rdone\r\n".to_owned()));
        let recording = Recording { events, ..recording(&[]) };
        let svg = draw(&recording);
        assert!(svg.contains(">done</text>"), "{svg}");
        let states = svg.matches("<g class=").count();
        assert!((5..=15).contains(&states), "{states} states");
        let last = frames(&recording).last().unwrap().time;
        assert!(last <= LONGEST, "{last} s");
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let svg = draw(&recording(&[(0.0, "text")]));
        assert_eq!(svg.matches("http").count(), 1, "only the name of the format: {svg}");
        assert!(!svg.contains("url(") && !svg.contains("@import") && !svg.contains("href"), "{svg}");
    }
}
