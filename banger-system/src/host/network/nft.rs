//! Changes of the packet filter, as batches that netlink carries: rules in the language of nft(8), and elements of
//! guests.

use banger_domain::net::{
    TABLE,
    element::{Element, Set},
};
use crabtables::{
    Batch, Family, Object, Reg, Rule, SetElem, SetElemList,
    expr::Expr,
    lang::{
        compile::{Compiler, OpSource},
        parse::parse_spanned,
    },
    sys::{NF_NAT_RANGE_PROTO_SPECIFIED, NFPROTO_IPV4},
};

use crate::ports::{
    FromHost as _,
    network::{Error, Result},
};

const APPLY: &str = "apply the rules of the packet filter";
/// What the compiler does not know: rules that take an address and a port from a map. They are compiled without the
/// port, get it, and are added at the end of their chains.
const TO_ADDRESS_AND_PORT: &str = " addr . port to ";
/// The register of the port, which follows that of the address, as `nft` uses it.
const AFTER_IPV4: Reg = Reg(9);
const AFTER_IPV6: Reg = Reg(2);

/// Compiled rules.
pub(super) struct Rules {
    text: String,
    batch: Batch,
    /// From where in the text each part of the batch comes.
    sources: Vec<OpSource>,
}

impl Rules {
    /// Compiles rules in the language of nft(8).
    pub(super) fn compile(text: &str) -> Result<Self> {
        let is_plain =
            |line: &str| !line.contains(TO_ADDRESS_AND_PORT) && !line.trim_start().starts_with("map ");
        let plain: String =
            text.split_inclusive('\n').map(|line| if is_plain(line) { line } else { "\n" }).collect();
        let (mut batch, sources) = compile(&plain)?;
        let (whole, _) = compile(&text.replace(TO_ADDRESS_AND_PORT, " to "))?;
        for (_, object) in whole.objects() {
            match object {
                Object::Set(map) if map.data_type.is_some() => {
                    // The numbers are those of another batch. nft 1.0.6 crashes on the notes that later versions write.
                    let id = Some(batch.alloc_id());
                    batch.add_set(&crabtables::Set { id, userdata: None, ..map });
                }
                Object::Rule(rule) => drop(with_port(rule).map(|rule| batch.add_rule(&rule))),
                _ => {}
            }
        }
        Ok(Self { text: plain, batch, sources })
    }

    /// Returns the changes, which the kernel makes completely or not at all.
    pub(super) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Returns the error of the kernel, with the line that it refused.
    pub(super) fn refused(&self, error: crabtables::Error) -> Error {
        match self.refused_line(&error) {
            Some(line) => Error::other(APPLY, format!("{error}: {line}")),
            None => failed(APPLY, error),
        }
    }

    fn refused_line(&self, error: &crabtables::Error) -> Option<&str> {
        let refused = error.as_batch()?.errors.first()?;
        let start = self.sources.get(refused.index?)?.span.start;
        let line = self.text.get(start..)?.lines().next()?;
        Some(line.trim())
    }
}

fn compile(text: &str) -> Result<(Batch, Vec<OpSource>)> {
    let mut compiler = Compiler::new();
    let compiled = parse_spanned(text).and_then(|commands| compiler.compile_spanned(&commands));
    compiled.map_err(|error| Error::other(APPLY, error))?;
    Ok(compiler.into_batch())
}

/// Returns a rule that takes address and port from a map, where the compiler has taken the address alone. `None` for
/// other rules.
fn with_port(mut rule: Rule) -> Option<Rule> {
    let [.., Expr::Lookup(lookup), Expr::Nat(nat)] = rule.exprs.as_mut_slice() else { return None };
    // The map is found by its name; the number belongs to another batch.
    lookup.set_id = None;
    let port = if nat.family == u32::from(NFPROTO_IPV4) { AFTER_IPV4 } else { AFTER_IPV6 };
    (nat.reg_proto_min, nat.reg_proto_max) = (Some(port), Some(port));
    nat.flags = Some(nat.flags.unwrap_or_default() | NF_NAT_RANGE_PROTO_SPECIFIED);
    Some(rule)
}

/// Adds elements of a guest. Existing ones are kept.
pub(super) fn add_to(batch: &mut Batch, elements: &[Element]) {
    for element in elements {
        let added = match &element.comment {
            Some(comment) => encoded(element).with_comment(comment),
            None => encoded(element),
        };
        batch.add_elems(&list_of(element.set, added));
    }
}

/// Removes elements, whether they exist or not.
///
/// Each element is added before it is deleted, since deleting a missing one would fail the whole batch. Kernels since
/// 6.3 have a message for this, but not every distribution has such a kernel.
pub(super) fn remove_from(batch: &mut Batch, elements: &[Element]) {
    for element in elements {
        batch.add_elems(&list_of(element.set, encoded(element)));
        batch.delete_elems(&list_of(element.set, keyed(element)));
    }
}

fn encoded(element: &Element) -> SetElem {
    let added = keyed(element);
    match &element.value {
        Some(value) => added.with_data(value.clone()),
        None => added,
    }
}

/// Returns the element by which the kernel finds another one.
pub(super) fn keyed(element: &Element) -> SetElem {
    let keyed = SetElem::new(element.key.clone());
    match &element.end {
        Some(end) => keyed.with_key_end(end.clone()),
        None => keyed,
    }
}

fn list_of(set: Set, element: SetElem) -> SetElemList {
    SetElemList::new(Family::Inet, TABLE, set.name()).with(element)
}

/// Returns the error of a request made for `doing`.
pub(super) fn failed(doing: impl Into<String>, error: crabtables::Error) -> Error {
    Error::other(doing, error)
}
