//! Loads the modules that the host selected, in its order.

use std::{
    fs::{self, File},
    io,
};

use banger_proto::guest::config::MODULES_PATH;

use crate::log;

/// Loads every module in the list. A failure is reported as a problem, and loading continues, because the next module
/// may not depend on it.
pub fn load() -> Vec<String> {
    let list = match fs::read_to_string(MODULES_PATH) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("cannot read the list of modules: {error}")],
    };
    let mut problems = Vec::new();
    for path in list.lines().filter(|line| !line.is_empty()) {
        if let Err(error) = load_one(path) {
            let problem = format!("cannot load {path}: {error}");
            log::error(&problem);
            problems.push(problem);
        }
    }
    problems
}

fn load_one(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
