//! The forms of a list that `--format` selects, as users of docker write them: `json`, `table`, and templates such as
//! `{{.Name}} {{.State}}`.

/// A form of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// A JSON object on each line.
    Json,
    /// A table with the usual columns.
    Table,
    /// A table; each part of the template is a column.
    TableOf(Vec<Template>),
    /// A line for each row.
    Lines(Template),
}

/// A text with fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(pub Vec<Part>);

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A text.
    Text(String),
    /// A field of the row, such as `Name` or `Labels.team`.
    Field(String),
    /// A field in JSON; the whole row if it has no name.
    Json(String),
}

impl Format {
    /// Parses the value of `--format`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "json" => return Ok(Self::Json),
            "table" => return Ok(Self::Table),
            _ => {}
        }
        if !text.contains("{{") {
            return Err("write json, table, or a template such as '{{.Name}} {{.State}}'".to_owned());
        }
        match text.strip_prefix("table ") {
            Some(columns) => Ok(Self::TableOf(
                unescape(columns.trim()).split('\t').map(Template::parse).collect::<Result<_, _>>()?,
            )),
            None => Ok(Self::Lines(Template::parse(&unescape(text))?)),
        }
    }

    /// Returns the names of its fields.
    pub fn fields(&self) -> Vec<&str> {
        let templates: &[Template] = match self {
            Format::Json | Format::Table => &[],
            Format::TableOf(columns) => columns,
            Format::Lines(line) => std::slice::from_ref(line),
        };
        let parts = templates.iter().flat_map(|template| &template.0);
        parts
            .filter_map(|part| match part {
                Part::Field(name) | Part::Json(name) if !name.is_empty() => Some(name.as_str()),
                _ => None,
            })
            .collect()
    }
}

impl Template {
    fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").ok_or("a `{{` has no `}}`")?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::parse(action.trim())?);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(Self(parts))
    }
}

impl Part {
    fn parse(action: &str) -> Result<Self, String> {
        let (make, name): (fn(String) -> Self, &str) = match action.strip_prefix("json ") {
            Some(name) => (Self::Json, name.trim()),
            None => (Self::Field, action),
        };
        let word = |name: &str| name.chars().all(|c| c.is_alphanumeric() || "._-/".contains(c));
        match name.strip_prefix('.') {
            Some("") if action.starts_with("json ") => Ok(make(String::new())),
            Some(name) if !name.is_empty() && word(name) => Ok(make(name.to_owned())),
            _ => Err(format!(
                "{{{{{action}}}}} is not understood; a template has {{{{.KEY}}}}, {{{{json .KEY}}}} and {{{{json .}}}}"
            )),
        }
    }
}

/// Replaces `\t` and `\n`, which a shell passes on as they are.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_have_texts_and_fields() {
        let (text, field) = (|text: &str| Part::Text(text.into()), |name: &str| Part::Field(name.into()));
        let line = |parts: Vec<Part>| Ok(Format::Lines(Template(parts)));
        for (format, expect) in [
            ("json", Ok(Format::Json)),
            ("table", Ok(Format::Table)),
            ("{{.Name}}", line(vec![field("Name")])),
            ("{{ .Name }}\\t{{.State}}", line(vec![field("Name"), text("\t"), field("State")])),
            ("{{json .}}", line(vec![Part::Json(String::new())])),
            ("a {{json .Labels}} b", line(vec![text("a "), Part::Json("Labels".into()), text(" b")])),
            ("{{.labels.team}}", line(vec![field("labels.team")])),
            (
                "table {{.Name}}\\t{{.State}}!",
                Ok(Format::TableOf(vec![
                    Template(vec![field("Name")]),
                    Template(vec![field("State"), text("!")]),
                ])),
            ),
        ] {
            assert_eq!(Format::parse(format), expect, "{format}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for format in
            ["", "name", "{{", "{{}}", "{{.}}", "{{Name}}", "{{range .}}", "{{.Name", "{{.A | upper}}"]
        {
            assert!(Format::parse(format).is_err(), "{format}");
        }
    }
}
