//! `banger image tag`.

use clap::Args;

use crate::{
    client::{bus::Bus, service::Kind},
    error::Result,
    ui::output,
};

/// Give an image another name
///
/// Each name is an image of its own; they share one file. The new one is yours alone, even if the other one is
/// shared. Deleting one of them keeps the other.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger image tag debian-bookworm base")]
pub struct Tag {
    /// Name, id or id prefix
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The additional name
    #[arg(value_name = "NEW-NAME")]
    new_name: String,
    /// Print the new image as a JSON object
    #[arg(long)]
    json: bool,
}

impl Tag {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let image = bus.find(Kind::Image, &self.image).await.map_err(|error| error.about(&self.image))?;
        let tagged = bus.tag_image(&image, &self.new_name).await;
        let tag = tagged.map_err(|error| error.about(&self.image))?;
        if self.json {
            output::json(&bus.properties(&tag, Kind::Image.interface()).await?.json())?;
        } else {
            output::text(&format!("{}: tagged {}\n", self.image, self.new_name))?;
        }
        Ok(0)
    }
}
