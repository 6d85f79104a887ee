//! The schemas in `docs/schemas` as definitions of types, without what only a validator needs.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Names of types, where that of their file would not do: a client has a class `Sandbox`.
const NAMES: [(&str, &str); 1] = [("sandbox", "SandboxProperties")];
/// Names of the alternatives of a file.
const ALTERNATIVES: [(&str, &[&str]); 3] = [
    ("prepared", &["PreparedWorkspace", "WorkspacePlan"]),
    ("run", &["SandboxProperties", "WorkspacePlan"]),
    ("settings", &["SettingsInEffect", "SettingsWithOrigin"]),
];

/// A type of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    Text,
    Integer,
    Number,
    Boolean,
    /// Null, where the schema allows nothing else.
    Null,
    /// Any value.
    Any,
    /// One of these texts.
    Literals(Vec<String>),
    /// An array.
    List(Box<Type>),
    /// An object with any keys.
    Map(Box<Type>),
    /// A definition.
    Named(String),
    /// A value, or null.
    Nullable(Box<Type>),
}

/// A key of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub key: String,
    pub about: String,
    pub value: Type,
    /// Whether every object has it.
    pub required: bool,
}

/// A definition of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Definition {
    /// An object.
    Record { name: String, about: String, fields: Vec<Field> },
    /// One of several objects.
    Union { name: String, about: String, names: Vec<String> },
}

impl Definition {
    pub fn name(&self) -> &str {
        match self {
            Self::Record { name, .. } | Self::Union { name, .. } => name,
        }
    }
}

/// Reads all schemas in a directory. A definition comes after those that it uses.
pub fn read(directory: &Path) -> Result<Vec<Definition>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let schema = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
        files.insert(stem, schema);
    }
    of_files(&files)
}

fn of_files(files: &BTreeMap<String, Value>) -> Result<Vec<Definition>> {
    let mut reader = Reader { files, found: Vec::new() };
    for stem in files.keys() {
        reader.file(stem)?;
    }
    Ok(reader.found)
}

struct Reader<'a> {
    files: &'a BTreeMap<String, Value>,
    found: Vec<Definition>,
}

impl Reader<'_> {
    /// Defines the type of a file, if that is not done, and returns its name.
    fn file(&mut self, stem: &str) -> Result<String> {
        let name = type_name(stem);
        if self.found.iter().any(|known| known.name() == name) {
            return Ok(name);
        }
        let schema = self.files.get(stem).with_context(|| format!("there is no schema {stem}"))?;
        let Some(alternatives) = schema["anyOf"].as_array() else {
            return self.record(&name, schema);
        };
        let given = ALTERNATIVES.iter().find(|(file, _)| *file == stem).map_or(&[][..], |(_, names)| names);
        let mut names = Vec::new();
        for (number, alternative) in alternatives.iter().enumerate() {
            let numbered = || format!("{name}{}", number + 1);
            let wanted = given.get(number).map_or_else(numbered, |name| (*name).to_owned());
            names.push(match self.value(&wanted, alternative)? {
                Type::Named(name) => name,
                other => bail!("{stem}: an alternative is {other:?}, not an object"),
            });
        }
        self.found.push(Definition::Union { name: name.clone(), about: about(schema), names });
        Ok(name)
    }

    /// Defines an object, and returns its name. Another object with the same keys is the same type.
    fn record(&mut self, name: &str, schema: &Value) -> Result<String> {
        let required = |key: &str| {
            schema["required"].as_array().is_some_and(|keys| keys.iter().any(|required| required == key))
        };
        let mut fields = Vec::new();
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let value = self.value(&format!("{name}{}", camel(key)), property)?;
            let (key, required) = (key.clone(), required(key));
            fields.push(Field { key, about: about(property), value, required });
        }
        let same = self.found.iter().find_map(|known| match known {
            Definition::Record { name: known, fields: of_known, .. } if shape(of_known) == shape(&fields) => {
                Some(known.clone())
            }
            _ => None,
        });
        if let Some(same) = same.filter(|_| !self.is_of_file(name)) {
            return Ok(same);
        }
        self.found.push(Definition::Record { name: name.to_owned(), about: about(schema), fields });
        Ok(name.to_owned())
    }

    fn is_of_file(&self, name: &str) -> bool {
        self.files.keys().any(|stem| type_name(stem) == name)
    }

    /// Returns the type of a value; `name` is that of an object in it.
    fn value(&mut self, name: &str, schema: &Value) -> Result<Type> {
        if let Some(file) = schema["$ref"].as_str() {
            return Ok(Type::Named(self.file(file.trim_end_matches(".json"))?));
        }
        if let Some(values) = schema["enum"].as_array() {
            let texts = values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            return Ok(nullable(Type::Literals(texts), values.iter().any(Value::is_null)));
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            kind => kind.as_str().into_iter().collect(),
        };
        let is_nullable = kinds.contains(&"null");
        let value = match kinds.iter().find(|kind| **kind != "null") {
            None if is_nullable => return Ok(Type::Null),
            None => return Ok(Type::Any),
            Some(&"string") => Type::Text,
            Some(&"integer") => Type::Integer,
            Some(&"number") => Type::Number,
            Some(&"boolean") => Type::Boolean,
            Some(&"array") if schema["items"].is_null() => Type::List(Box::new(Type::Any)),
            Some(&"array") => {
                let item = singular(name);
                Type::List(Box::new(self.value(&item, &schema["items"])?))
            }
            Some(&"object") if schema["properties"].is_object() => Type::Named(self.record(name, schema)?),
            Some(&"object") => {
                Type::Map(Box::new(self.value(&singular(name), &schema["additionalProperties"])?))
            }
            Some(other) => bail!("{name}: the type {other} is unknown"),
        };
        Ok(nullable(value, is_nullable))
    }
}

fn nullable(value: Type, is_nullable: bool) -> Type {
    if is_nullable { Type::Nullable(Box::new(value)) } else { value }
}

/// Returns what makes objects the same type: their keys and the types of these.
fn shape(fields: &[Field]) -> Vec<(&str, &Type, bool)> {
    fields.iter().map(|field| (field.key.as_str(), &field.value, field.required)).collect()
}

fn about(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().to_owned()
}

fn type_name(stem: &str) -> String {
    let given = NAMES.iter().find(|(file, _)| *file == stem);
    given.map_or_else(|| camel(stem), |(_, name)| (*name).to_owned())
}

/// Returns a name in camel case: `ListedImage` for `listed_image`.
fn camel(text: &str) -> String {
    let capitalized = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>())
    };
    text.split(['_', '-']).filter_map(capitalized).collect()
}

/// Returns the name of one item: `EventArgument` for `EventArguments`.
fn singular(name: &str) -> String {
    match name.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None if name.ends_with("ches") => name[..name.len() - 2].to_owned(),
        None if name.ends_with('s') && !name.ends_with("ss") => name[..name.len() - 1].to_owned(),
        None => format!("{name}Item"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_become_definitions_in_the_order_of_their_use() {
        let files = BTreeMap::from([
            (
                "list".to_owned(),
                json!({"description": "A list", "anyOf": [{"$ref": "sandbox.json"}, {"type": "object", "properties": {"a": {}}}]}),
            ),
            (
                "sandbox".to_owned(),
                json!({
                    "description": "A sandbox",
                    "type": "object",
                    "properties": {
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "ports": {"type": "array", "items": {"type": "object", "properties": {"port": {"type": ["integer", "null"]}}, "required": ["port"]}},
                        "restart": {"enum": ["no", "always", null]},
                    },
                    "required": ["labels"],
                }),
            ),
        ]);
        let found = of_files(&files).unwrap();
        let names: Vec<&str> = found.iter().map(Definition::name).collect();
        assert_eq!(names, ["SandboxPropertiesPort", "SandboxProperties", "List2", "List"]);
        let Definition::Record { fields, .. } = &found[1] else { panic!("{found:?}") };
        let port = Type::List(Box::new(Type::Named("SandboxPropertiesPort".to_owned())));
        let literals = Type::Literals(vec!["no".to_owned(), "always".to_owned()]);
        let expect = [Type::Map(Box::new(Type::Text)), port, Type::Nullable(Box::new(literals))];
        assert_eq!(fields.iter().map(|field| field.value.clone()).collect::<Vec<_>>(), expect);
        assert_eq!(fields.iter().map(|field| field.required).collect::<Vec<_>>(), [true, false, false]);
    }

    #[test]
    fn a_type_that_is_not_known_is_an_error() {
        let files = BTreeMap::from([(
            "a".to_owned(),
            json!({"type": "object", "properties": {"b": {"type": "text"}}}),
        )]);
        assert!(of_files(&files).is_err());
    }
}
