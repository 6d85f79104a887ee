//! The types and errors of the SDK for TypeScript.

use super::{
    GENERATED,
    codes::Code,
    model::{Definition, Type},
    wrap,
};

/// Returns the module of types.
pub fn types(definitions: &[Definition]) -> String {
    let mut text = format!(
        "// {GENERATED}\n/**\n * The types of what banger prints with `--json`.\n *\n * @module\n */\n"
    );
    for definition in definitions {
        text.push('\n');
        match definition {
            Definition::Record { name, about, fields } => {
                text.push_str(&comment("", about));
                text.push_str(&format!("export interface {name} {{\n"));
                for field in fields {
                    text.push_str(&comment("  ", &field.about));
                    let mark = if field.required { "" } else { "?" };
                    text.push_str(&format!("  {}{mark}: {};\n", quoted(&field.key), of(&field.value)));
                }
                text.push_str("}\n");
            }
            Definition::Union { name, about, names } => {
                text.push_str(&comment("", about));
                text.push_str(&format!("export type {name} = {};\n", names.join(" | ")));
            }
        }
    }
    text
}

/// Returns a documentation comment, on one line if it fits.
fn comment(indent: &str, about: &str) -> String {
    let one = format!("{indent}/** {about}. */\n");
    if one.len() <= super::WIDTH {
        return one;
    }
    format!("{indent}/**\n{}{indent} */\n", wrap(&format!("{indent} * "), &format!("{about}.")))
}

/// Returns a key, in quotes if it is no name.
fn quoted(key: &str) -> String {
    let is_name = key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    if is_name { key.to_owned() } else { format!("{key:?}") }
}

fn of(value: &Type) -> String {
    match value {
        Type::Text => "string".to_owned(),
        Type::Integer | Type::Number => "number".to_owned(),
        Type::Boolean => "boolean".to_owned(),
        Type::Null => "null".to_owned(),
        Type::Any => "unknown".to_owned(),
        Type::Literals(texts) => texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" | "),
        Type::List(item) => format!("Array<{}>", of(item)),
        Type::Map(item) => format!("Record<string, {}>", of(item)),
        Type::Named(name) => name.clone(),
        Type::Nullable(value) => format!("{} | null", of(value)),
    }
}

/// Returns the module of errors.
pub fn codes(codes: &[Code]) -> String {
    let mut text = format!(
        "// {GENERATED}\n/**\n * A class for each code of an error that banger reports.\n *\n * @module\n */\n\n\
         import {{ BangerError }} from \"./base.js\";\nimport type {{ ErrorDetails }} from \"./base.js\";\n"
    );
    for Code { class, about, .. } in codes {
        text.push_str(&format!(
            "\n/** {about} */\nexport class {class} extends BangerError {{\n  override name = \"{class}\";\n}}\n"
        ));
    }
    text.push_str(
        "\n/** The class of each code. */\nexport const BY_CODE: ReadonlyMap<string, new (details: ErrorDetails) => BangerError> = \
         new Map<\n  string,\n  new (details: ErrorDetails) => BangerError\n>([\n",
    );
    for Code { code, class, .. } in codes {
        text.push_str(&format!("  [\"{code}\", {class}],\n"));
    }
    text + "]);\n"
}
