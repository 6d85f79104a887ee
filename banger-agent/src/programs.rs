//! Applies the image's defaults for running programs to a request.

use std::path::Path;

use banger_proto::guest::{Exec, config::Programs};

/// Returns the request, completed with the image's defaults. Returns `None` if it asks for the entry point of
/// an image that has none.
pub fn complete(programs: &Programs, mut exec: Exec) -> Option<Exec> {
    if exec.of_image {
        let arguments = if exec.argv.is_empty() { &programs.cmd } else { &exec.argv };
        exec.argv = programs.entrypoint.iter().chain(arguments).cloned().collect();
        if exec.argv.is_empty() {
            return None;
        }
    }
    // Later values override earlier ones.
    let wanted = |(name, _): &&(String, String)| !exec.unset.contains(name);
    exec.env = programs.env.iter().filter(wanted).cloned().chain(exec.env).collect();
    let is_the_images = exec.user.is_none();
    exec.user = exec.user.or_else(|| programs.user.clone());
    // The image's directory may not be accessible to another user.
    if exec.cwd.is_none() && is_the_images {
        exec.cwd = programs.working_dir.clone().filter(|directory| Path::new(directory).is_dir());
    }
    Some(exec)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn programs() -> Programs {
        Programs {
            env: vec![("PATH".into(), "/opt/bin".into()), ("A".into(), "image".into())],
            user: Some("www".into()),
            working_dir: Some("/proc".into()),
            entrypoint: list("/init --fast"),
            cmd: list("serve all"),
        }
    }

    #[test]
    fn the_image_fills_in_what_the_request_leaves_open() {
        let exec = complete(&programs(), Exec { argv: list("env"), ..Exec::default() }).unwrap();
        assert_eq!((exec.user.as_deref(), exec.cwd.as_deref()), (Some("www"), Some("/proc")));
        assert_eq!((exec.argv, exec.env), (list("env"), programs().env));
    }

    #[test]
    fn the_request_overrides_the_image() {
        let request = Exec {
            argv: list("env"),
            env: vec![("A".into(), "request".into())],
            user: Some("root".into()),
            ..Exec::default()
        };
        let exec = complete(&programs(), request).unwrap();
        assert_eq!((exec.user.as_deref(), exec.cwd), (Some("root"), None));
        assert_eq!(exec.env.last().unwrap().1, "request");
        let unset = Exec { unset: list("PATH B"), env: vec![("B".into(), "1".into())], ..Exec::default() };
        let env = complete(&programs(), unset).unwrap().env;
        assert_eq!(env, [("A".into(), "image".into()), ("B".into(), "1".into())]);
        let elsewhere = Exec { cwd: Some("/tmp".into()), ..Exec::default() };
        assert_eq!(complete(&programs(), elsewhere).unwrap().cwd.as_deref(), Some("/tmp"));
        let gone = Programs { working_dir: Some("/no/such".into()), ..programs() };
        assert_eq!(complete(&gone, Exec::default()).unwrap().cwd, None);
    }

    #[test]
    fn the_entry_point_of_the_image_runs_on_request() {
        let argv = |programs: &Programs, argv: &str| {
            complete(programs, Exec { argv: list(argv), of_image: true, ..Exec::default() })
                .map(|exec| exec.argv)
        };
        assert_eq!(argv(&programs(), ""), Some(list("/init --fast serve all")));
        assert_eq!(argv(&programs(), "one"), Some(list("/init --fast one")));
        let without = Programs { entrypoint: Vec::new(), ..programs() };
        assert_eq!(argv(&without, ""), Some(list("serve all")));
        assert_eq!(argv(&Programs::default(), ""), None);
    }
}
