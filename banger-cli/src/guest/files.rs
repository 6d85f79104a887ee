//! Lists of the files in a sandbox.

use banger_proto::guest::{
    Request,
    listing::{Entry, Kind, Reader},
};

use crate::{
    error::Result,
    guest::agent::{Guest, protocol_error},
};

/// A part of a directory.
#[derive(Debug, Default)]
pub struct Listing {
    recursive: bool,
    limit: usize,
    /// The entries, in no particular order.
    pub entries: Vec<Entry>,
    /// Whether there are more than the limit.
    pub truncated: bool,
}

impl Listing {
    /// Lists a directory, or everything below it, up to a limit. `.git` is left out.
    pub async fn of(guest: &mut Guest, directory: String, recursive: bool, limit: usize) -> Result<Self> {
        let listing = guest.call(Request::List { directory }, move |call| {
            let mut reader = Reader::default();
            let mut listing = Self { recursive, limit, ..Self::default() };
            while let Some(bytes) = call.output()? {
                let entries = reader.push(&bytes).map_err(|_| protocol_error())?;
                // What follows is not read: dropping the call ends it.
                if !entries.into_iter().all(|entry| listing.take(entry)) {
                    break;
                }
            }
            Ok(listing)
        });
        listing.await
    }

    /// Adds an entry. Returns false if no more are wanted. The agent sends those of the directory itself first.
    fn take(&mut self, entry: Entry) -> bool {
        if !self.recursive && entry.name.contains(&b'/') {
            return false;
        }
        self.truncated = self.entries.len() >= self.limit;
        if !self.truncated {
            self.entries.push(entry);
        }
        !self.truncated
    }
}

/// Returns the word for a kind of file.
pub const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Other => "other",
    }
}

/// Returns permission bits in octal digits.
pub fn mode_text(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_ends_where_it_should() {
        let entry = |name: &str| Entry { kind: Kind::File, mode: 0o644, size: 1, name: name.into() };
        let names = ["a", "b", "c/d", "e"];
        for (recursive, limit, expect, truncated) in
            [(false, 9, 2, false), (true, 9, 4, false), (true, 2, 2, true), (false, 1, 1, true)]
        {
            let mut listing = Listing { recursive, limit, ..Listing::default() };
            let _ = names.iter().all(|name| listing.take(entry(name)));
            assert_eq!((listing.entries.len(), listing.truncated), (expect, truncated));
        }
    }
}
