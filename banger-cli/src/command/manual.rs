//! `banger manual`: writes the manual pages, for packagers.

use std::{fs, io, path::PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;

use crate::{
    cli::{parser, verbs_of_vm},
    error::{Error, Result},
};

/// Write a manual page for each command into a directory
#[derive(Debug, Args)]
pub struct Manual {
    /// Directory, created if it is missing
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
    /// The date on the pages, such as 2026-11-21
    #[arg(long)]
    date: String,
}

impl Manual {
    pub fn run(&self) -> Result<u8> {
        let written = fs::create_dir_all(&self.directory).and_then(|()| {
            let cli = parser().disable_help_subcommand(true);
            // A verb of `banger vm` has one page, there.
            let of_vm = verbs_of_vm(&cli);
            let mut cli = cli.mut_subcommands(|verb| {
                let is_hidden = verb.is_hide_set() || of_vm.iter().any(|known| known == verb.get_name());
                verb.hide(is_hidden)
            });
            cli.build();
            self.write(&cli)
        });
        written.map_err(|source| Error::io(format!("write to {}", self.directory.display()), source))?;
        Ok(0)
    }

    /// Writes the page of a command and of its subcommands.
    fn write(&self, command: &Command) -> io::Result<()> {
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        let page = Man::new(command.clone()).title(name.to_uppercase()).date(&self.date);
        let mut text = Vec::new();
        page.render(&mut text)?;
        fs::write(self.directory.join(format!("{name}.1")), clean_page(&String::from_utf8_lossy(&text)))?;
        command.get_subcommands().filter(|verb| !verb.is_hide_set()).try_for_each(|verb| self.write(verb))
    }
}

/// Removes what mandoc(1) warns about: line breaks next to an empty line, and trailing blanks.
fn clean_page(page: &str) -> String {
    let lines: String = page.lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
    lines.replace(".br\n\n.br\n", ".sp\n")
}
