//! Serves the kernel's own requests for modules in images without `modprobe`: the kernel then runs this program under
//! another name.
//!
//! It reads the text tables of depmod(8), and no configuration: an image that has any also has `modprobe`.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::ExitCode,
};

use crate::{apply, log};

/// Path of the program for the kernel, which resolves it in the root of the first process.
const PROGRAM: &str = "/run/banger-modprobe";
/// Where the kernel keeps the path of its `modprobe`.
const SETTING: &str = "/proc/sys/kernel/modprobe";
const OWN_PROGRAM: &str = "/init";

/// Makes the kernel run this program if the image has nothing at the path of `modprobe`. Must be called before the
/// root is switched.
pub fn install_helper(new_root: &str) -> io::Result<()> {
    let known = match fs::read_to_string(SETTING) {
        Ok(known) => known,
        // A kernel without modules.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let known = known.trim().trim_start_matches('/');
    // With an empty path, the kernel runs no program.
    if known.is_empty() || apply::has_program(new_root, Path::new(known))? {
        return Ok(());
    }
    File::create(PROGRAM)?;
    rustix::mount::mount_bind(OWN_PROGRAM, PROGRAM)?;
    fs::write(SETTING, PROGRAM)
}

/// Returns whether the kernel has started this process to load a module.
pub fn is_request(arguments: &[String]) -> bool {
    arguments.first().is_some_and(|program| program == PROGRAM)
}

/// Loads the module that the kernel requests: the last argument.
pub fn run(arguments: &[String]) -> ExitCode {
    let loaded = arguments.last().map_or(Ok(false), |wanted| load_own(wanted));
    match loaded {
        Ok(true) => ExitCode::SUCCESS,
        // The kernel requests many modules that do not exist.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log::error(&format!("cannot load {:?}: {error}", arguments.last()));
            ExitCode::FAILURE
        }
    }
}

/// Loads a module of the kernel that runs. Returns whether there is any.
pub fn load_own(wanted: &str) -> io::Result<bool> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    load(&Path::new("/lib/modules").join(release), wanted)
}

/// Loads a module, or all modules with this alias, after their dependencies. Returns whether there is any.
fn load(directory: &Path, wanted: &str) -> io::Result<bool> {
    let tables = |name: &str| fs::read_to_string(directory.join(name));
    let (dep, aliases) = (tables("modules.dep")?, tables("modules.alias")?);
    let paths = paths(&dep, &aliases, wanted);
    for path in &paths {
        let module = File::open(directory.join(path))?;
        match rustix::system::finit_module(&module, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(!paths.is_empty())
}

/// Returns the files to load, in order.
fn paths<'a>(dep: &'a str, aliases: &str, wanted: &str) -> Vec<&'a str> {
    let wanted = normal(wanted);
    let of_alias = aliases.lines().filter_map(|line| {
        let (alias, name) = line.strip_prefix("alias ")?.rsplit_once(' ')?;
        matches(normal(alias).as_bytes(), wanted.as_bytes()).then(|| normal(name))
    });
    let names: Vec<String> = of_alias.chain([wanted.clone()]).collect();
    let mut paths = Vec::new();
    for line in dep.lines() {
        let Some((path, needed)) = line.split_once(':') else { continue };
        let name = path.rsplit('/').next().and_then(|file| file.strip_suffix(".ko"));
        if !name.is_some_and(|name| names.contains(&normal(name))) {
            continue;
        }
        for path in needed.split_ascii_whitespace().rev().chain([path]) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths
}

/// Returns the name with `_` for `-`, except in a range such as `[0-9]`.
fn normal(name: &str) -> String {
    let mut is_range = false;
    let normal = |c| {
        is_range = (is_range || c == '[') && c != ']';
        if c == '-' && !is_range { '_' } else { c }
    };
    name.chars().map(normal).collect()
}

/// Returns whether a pattern of `*`, `?` and ranges matches the whole text.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], text) => text.is_empty(),
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        ([b'?', rest @ ..], [_, text @ ..]) => matches(rest, text),
        ([b'[', rest @ ..], [first, text @ ..]) => {
            let Some(end) = rest.iter().position(|&byte| byte == b']') else { return false };
            let has = in_range(&rest[..end], *first);
            has && matches(&rest[end + 1..], text)
        }
        ([one, pattern @ ..], [other, text @ ..]) => one == other && matches(pattern, text),
        (_, []) => false,
    }
}

fn in_range(range: &[u8], byte: u8) -> bool {
    match range {
        [first, b'-', last, rest @ ..] => (first..=last).contains(&&byte) || in_range(rest, byte),
        [one, rest @ ..] => *one == byte || in_range(rest, byte),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/bridge/br-netfilter.ko: kernel/net/bridge/bridge.ko kernel/net/llc/llc.ko\n\
                       kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                       kernel/net/llc/llc.ko:\nkernel/fs/fuse/fuse.ko:\nkernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko\n";
    const ALIASES: &str = "# Aliases.\nalias rtnl-link-bridge bridge\nalias fs-fuse fuse\nalias virtio:d0000001Av* virtiofs\n\
                           alias net-pf-1[0-2]-x llc\n";

    fn check(wanted: &str, expect: &[&str]) {
        let files: Vec<&str> =
            paths(DEP, ALIASES, wanted).into_iter().filter_map(|path| path.rsplit('/').next()).collect();
        assert_eq!(files, expect, "{wanted}");
    }

    #[test]
    fn a_module_is_found_by_name_and_alias_after_its_dependencies() {
        check("bridge", &["llc.ko", "stp.ko", "bridge.ko"]);
        check("rtnl-link-bridge", &["llc.ko", "stp.ko", "bridge.ko"]);
        check("br_netfilter", &["llc.ko", "bridge.ko", "br-netfilter.ko"]);
        check("fs-fuse", &["fuse.ko"]);
        check("virtio:d0000001Av00001AF4", &["fuse.ko", "virtiofs.ko"]);
        check("net-pf-11-x", &["llc.ko"]);
        check("net-pf-13-x", &[]);
        check("ext5", &[]);
        check("", &[]);
    }

    #[test]
    fn patterns_match_as_a_whole() {
        for (pattern, text, expect) in [
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("*", "", true),
            ("a?", "a", false),
            ("[a-c]x", "bx", true),
            ("[ac", "a", false),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expect, "{pattern} {text}");
        }
    }
}
