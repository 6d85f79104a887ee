//! `banger agent show`.

use banger_proto::size::Bytes;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use serde_json::{Value, json};

use crate::{
    coding_agent::{self, Found, Image},
    command::complete,
    error::Result,
    ui::{output, table::Table},
};

/// Show all details of a preset
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger agent show claude
  banger agent show claude --json

Of your files and variables, only the names are shown.")]
pub struct Show {
    /// Name of the preset
    #[arg(value_name = "AGENT", add = ArgValueCompleter::new(complete::agents))]
    name: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub fn run(&self) -> Result<u8> {
        let found = coding_agent::named(&self.name)?;
        match self.json {
            true => output::json(&json_of(&found))?,
            false => output::text(&text_of(&found))?,
        }
        Ok(0)
    }
}

/// Returns the image, and whether it is built.
fn image_of(found: &Found) -> (Option<String>, bool) {
    match &found.preset.image {
        Image::Default => (None, false),
        Image::Named(name) => (Some(name.clone()), false),
        Image::Recipe(_) => (Some(found.preset.image_name()), true),
    }
}

/// Returns a preset as a JSON object.
pub fn json_of(found: &Found) -> Value {
    let (preset, (image, built)) = (&found.preset, image_of(found));
    let size = |size: Option<Bytes>| size.map(|Bytes(bytes)| bytes);
    json!({
        "name": preset.name,
        "description": preset.description,
        "origin": found.origin.word(),
        "file": found.file.display().to_string(),
        "command": preset.command,
        "image": image,
        "image_is_built": built,
        "egress": preset.egress,
        "pass_env": preset.pass_env,
        "env": preset.env,
        "files": preset.files.iter().map(|file| json!({"path": file.path, "secret": file.secret})).collect::<Value>(),
        "vcpus": preset.sizes.vcpus,
        "memory": size(preset.sizes.memory),
        "root_size": size(preset.sizes.root_size),
        "disk_size": size(preset.sizes.disk_size),
    })
}

fn text_of(found: &Found) -> String {
    let (preset, (image, built)) = (&found.preset, image_of(found));
    let image = match (image, built) {
        (None, _) => "the default image".to_owned(),
        (Some(image), true) => format!("{image}, built from its recipe"),
        (Some(image), false) => image,
    };
    let files = |secret: bool| {
        let chosen = preset.files.iter().filter(|file| file.secret == secret);
        chosen.map(|file| file.path.as_str()).collect::<Vec<_>>().join(" ")
    };
    let env: Vec<String> = preset.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let sizes = preset.sizes;
    let size = |size: Option<Bytes>| size.map(|size| size.to_string()).unwrap_or_default();
    let mut table = Table::pairs();
    for (key, value) in [
        ("name", preset.name.clone()),
        ("description", preset.description.clone()),
        ("from", format!("{}, {}", found.origin.word(), found.file.display())),
        ("command", preset.command.join(" ")),
        ("image", image),
        ("egress", preset.egress.join(" ")),
        ("variables passed", preset.pass_env.join(" ")),
        ("variables set", env.join(" ")),
        ("files", files(false)),
        ("files with secrets", files(true)),
        ("vcpus", sizes.vcpus.map(|count| count.to_string()).unwrap_or_default()),
        ("memory", size(sizes.memory)),
        ("root size", size(sizes.root_size)),
        ("disk size", size(sizes.disk_size)),
    ] {
        table.row([key.to_owned(), value]);
    }
    table.text()
}
