//! The bill of materials of the programs, as CycloneDX. See <https://cyclonedx.org/docs/1.5/json/>

use serde_json::{Value, json};

use super::crates::Crate;

/// Returns the bill for our programs with these crates in them. The same crates give the same text.
pub fn text(version: &str, crates: &[Crate]) -> String {
    let components: Vec<Value> = crates.iter().map(component).collect();
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "application",
            "bom-ref": format!("banger@{version}"),
            "name": "banger",
            "version": version,
            "licenses": [{ "expression": "MIT OR Apache-2.0" }],
        } },
        "components": components,
        "dependencies": [{
            "ref": format!("banger@{version}"),
            "dependsOn": crates.iter().map(reference).collect::<Vec<_>>(),
        }],
    });
    format!("{bill:#}\n")
}

fn reference(part: &Crate) -> String {
    // See https://github.com/package-url/purl-spec
    format!("pkg:cargo/{}@{}", part.name, part.version.replace('+', "%2B"))
}

fn component(part: &Crate) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(part),
        "purl": reference(part),
        "name": part.name,
        "version": part.version,
        "licenses": [{ "expression": part.license }],
    });
    if let Some(checksum) = &part.checksum {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    if let Some(repository) = &part.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_crate_is_named_as_scanners_look_it_up() {
        let part = Crate {
            name: "a-crate".into(),
            version: "1.2.0+more".into(),
            license: "MIT".into(),
            copyright: Vec::new(),
            checksum: Some("ab".into()),
            repository: None,
        };
        let bill: Value = serde_json::from_str(&text("0.1.0", &[part])).unwrap();
        assert_eq!(bill["components"][0]["purl"], "pkg:cargo/a-crate@1.2.0%2Bmore");
        assert_eq!(bill["components"][0]["hashes"][0]["content"], "ab");
        assert_eq!(bill["dependencies"][0]["dependsOn"][0], bill["components"][0]["bom-ref"]);
        assert!(bill["components"][0].get("externalReferences").is_none());
    }
}
