//! The part of a text file that banger owns, between two marker lines. The rest is the user's and stays as it
//! is.

/// The lines around a part.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    /// The first line, without its end.
    pub begin: &'static str,
    /// The last line, without its end.
    pub end: &'static str,
}

/// Where in the file the part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before all else.
    Top,
    /// Behind all else.
    Bottom,
}

impl Marks {
    /// The text with these lines as our part, instead of what an earlier boot has written; without lines,
    /// there is no such part.
    pub fn put(self, text: &str, place: Place, lines: &str) -> String {
        let rest = self.without(text);
        if lines.is_empty() {
            return rest;
        }
        let part = format!("{}\n{lines}{}\n", self.begin, self.end);
        match place {
            Place::Top => part + &rest,
            Place::Bottom if rest.is_empty() || rest.ends_with('\n') => rest + &part,
            Place::Bottom => format!("{rest}\n{part}"),
        }
    }

    fn without(self, text: &str) -> String {
        let (begin, end) = (format!("{}\n", self.begin), format!("{}\n", self.end));
        let mut rest = text.to_owned();
        // Without the end marker, the user's lines cannot be told from banger's.
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

    const MARKS: Marks = Marks { begin: "# begin", end: "# end" };

    #[test]
    fn what_is_the_users_stays() {
        let first = MARKS.put("mine without an end", Place::Bottom, "a\n");
        assert_eq!(first, "mine without an end\n# begin\na\n# end\n");
        let more = format!("{first}later\n");
        assert_eq!(MARKS.put(&more, Place::Bottom, "b\n"), "mine without an end\nlater\n# begin\nb\n# end\n");
        assert_eq!(MARKS.put(&more, Place::Top, "b\n"), "# begin\nb\n# end\nmine without an end\nlater\n");
        assert_eq!(MARKS.put(&more, Place::Bottom, ""), "mine without an end\nlater\n");
        assert_eq!(MARKS.put("untouched", Place::Bottom, ""), "untouched");
        let endless = "# begin\nmine\n";
        assert_eq!(MARKS.put(endless, Place::Bottom, ""), endless);
    }

    #[test]
    fn a_part_that_is_put_again_is_the_same() {
        for place in [Place::Top, Place::Bottom] {
            let once = MARKS.put("x\n", place, "a\n");
            assert_eq!(MARKS.put(&once, place, "a\n"), once);
        }
    }
}
