//! An object of the service, with its properties as read at one moment.

use std::collections::HashMap;

use serde_json::{Map, Value};
use zbus::{OwnedVariant, Variant};

/// The properties of an object.
#[derive(Debug, Default)]
pub struct Object(HashMap<String, OwnedVariant>);

impl Object {
    /// Creates an object with these properties.
    pub fn new(properties: HashMap<String, OwnedVariant>) -> Self {
        Self(properties)
    }

    /// Returns a text property; empty if the object does not have it.
    pub fn text(&self, property: &str) -> &str {
        match self.0.get(property).map(|value| &**value) {
            Some(Variant::Str(text)) => text.as_str(),
            _ => "",
        }
    }

    /// Returns a number; 0 if the object does not have it.
    pub fn number(&self, property: &str) -> u64 {
        match self.0.get(property).map(|value| &**value) {
            Some(Variant::U64(number)) => *number,
            Some(Variant::U32(number)) => u64::from(*number),
            Some(Variant::U16(number)) => u64::from(*number),
            _ => 0,
        }
    }

    /// Returns a boolean property; false if the object does not have it.
    pub fn flag(&self, property: &str) -> bool {
        matches!(self.0.get(property).map(|value| &**value), Some(Variant::Bool(true)))
    }

    /// Returns a list of texts; empty if the object does not have it.
    pub fn strings(&self, property: &str) -> Vec<String> {
        match self.0.get(property).map(|value| json(value)) {
            Some(Value::Array(items)) => {
                items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns whether a sandbox reaches anything beyond the host.
    pub fn has_egress(&self) -> bool {
        self.flag("Nat") || !self.strings("Egress").is_empty()
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        self.text("Name")
    }

    /// Returns all properties as JSON, with keys such as `owner_uid`.
    pub fn json(&self) -> Value {
        let entry = |(name, value): (&String, &OwnedVariant)| (snake_case(name), named(name, json(value)));
        Value::Object(self.0.iter().map(entry).collect())
    }
}

/// Names for the members of structures, which have only positions on the bus.
const MEMBERS: [(&str, &[&str]); 4] = [
    ("PublishedPorts", PORT),
    ("BlockedPorts", PORT),
    ("EgressAllowed", &["name", "count", "last_at"]),
    ("EgressDenials", &["destination", "port", "protocol", "count", "last_at"]),
];
const PORT: &[&str] = &["protocol", "guest_port", "host_port", "host_address"];

/// Converts an array of structures to objects, if their members have names.
fn named(property: &str, value: Value) -> Value {
    let Some((_, members)) = MEMBERS.iter().find(|(name, _)| *name == property) else { return value };
    let object = |row: Value| match row {
        Value::Array(row) => members.iter().map(|member| (*member).to_owned()).zip(row).collect(),
        other => other,
    };
    match value {
        Value::Array(rows) => rows.into_iter().map(object).collect(),
        other => other,
    }
}

/// Sorts objects for lists: by age, the oldest first, then by name.
pub fn sort(objects: &mut [Object]) {
    objects.sort_by(|a, b| {
        let key = |object: &Object| object.number("CreatedAt");
        key(a).cmp(&key(b)).then_with(|| a.name().cmp(b.name()))
    });
}

/// Converts a value of the bus to JSON: structures and arrays to arrays, dictionaries to objects.
pub fn json(value: &Variant<'_>) -> Value {
    match value {
        Variant::U8(number) => Value::from(*number),
        Variant::Bool(flag) => Value::from(*flag),
        Variant::I16(number) => Value::from(*number),
        Variant::U16(number) => Value::from(*number),
        Variant::I32(number) => Value::from(*number),
        Variant::U32(number) => Value::from(*number),
        Variant::I64(number) => Value::from(*number),
        Variant::U64(number) => Value::from(*number),
        Variant::F64(number) => Value::from(*number),
        Variant::Str(text) => Value::from(text.as_str()),
        Variant::Signature(signature) => Value::from(signature.to_string()),
        Variant::ObjectPath(path) => Value::from(path.as_str()),
        Variant::Variant(inner) => json(inner),
        Variant::Array(array) => array.iter().map(json).collect(),
        Variant::Dict(dict) => {
            let entries = dict.iter().map(|(key, value)| {
                let key = match json(key) {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                (key, json(value))
            });
            Value::Object(entries.collect::<Map<_, _>>())
        }
        Variant::Structure(structure) => structure.fields().iter().map(json).collect(),
        // No property is a file descriptor.
        Variant::Fd(_) => Value::Null,
    }
}

/// Converts `OwnerUid` to `owner_uid`.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (index, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn object<const N: usize>(properties: [(&str, Variant<'static>); N]) -> Object {
        let properties =
            properties.map(|(name, value)| (name.to_owned(), OwnedVariant::try_from(value).unwrap()));
        Object::new(properties.into())
    }

    #[test]
    fn keys_are_the_properties_in_snake_case() {
        let names = ["Id", "OwnerUid", "StateReason", "Vcpus", "DnsNames", "PublishedPorts", "MainPid"];
        let keys = names.map(snake_case);
        assert_eq!(
            keys,
            ["id", "owner_uid", "state_reason", "vcpus", "dns_names", "published_ports", "main_pid"]
        );
    }

    #[test]
    fn values_keep_their_kind() {
        let labels = HashMap::from([("a".to_owned(), "b".to_owned())]);
        let object = object([
            ("Id", Variant::from("0123")),
            ("OwnerUid", Variant::from(1000u32)),
            ("Memory", Variant::from(u64::MAX)),
            ("Ready", Variant::from(true)),
            ("DnsNames", Variant::from(vec!["x.vm"])),
            ("PublishedPorts", Variant::from(vec![("tcp", 80u16, 8080u16, "127.0.0.1")])),
            ("Labels", Variant::from(labels)),
            ("Progress", Variant::from(-1.0)),
        ]);
        let expect = json!({
            "id": "0123",
            "owner_uid": 1000,
            "memory": u64::MAX,
            "ready": true,
            "dns_names": ["x.vm"],
            "published_ports": [
                {"protocol": "tcp", "guest_port": 80, "host_port": 8080, "host_address": "127.0.0.1"},
            ],
            "labels": {"a": "b"},
            "progress": -1.0,
        });
        assert_eq!(object.json(), expect);
    }

    #[test]
    fn missing_properties_are_empty() {
        let object = object([("Id", Variant::from("0123456789abcdef"))]);
        assert_eq!((object.name(), object.number("Memory"), object.flag("Ready")), ("", 0, false));
    }

    #[test]
    fn lists_are_sorted_by_age_then_name() {
        let make = |name: &'static str, at: u64| {
            object([("Name", Variant::from(name)), ("CreatedAt", Variant::from(at))])
        };
        let mut objects = [make("c", 2), make("b", 1), make("a", 2)];
        sort(&mut objects);
        assert_eq!(objects.each_ref().map(Object::name), ["b", "a", "c"]);
    }
}
