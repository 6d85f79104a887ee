//! `banger image build`.

use std::path::PathBuf;

use clap::Args;

use crate::{
    build::{self, Reporter, Request},
    client::{bus::Bus, job::Jobs, pull::PullPolicy, service::Kind},
    command::{image::saved, vm::size_args::SizeArgs},
    error::Result,
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

/// Build an image from a recipe or a Dockerfile
///
/// The steps run as the guest's root in a throw-away sandbox of the base image, with internet access (NAT). The image is
/// made of its disk, without what identifies the sandbox: machine id, ssh host keys, random seed, leases, histories
/// and temporary files. Nothing else of the sandbox stays, even if banger is killed.
///
/// A recipe is a TOML file; /usr/share/banger/recipes has one for the default image. Of a Dockerfile, FROM, RUN, COPY,
/// ADD of local files, ENV, ARG, WORKDIR, USER, LABEL, CMD, ENTRYPOINT, EXPOSE and STOPSIGNAL are supported, and so is
/// .dockerignore.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image build debian-bookworm          a recipe of the package, by its name
  banger image build ./tool.toml
  banger image build . --name app             the Dockerfile in this directory
  banger image build . -f ci/Dockerfile --name ci --build-arg VERSION=2

Next: `banger vm run --image app`.")]
pub struct Build {
    /// Name of a shipped recipe, or path of a recipe, of a Dockerfile, or of a directory with one
    #[arg(value_name = "RECIPE|DIR")]
    what: String,
    /// Dockerfile or recipe to use with the files of the directory
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name for the image [default: the recipe's]
    #[arg(short = 't', long, visible_alias = "tag", value_name = "NAME")]
    name: Option<String>,
    /// Value for an ARG of the Dockerfile
    #[arg(long, value_name = "NAME=VALUE", value_parser = build::build_arg)]
    build_arg: Vec<(String, String)>,
    /// Replace your image of the same name
    #[arg(long)]
    force: bool,
    /// Keep the sandbox if a step fails, to look into it
    #[arg(long)]
    keep: bool,
    /// When to pull the base image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: PullPolicy,
    /// Kernel that the sandbox boots [default: the base image's, else the service's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Print a JSON object on each line: steps, their output, and the image
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sizes: SizeArgs,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Build {
    pub async fn run(&self) -> Result<u8> {
        // Mistakes in the recipe are reported before anything is created.
        let recipe = build::read(&self.what, self.file.as_deref())?;
        let name = self.name.as_deref().or(recipe.name.as_deref()).ok_or_else(saved::unnamed)?;
        let bus = Bus::connect().await?;
        let jobs = Jobs::of(&bus);
        let mut listener = Signals::catch()?.listen();
        let reporter = Reporter::new(Progress::new(self.progress), self.json);
        let request = Request {
            recipe: &recipe,
            name,
            arguments: &self.build_arg,
            force: self.force,
            keep: self.keep,
            pull: self.pull,
            kernel: self.kernel.clone(),
            sizes: self.sizes.clone(),
        };
        let image = build::build(&bus, &jobs, &reporter, &mut listener, &request).await?;
        let image = bus.properties(&image, Kind::Image.interface()).await?;
        reporter.image(&image.json());
        if !self.json {
            output::text(&format!("{}\n", image.name()))?;
        }
        Ok(0)
    }
}
