//! The options of a command that prints a list: which columns, in which order, in which form.

use std::io;

use clap::Args;
use serde_json::Value;

use crate::{
    error::{Error, Result},
    ui::{
        age,
        column::{Field, List, compare},
        output, sanitize,
        table::Table,
        template::{Format, Part, Template},
        terminal,
    },
};

/// The options of a command that prints a list.
#[derive(Debug, Clone, Default, Args)]
pub struct TableArgs {
    /// Show these columns, separated by commas; other keys of --json can be named as well
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', conflicts_with_all = ["json", "format"])]
    columns: Vec<String>,
    /// Sort by this column or key; with a hyphen before it, in reverse
    #[arg(long, value_name = "COLUMN", allow_hyphen_values = true)]
    sort: Option<String>,
    /// Format each row with this template, such as '{{.Name}} {{.State}}'; `json` for a JSON object on each
    /// line, 'table TEMPLATE' for headings. {{.KEY}} is a key of --json or a column
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse, conflicts_with = "json")]
    format: Option<Format>,
}

/// The form in which a list is printed.
#[derive(Debug)]
pub struct View {
    list: List,
    /// The columns of a table.
    fields: Vec<Field>,
    /// Whether the user has chosen the columns.
    chosen: bool,
    /// What to sort by, and whether the last comes first.
    sort: Option<(Field, bool)>,
    format: Option<Format>,
}

impl TableArgs {
    /// Checks the options for a list.
    pub fn view(&self, list: List) -> Result<View> {
        let unknown = |word: &str| {
            let (sentence, hint) = list.unknown(word);
            Error::Usage(sentence).with_hint(hint)
        };
        let column = |word: &str| list.column(word).or_else(|| list.key(word)).ok_or_else(|| unknown(word));
        let fields: Vec<Field> = match self.columns.is_empty() {
            true => list.columns.iter().map(|column| Field::Column(*column)).collect(),
            false => self.columns.iter().map(|word| column(word.trim())).collect::<Result<_>>()?,
        };
        let sort = match &self.sort {
            Some(word) => match word.strip_prefix('-') {
                Some(word) => Some((column(word)?, true)),
                None => Some((column(word)?, false)),
            },
            None => None,
        };
        for name in self.format.iter().flat_map(Format::fields) {
            field(&list, name).ok_or_else(|| unknown(name))?;
        }
        Ok(View { list, fields, chosen: !self.columns.is_empty(), sort, format: self.format.clone() })
    }
}

/// Returns the field of a template: a key first, because scripts want its value.
fn field(list: &List, name: &str) -> Option<Field> {
    list.key(name).or_else(|| list.column(name))
}

impl View {
    /// Checks a template for a list that has no columns.
    pub fn formatted(list: List, format: Format) -> Result<Self> {
        TableArgs { format: Some(format), ..TableArgs::default() }.view(list)
    }

    /// Prints the rows to standard output.
    pub fn print(&self, rows: Vec<Value>, json: bool) -> Result<()> {
        let rows = self.sorted(rows);
        match json {
            true => output::json(&Value::Array(rows)),
            false => output::text(&self.text(&rows, terminal::width(&io::stdout()), age::now())),
        }
    }

    /// Sorts the rows. Equal ones keep their order.
    pub fn sorted(&self, mut rows: Vec<Value>) -> Vec<Value> {
        if let Some((field, reverse)) = &self.sort {
            rows.sort_by(|one, other| {
                let order = compare(&field.value(one), &field.value(other));
                if *reverse { order.reverse() } else { order }
            });
        }
        rows
    }

    /// Formats the rows for a terminal of this width, or in full.
    pub fn text(&self, rows: &[Value], width: Option<usize>, now: u64) -> String {
        match &self.format {
            None | Some(Format::Table) => {
                let headings = self.fields.iter().map(|field| (field.heading(), field.fit()));
                let mut table = Table::of(headings.collect());
                for row in rows {
                    table.row(self.fields.iter().map(|field| field.text(row, now)));
                }
                table.fitted(width.filter(|_| !self.chosen))
            }
            Some(Format::TableOf(columns)) => {
                let headings = columns.iter().map(|column| (self.heading(column), Default::default()));
                let mut table = Table::of(headings.collect());
                for row in rows {
                    table.row(columns.iter().map(|column| self.fill(column, row, now)));
                }
                table.text()
            }
            Some(Format::Lines(line)) => {
                rows.iter().map(|row| format!("{}\n", self.fill(line, row, now))).collect()
            }
            Some(Format::Json) => rows.iter().map(|row| format!("{row}\n")).collect(),
        }
    }

    /// Fills a template with a row.
    fn fill(&self, template: &Template, row: &Value, now: u64) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Json(name) if name.is_empty() => row.to_string(),
            Part::Json(name) => {
                field(&self.list, name).map(|field| field.value(row).to_string()).unwrap_or_default()
            }
            Part::Field(name) => {
                sanitize::line(&field(&self.list, name).map(|field| field.text(row, now)).unwrap_or_default())
            }
        };
        template.0.iter().map(part).collect()
    }

    /// Returns a template with headings instead of values.
    fn heading(&self, template: &Template) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Json(name) | Part::Field(name) => {
                field(&self.list, name).map(|field| field.heading()).unwrap_or_default()
            }
        };
        template.0.iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::command::vm::list::LIST;

    fn sandboxes() -> Vec<Value> {
        let row = |name: &str, memory: u64, created: u64| {
            json!({
                "id": "0123456789abcdef0123456789abcdef", "name": name, "state": "running",
                "image_name": "debian", "address": "10.0.0.2", "vcpus": 2, "memory": memory << 30,
                "disk_size": 8u64 << 30, "created_at": created, "labels": {"team": "web"}, "ready": true,
            })
        };
        vec![row("web", 4, 1), row("db", 16, 2), row("cache", 16, 3)]
    }

    fn shown(args: TableArgs, width: Option<usize>) -> String {
        let view = args.view(LIST).unwrap();
        view.text(&view.sorted(sandboxes()), width, 181_000_000)
    }

    #[test]
    fn columns_are_chosen_by_name_or_key() {
        let columns = |words: &str| TableArgs {
            columns: words.split(',').map(str::to_owned).collect(),
            ..TableArgs::default()
        };
        let expect = "NAME   MEM     READY\nweb    4 GiB   true\ndb     16 GiB  true\ncache  16 GiB  true\n";
        assert_eq!(shown(columns("name,mem,ready"), None), expect);
        assert_eq!(shown(columns("Name,MEM,Ready"), Some(10)), expect, "what was asked for is not dropped");
    }

    #[test]
    fn rows_are_sorted_by_value_in_both_directions() {
        let order = |sort: &str| {
            let args = TableArgs {
                sort: Some(sort.to_owned()),
                format: Some(Format::parse("{{.Name}}").unwrap()),
                ..TableArgs::default()
            };
            shown(args, None).split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        for (sort, expect) in [
            ("name", "cache db web"),
            ("-name", "web db cache"),
            ("memory", "web db cache"),
            ("-mem", "db cache web"),
            ("-created", "cache db web"),
            ("created_at", "web db cache"),
        ] {
            assert_eq!(order(sort), expect, "{sort}");
        }
    }

    #[test]
    fn templates_are_filled_with_keys_and_columns() {
        for (format, expect) in [
            ("{{.Name}} {{.memory}} {{.MEM}}", "web 4294967296 4 GiB"),
            ("{{.ImageName}}/{{.image_name}}/{{.Image}}", "debian/debian/debian"),
            ("{{.Labels}} {{.Labels.team}} {{json .Labels}}", "team=web web {\"team\":\"web\"}"),
            ("{{.Created}}", "3 minutes ago"),
            ("table {{.Name}}\\t{{.Mem}}", "NAME   MEM"),
            (
                "table",
                "ID            NAME   STATE    IMAGE   ADDRESS   VCPU  MEM     DISK   CREATED        PORTS",
            ),
        ] {
            let format = Some(Format::parse(format).unwrap());
            let text = shown(TableArgs { format, ..TableArgs::default() }, None);
            assert_eq!(text.lines().next(), Some(expect));
        }
        let json = TableArgs { format: Some(Format::Json), ..TableArgs::default() };
        let line = shown(json, None).lines().next().unwrap().to_owned();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), sandboxes()[0]);
    }

    #[test]
    fn unknown_columns_keys_and_fields_are_refused_with_a_suggestion() {
        use crate::ui::wording::{check, shown};

        let error = |args: TableArgs| args.view(LIST).unwrap_err();
        let args = TableArgs::default;
        let format = |text: &str| Some(Format::parse(text).unwrap());
        let errors = [
            ("--columns nmae", error(TableArgs { columns: vec!["nmae".to_owned()], ..args() })),
            ("--sort -stat", error(TableArgs { sort: Some("-stat".to_owned()), ..args() })),
            ("--format {{.Status}}", error(TableArgs { format: format("{{.Status}}"), ..args() })),
            (
                "vm show --format {{.Stat}}",
                View::formatted(List { verb: "vm show", columns: &[] }, Format::parse("{{.Stat}}").unwrap())
                    .unwrap_err(),
            ),
        ];
        check("errors_of_lists", &shown(errors));
    }
}
