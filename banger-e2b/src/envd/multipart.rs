//! Takes the files out of a form, as clients send them (RFC 7578), without keeping more than a piece in memory.

use bytes::{Bytes, BytesMut};

use crate::http::{Code, Refusal, Result};

/// Limit on the head of a part.
const MAX_HEAD: usize = 16 << 10;
/// Limit on the text that separates parts (RFC 2046).
const MAX_BOUNDARY: usize = 70;

/// What comes out of a form.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// A part begins. It is a file if it has a name.
    Part(Option<String>),
    /// Bytes of the part.
    Data(Bytes),
    /// The part has ended.
    End,
}

/// Where in the form it is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Before the first part.
    Before,
    /// After a boundary.
    Boundary,
    /// In a part.
    Part,
    /// After the last part.
    After,
}

/// A form that is read.
#[derive(Debug)]
pub struct Form {
    boundary: Vec<u8>,
    buffer: BytesMut,
    state: State,
}

impl Form {
    /// Returns the form of a content type.
    pub fn new(content_type: &str) -> Result<Self> {
        let boundary = content_type.split(';').skip(1).find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
        });
        match boundary {
            Some(text) if (1..=MAX_BOUNDARY).contains(&text.len()) => {
                // The first boundary may have no line before it.
                let buffer = BytesMut::from(&b"\r\n"[..]);
                Ok(Self { boundary: format!("\r\n--{text}").into_bytes(), buffer, state: State::Before })
            }
            _ => Err(invalid("has no boundary")),
        }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns what comes next, or nothing until more bytes come.
    pub fn next_item(&mut self) -> Result<Option<Item>> {
        loop {
            match self.state {
                State::Before => match self.find(&self.boundary) {
                    Some(at) => {
                        let _ = self.buffer.split_to(at + self.boundary.len());
                        self.state = State::Boundary;
                    }
                    None if self.buffer.len() > MAX_HEAD => return Err(invalid("begins with no boundary")),
                    None => return Ok(None),
                },
                State::Boundary if self.buffer.starts_with(b"--") => self.state = State::After,
                State::Boundary => match self.find(b"\r\n\r\n") {
                    Some(at) => {
                        let head = self.buffer.split_to(at + 4);
                        self.state = State::Part;
                        return Ok(Some(Item::Part(file_name(&String::from_utf8_lossy(&head)))));
                    }
                    None if self.buffer.len() > MAX_HEAD => {
                        return Err(invalid("has a part with a long head"));
                    }
                    None => return Ok(None),
                },
                State::Part => {
                    if let Some(at) = self.find(&self.boundary) {
                        if at > 0 {
                            return Ok(Some(Item::Data(self.buffer.split_to(at).freeze())));
                        }
                        let _ = self.buffer.split_to(self.boundary.len());
                        self.state = State::Boundary;
                        return Ok(Some(Item::End));
                    }
                    // The end may be the beginning of a boundary.
                    let sure = self.buffer.len().saturating_sub(self.boundary.len() - 1);
                    return Ok((sure > 0).then(|| Item::Data(self.buffer.split_to(sure).freeze())));
                }
                State::After => {
                    self.buffer.clear();
                    return Ok(None);
                }
            }
        }
    }

    /// Checks that the form was whole.
    pub fn finish(&self) -> Result<()> {
        if self.state == State::After { Ok(()) } else { Err(invalid("ended early")) }
    }

    fn find(&self, what: &[u8]) -> Option<usize> {
        self.buffer.windows(what.len()).position(|window| window == what)
    }
}

fn invalid(what: &str) -> Refusal {
    Refusal::new(Code::InvalidArgument, format!("The form {what}."))
}

/// Returns the name of the file of a part. Only quotes and ends of lines are encoded in it, as browsers do.
fn file_name(head: &str) -> Option<String> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-disposition:"))?;
    let (_, rest) = line.split_once("filename=\"")?;
    let name = rest.split('"').next()?;
    Some(name.replace("%22", "\"").replace("%0D", "\r").replace("%0A", "\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=abc";

    fn read(form: &mut Form, bytes: &[u8], piece: usize) -> Result<Vec<(Option<String>, Vec<u8>)>> {
        let mut parts: Vec<(Option<String>, Vec<u8>)> = Vec::new();
        for bytes in bytes.chunks(piece) {
            form.push(bytes);
            while let Some(item) = form.next_item()? {
                match item {
                    Item::Part(name) => parts.push((name, Vec::new())),
                    Item::Data(data) => parts.last_mut().unwrap().1.extend(data),
                    Item::End => {}
                }
            }
        }
        form.finish()?;
        Ok(parts)
    }

    fn written(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in files {
            let head = format!(
                "--abc\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n"
            );
            bytes.extend([head.as_bytes(), content, b"\r\n"].concat());
        }
        bytes.extend(b"--abc--\r\n");
        bytes
    }

    #[test]
    fn files_come_out_however_the_bytes_are_split() {
        let bytes = written(&[("/a b/%22c", b"1\r\n--ab\r\n2"), ("empty", b"")]);
        for piece in [1, 3, 10, bytes.len()] {
            let parts = read(&mut Form::new(TYPE).unwrap(), &bytes, piece).unwrap();
            let expected =
                [(Some("/a b/\"c".to_owned()), b"1\r\n--ab\r\n2".to_vec()), (Some("empty".into()), vec![])];
            assert_eq!(parts, expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_form_that_is_cut_or_is_none_is_refused() {
        assert!(Form::new("multipart/form-data").is_err());
        assert!(Form::new("multipart/form-data; boundary=").is_err());
        let bytes = written(&[("a", b"1")]);
        let cut = read(&mut Form::new(TYPE).unwrap(), &bytes[..bytes.len() - 8], 5);
        assert_eq!(cut.unwrap_err().code, Code::InvalidArgument);
        let none = read(&mut Form::new(TYPE).unwrap(), &[b'x'; MAX_HEAD + 1], 1000);
        assert_eq!(none.unwrap_err().code, Code::InvalidArgument);
    }

    proptest! {
        #[test]
        fn contents_come_back(content in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), any::<u8>()], 0..60), piece in 1usize..20) {
            prop_assume!(!content.windows(5).any(|window| window == b"--abc"));
            let bytes = written(&[("a", &content)]);
            let parts = read(&mut Form::new("multipart/form-data; boundary=\"abc\"").unwrap(), &bytes, piece).unwrap();
            prop_assert_eq!(&parts[0].1, &content);
        }
    }
}
