//! The types and errors of the SDK for Python. It works with Python 3.10, whose `TypedDict` marks keys that may be missing
//! by a class of their own. A schema with a key that is no name in Python may not have both kinds of keys.

use super::{
    GENERATED,
    codes::Code,
    model::{Definition, Field, Type},
    wrap,
};

/// Words that no attribute can be called by.
const KEYWORDS: [&str; 8] = ["from", "import", "class", "global", "pass", "with", "is", "in"];

/// Returns the module of types.
pub fn types(definitions: &[Definition]) -> String {
    let mut text = format!(
        "# {GENERATED}\n\"\"\"The types of what banger prints with ``--json``.\"\"\"\n\nfrom __future__ import annotations\n\n\
         from typing import Any, Literal, TypedDict, Union\n\n__all__ = [\n"
    );
    for name in sorted(definitions.iter().map(Definition::name)) {
        text.push_str(&format!("    \"{name}\",\n"));
    }
    text.push_str("]\n");
    for definition in definitions {
        text.push_str("\n\n");
        match definition {
            Definition::Record { name, about, fields } => record(&mut text, name, about, fields),
            Definition::Union { name, about, names } => {
                text.push_str(&wrap("#: ", &format!("{about}.")));
                text.push_str(&format!("{name} = Union[{}]\n", names.join(", ")));
            }
        }
    }
    text
}

fn record(text: &mut String, name: &str, about: &str, fields: &[Field]) {
    if !fields.iter().all(|field| is_name(&field.key)) {
        return functional(text, name, about, fields);
    }
    let (required, optional): (Vec<_>, Vec<_>) = fields.iter().partition(|field| field.required);
    match (required.is_empty(), optional.is_empty()) {
        (_, true) => class(text, &format!("{name}(TypedDict)"), about, &required),
        (true, false) => class(text, &format!("{name}(TypedDict, total=False)"), about, &optional),
        (false, false) => {
            class(text, &format!("_{name}(TypedDict)"), about, &required);
            text.push_str("\n\n");
            class(text, &format!("{name}(_{name}, total=False)"), about, &optional);
        }
    }
}

fn class(text: &mut String, head: &str, about: &str, fields: &[&Field]) {
    text.push_str(&format!("class {head}:\n    \"\"\"{about}.\"\"\"\n"));
    for field in fields {
        text.push('\n');
        text.push_str(&wrap("    #: ", &format!("{}.", field.about)));
        text.push_str(&format!("    {}: {}\n", field.key, of(&field.value)));
    }
}

/// Returns whether a class can have an attribute of this name.
fn is_name(key: &str) -> bool {
    key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_') && !KEYWORDS.contains(&key)
}

/// Defines an object by a call, whose keys can be any texts.
fn functional(text: &mut String, name: &str, about: &str, fields: &[Field]) {
    text.push_str(&wrap("#: ", &format!("{about}.")));
    text.push_str(&format!("{name} = TypedDict(\n    \"{name}\",\n    {{\n"));
    for field in fields {
        text.push_str(&wrap("        # ", &format!("{}.", field.about)));
        text.push_str(&format!("        \"{}\": \"{}\",\n", field.key, of(&field.value).replace('"', "'")));
    }
    let total = if fields.iter().all(|field| field.required) { "True" } else { "False" };
    text.push_str(&format!("    }},\n    total={total},\n)\n"));
}

fn of(value: &Type) -> String {
    match value {
        Type::Text => "str".to_owned(),
        Type::Integer => "int".to_owned(),
        Type::Number => "float".to_owned(),
        Type::Boolean => "bool".to_owned(),
        Type::Null => "None".to_owned(),
        Type::Any => "Any".to_owned(),
        Type::Literals(texts) => {
            format!(
                "Literal[{}]",
                texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ")
            )
        }
        Type::List(item) => format!("list[{}]", of(item)),
        Type::Map(item) => format!("dict[str, {}]", of(item)),
        Type::Named(name) => name.clone(),
        Type::Nullable(value) => format!("{} | None", of(value)),
    }
}

/// Returns the module of errors.
pub fn codes(codes: &[Code]) -> String {
    let mut text = format!(
        "# {GENERATED}\n\"\"\"A class for each code of an error that banger reports.\"\"\"\n\nfrom __future__ import annotations\n\n\
         from ._base import BangerError\n\n__all__ = [\n    \"BY_CODE\",\n"
    );
    for class in sorted(codes.iter().map(|code| code.class.as_str())) {
        text.push_str(&format!("    \"{class}\",\n"));
    }
    text.push_str("]\n");
    for Code { class, about, .. } in codes {
        text.push_str(&format!("\n\nclass {class}(BangerError):\n    \"\"\"{about}\"\"\"\n"));
    }
    text.push_str("\n\n#: The class of each code.\nBY_CODE: dict[str, type[BangerError]] = {\n");
    for Code { code, class, .. } in codes {
        text.push_str(&format!("    \"{code}\": {class},\n"));
    }
    text + "}\n"
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names
}
