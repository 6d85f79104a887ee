//! The entries of catalogs as D-Bus values.

use banger_proto::bus::option::catalog;
use zbus::{OwnedVariant, Variant};

use super::{error::Result, options::Dict};
use crate::engine::{Offer, error::Kind};

/// Returns whether an entry is an image or a kernel.
pub(super) fn kind_of(offer: &Offer) -> &'static str {
    match offer.kind {
        Kind::Kernel => catalog::KERNEL_KIND,
        _ => catalog::IMAGE,
    }
}

/// Returns the entry as a dictionary, without absent values.
pub(super) fn facts(offer: &Offer) -> Result<Dict> {
    let text = |key, text: &str| (key, Variant::from(text.to_owned()));
    let mut rows = vec![
        text(catalog::KIND, kind_of(offer)),
        text(catalog::NAME, offer.name.as_str()),
        text(catalog::CATALOG, offer.catalog.as_str()),
        text(catalog::DESCRIPTION, &offer.description),
        text(catalog::VERSION, &offer.version),
        text(catalog::NOTE, &offer.note),
        text(catalog::SOURCE, &offer.source),
        (catalog::PUBLISHED, (!offer.source.is_empty()).into()),
        (catalog::HERE, offer.is_here.into()),
    ];
    rows.extend(offer.kernel.as_ref().map(|kernel| text(catalog::KERNEL, kernel.as_str())));
    rows.extend(offer.digest.map(|digest| text(catalog::DIGEST, &digest.to_string())));
    rows.extend(offer.size.map(|size| (catalog::SIZE, size.0.into())));
    let owned = |(key, value): (&str, Variant<'static>)| Ok((key.to_owned(), OwnedVariant::try_from(value)?));
    rows.into_iter().map(owned).collect()
}
