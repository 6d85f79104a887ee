//! A block of a text file that banger manages, between two marker lines. The other lines are the user's and stay
//! unchanged.

/// The lines around a block.
#[derive(Debug, Clone, Copy)]
pub struct Markers {
    /// The first line, without its end.
    pub begin: &'static str,
    /// The last line, without its end.
    pub end: &'static str,
}

/// Where in the file the block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Before all other lines.
    Top,
    /// After all other lines.
    Bottom,
}

impl Markers {
    /// Returns the text with these lines as the block, instead of the block of an earlier boot. Without lines, there
    /// is no block.
    pub fn put(self, text: &str, position: Position, lines: &str) -> String {
        let rest = self.without(text);
        if lines.is_empty() {
            return rest;
        }
        let block = format!("{}\n{lines}{}\n", self.begin, self.end);
        match position {
            Position::Top => block + &rest,
            Position::Bottom if rest.is_empty() || rest.ends_with('\n') => rest + &block,
            Position::Bottom => format!("{rest}\n{block}"),
        }
    }

    fn without(self, text: &str) -> String {
        let (begin, end) = (format!("{}\n", self.begin), format!("{}\n", self.end));
        let mut rest = text.to_owned();
        // Without the end marker, the user's lines cannot be distinguished from banger's.
        while let Some((before, Some((_, after)))) =
            rest.split_once(&begin).map(|(before, behind)| (before, behind.split_once(&end)))
        {
            rest = format!("{before}{after}");
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKERS: Markers = Markers { begin: "# begin", end: "# end" };

    #[test]
    fn the_users_lines_stay() {
        let first = MARKERS.put("mine without an end", Position::Bottom, "a\n");
        assert_eq!(first, "mine without an end\n# begin\na\n# end\n");
        let more = format!("{first}later\n");
        assert_eq!(
            MARKERS.put(&more, Position::Bottom, "b\n"),
            "mine without an end\nlater\n# begin\nb\n# end\n"
        );
        assert_eq!(
            MARKERS.put(&more, Position::Top, "b\n"),
            "# begin\nb\n# end\nmine without an end\nlater\n"
        );
        assert_eq!(MARKERS.put(&more, Position::Bottom, ""), "mine without an end\nlater\n");
        assert_eq!(MARKERS.put("untouched", Position::Bottom, ""), "untouched");
        let endless = "# begin\nmine\n";
        assert_eq!(MARKERS.put(endless, Position::Bottom, ""), endless);
    }

    #[test]
    fn updating_a_block_twice_changes_nothing() {
        for position in [Position::Top, Position::Bottom] {
            let once = MARKERS.put("x\n", position, "a\n");
            assert_eq!(MARKERS.put(&once, position, "a\n"), once);
        }
    }
}
