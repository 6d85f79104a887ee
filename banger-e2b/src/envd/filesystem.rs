//! Directories and entries in a sandbox: the service `filesystem.Filesystem` of envd.
//!
//! Each call is a small program for the sandbox's shell, with paths as its arguments. It needs `stat`, `find`, `mv` and
//! the like, which GNU's and BusyBox's are good for.

use hyper::{body::Incoming, http::request::Parts};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::user;
use crate::{
    banger::{Exec, REPLY, up_to},
    connect,
    http::{Code, Refusal, Result, read_json},
    server::Server,
};

/// Limit on what a program prints: the entries of a large directory.
const MAX_OUTPUT: u64 = 4 << 20;
/// Limit on entries, which take more memory than their text.
const MAX_ENTRIES: usize = 20_000;
/// Limit on what is kept of an error.
const MAX_ERROR: u64 = 4 << 10;
/// How deep a directory is listed at most.
const MAX_DEPTH: u32 = 64;

/// What every program begins with: how it fails, and what its first argument means. A relative path begins at the
/// user's home.
pub const BEGIN: &str = r#"
fail() { printf '%s\n' "$2" >&2; exit "$1"; }
from_home() {
    case $1 in
        /*) path=$1 ;;
        '~') path=${HOME:-/} ;;
        '~/'*) path=${HOME:-}/${1#'~/'} ;;
        *) path=${HOME:-}/$1 ;;
    esac
}
from_home "$1"
"#;
/// Prints an entry: what `stat` says on a line, then its path and the target of a link, each with a zero byte.
const ENTRY: &str = r#"
entry() {
    stat -c '%f %s %Y %U %G' -- "$1" 2>/dev/null || return 0
    printf '%s\0' "$1"
    if [ -L "$1" ]; then readlink -n -- "$1"; fi
    printf '\0'
}
"#;
const STAT: &str = r#"
[ -e "$path" ] || [ -L "$path" ] || fail 65 "$path does not exist."
entry "$path"
"#;
const LIST: &str = r#"
[ -e "$path" ] || fail 65 "$path does not exist."
[ -d "$path" ] || fail 67 "$path is no directory."
cd -- "$path" 2>/dev/null || fail 68 "$path cannot be read."
base=${path%/}
find . -mindepth 1 -maxdepth "$2" -exec sh -c "$3"'
base=$1
shift
for each do entry "$base/${each#./}"; done' sh "$base" {} +
"#;
const MAKE: &str = r#"
[ -d "$path" ] && fail 66 "$path is there already."
[ -e "$path" ] && fail 67 "$path is no directory."
mkdir -p -- "$path" || exit 68
entry "$path"
"#;
const MOVE: &str = r#"
from=$path
from_home "$2"
[ -e "$from" ] || [ -L "$from" ] || fail 65 "$from does not exist."
if [ -d "$path" ] && [ ! -L "$path" ]; then fail 66 "$path is a directory."; fi
case $path in */*) mkdir -p -- "${path%/*}/" || exit 68 ;; esac
mv -f -- "$from" "$path" || exit 68
entry "$path"
"#;
const REMOVE: &str = r#"rm -rf -- "$path" || exit 68"#;

#[derive(Deserialize)]
struct Paths {
    #[serde(default)]
    path: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    destination: String,
    #[serde(default)]
    depth: u32,
}

/// Answers a call.
pub async fn answer(
    server: &Server,
    sandbox: &str,
    method: &str,
    parts: &Parts,
    body: Incoming,
) -> Result<Value> {
    if !matches!(method, "Stat" | "ListDir" | "MakeDir" | "Move" | "Remove") {
        return Err(Refusal::unimplemented(format!("{method} of directories")));
    }
    connect::check(parts, false)?;
    let user = user(parts)?;
    let paths: Paths = read_json(body).await?;
    let run = async |program: &[&str], arguments: &[&str]| {
        script(server, sandbox, user.clone(), &program.concat(), arguments).await
    };
    let one = |output: Vec<u8>| {
        let entry = entries(&output)?.into_iter().next();
        let entry = entry.ok_or_else(|| Refusal::new(Code::NotFound, "The path does not exist any more."))?;
        Ok(json!({ "entry": entry }))
    };
    let path = [cleaned(&paths.path)?];
    let [path] = path.each_ref().map(String::as_str);
    match method {
        "Stat" => one(run(&[BEGIN, ENTRY, STAT], &[path]).await?),
        "MakeDir" => one(run(&[BEGIN, ENTRY, MAKE], &[path]).await?),
        "ListDir" => {
            let depth = paths.depth.clamp(1, MAX_DEPTH).to_string();
            let mut found = entries(&run(&[BEGIN, LIST], &[path, &depth, ENTRY]).await?)?;
            found.sort_by(|a, b| a["path"].as_str().cmp(&b["path"].as_str()));
            Ok(json!({ "entries": found }))
        }
        "Move" => {
            let (from, to) = (cleaned(&paths.source)?, cleaned(&paths.destination)?);
            one(run(&[BEGIN, ENTRY, MOVE], &[&from, &to]).await?)
        }
        _ => {
            if matches!(path, "/" | "" | "~") {
                return Err(Refusal::new(Code::InvalidArgument, "The root and the home cannot be removed."));
            }
            run(&[BEGIN, REMOVE], &[path]).await.map(|_| json!({}))
        }
    }
}

/// Runs a program for the shell, and returns what it prints.
async fn script(
    server: &Server,
    sandbox: &str,
    user: Option<String>,
    program: &str,
    arguments: &[&str],
) -> Result<Vec<u8>> {
    server.sandboxes.check_running(sandbox).await?;
    let exec = shell(user, program, arguments, false);
    let mut running = server.banger.exec(sandbox, &exec)?;
    let (stdout, stderr) = (running.child.stdout.take(), running.child.stderr.take());
    let all = async {
        let (output, errors) = tokio::try_join!(up_to(stdout, MAX_OUTPUT), up_to(stderr, MAX_ERROR))?;
        Ok::<_, std::io::Error>((output, errors, running.child.wait().await?.code()))
    };
    let late = |_| Refusal::new(Code::DeadlineExceeded, "The sandbox did not answer in time.");
    let (output, errors, status) = timeout(REPLY, all).await.map_err(late)??;
    if let Some(refusal) = running.failure(status) {
        return Err(refusal);
    }
    if output.len() as u64 == MAX_OUTPUT {
        return Err(Refusal::new(Code::ResourceExhausted, "The directory has too many entries."));
    }
    match status {
        Some(0) => Ok(output),
        status => Err(failed(status, &errors)),
    }
}

/// Returns the command that runs a program of the shell.
pub fn shell(user: Option<String>, program: &str, arguments: &[&str], has_input: bool) -> Exec {
    let words = ["/bin/sh", "-c", program, "sh"].into_iter().chain(arguments.iter().copied());
    let argv = words.map(str::to_owned).collect();
    Exec { user, directory: Some("/".into()), argv, has_input, ..Exec::default() }
}

/// Returns what the exit status of a program means.
pub fn failed(status: Option<i32>, errors: &[u8]) -> Refusal {
    let text = String::from_utf8_lossy(errors);
    let code = match status {
        Some(65) => Code::NotFound,
        Some(66) => Code::AlreadyExists,
        Some(67) => Code::InvalidArgument,
        Some(68) => Code::PermissionDenied,
        _ => Code::Internal,
    };
    let message = match text.trim() {
        "" => "A program in the sandbox failed.",
        text => text,
    };
    Refusal::new(code, message)
}

/// Returns a path without `.`, `..` and double slashes. Links are not followed.
pub fn cleaned(path: &str) -> Result<String> {
    if path.contains('\0') {
        return Err(Refusal::new(Code::InvalidArgument, "A path has a zero byte."));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            // Above the root is the root; above the home is left to the shell.
            ".." if parts.last().is_some_and(|last| !matches!(*last, ".." | "~")) => {
                parts.pop();
            }
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    Ok(format!("{root}{}", parts.join("/")))
}

/// Reads the entries that a program printed.
fn entries(output: &[u8]) -> Result<Vec<Value>> {
    let unexpected =
        || Refusal::new(Code::Internal, "A program in the sandbox printed something unexpected.");
    let mut rest = output;
    let mut until = |end: u8| {
        let at = rest.iter().position(|byte| *byte == end)?;
        let (text, more) = (&rest[..at], &rest[at + 1..]);
        rest = more;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let mut entries = Vec::new();
    while let Some(line) = until(b'\n') {
        if entries.len() >= MAX_ENTRIES {
            return Err(Refusal::new(Code::ResourceExhausted, "The directory has too many entries."));
        }
        let (path, target) = (until(0).ok_or_else(unexpected)?, until(0).ok_or_else(unexpected)?);
        let fields: Vec<&str> = line.split(' ').collect();
        let [mode, size, time, owner, group] = *fields else { return Err(unexpected()) };
        let mode = u32::from_str_radix(mode, 16).map_err(|_| unexpected())?;
        let size: u64 = size.parse().map_err(|_| unexpected())?;
        let time: i64 = time.parse().map_err(|_| unexpected())?;
        let (kind, letter) = kind(mode);
        let name = path.rsplit('/').next().unwrap_or_default();
        let mut entry = json!({
            "name": if name.is_empty() { "/" } else { name },
            "type": kind,
            "path": path,
            // 64 bits are a text in the JSON of protobuf.
            "size": size.to_string(),
            "mode": mode & 0o7777,
            "permissions": format!("{letter}{}", permissions(mode)),
            "owner": owner,
            "group": group,
            "modifiedTime": Timestamp::from_second(time).unwrap_or_default().to_string(),
        });
        if kind == "FILE_TYPE_SYMLINK" {
            entry["symlinkTarget"] = target.into();
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Returns the type in envd's terms, and the letter that `ls` has for it (inode(7)).
fn kind(mode: u32) -> (&'static str, char) {
    match mode & 0o170_000 {
        0o100_000 => ("FILE_TYPE_FILE", '-'),
        0o040_000 => ("FILE_TYPE_DIRECTORY", 'd'),
        0o120_000 => ("FILE_TYPE_SYMLINK", 'l'),
        _ => ("FILE_TYPE_UNSPECIFIED", '?'),
    }
}

fn permissions(mode: u32) -> String {
    let letters = "rwxrwxrwx".chars().enumerate();
    letters.map(|(bit, letter)| if mode & (0o400 >> bit) != 0 { letter } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, path::Path, process::Command};

    use super::*;

    /// Runs a program in the shell of this host, and in BusyBox's if there is one.
    fn run(home: &Path, program: &[&str], arguments: &[&str]) -> std::result::Result<Vec<Value>, Code> {
        let exec = shell(None, &program.concat(), arguments, false);
        let output = Command::new(&exec.argv[0]).args(&exec.argv[1..]).env("HOME", home).output().unwrap();
        match output.status.code() {
            Some(0) => Ok(entries(&output.stdout).unwrap()),
            status => Err(failed(status, &output.stderr).code),
        }
    }

    #[test]
    fn entries_of_any_name_are_listed_as_deep_as_asked() {
        let home = tempfile::tempdir().unwrap();
        let odd = home.path().join("d/a\nb 'c\" $(d) -e");
        fs::create_dir_all(&odd).unwrap();
        fs::write(odd.join("f"), "12345").unwrap();
        std::os::unix::fs::symlink("no\nwhere", home.path().join("d/-link")).unwrap();
        let paths = |depth: &str| -> Vec<String> {
            let found = run(home.path(), &[BEGIN, LIST], &["d", depth, ENTRY]).unwrap();
            let mut paths: Vec<String> =
                found.iter().map(|entry| entry["path"].as_str().unwrap().to_owned()).collect();
            paths.sort();
            paths
        };
        let in_home = |name: &str| format!("{}/{name}", home.path().display());
        let (link, odd) = (in_home("d/-link"), odd.display().to_string());
        assert_eq!(paths("1"), [link.clone(), odd.clone()]);
        assert_eq!(paths("2"), [link.clone(), odd.clone(), format!("{odd}/f")]);
        let found = run(home.path(), &[BEGIN, ENTRY, STAT], &[&link]).unwrap();
        assert_eq!(found[0]["symlinkTarget"], "no\nwhere");
        assert_eq!(found[0]["type"], "FILE_TYPE_SYMLINK");
        let found = run(home.path(), &[BEGIN, ENTRY, STAT], &[&format!("{odd}/f")]).unwrap();
        assert_eq!((&found[0]["size"], &found[0]["name"]), (&json!("5"), &json!("f")));
    }

    #[test]
    fn directories_are_made_moved_and_removed_and_what_is_wrong_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let make = |path: &str| run(home.path(), &[BEGIN, ENTRY, MAKE], &[path]);
        let stat = |path: &str| run(home.path(), &[BEGIN, ENTRY, STAT], &[path]);
        let rename = |from: &str, to: &str| run(home.path(), &[BEGIN, ENTRY, MOVE], &[from, to]);
        let list = |path: &str| run(home.path(), &[BEGIN, LIST], &[path, "1", ENTRY]);
        assert_eq!(make("a/b").unwrap()[0]["type"], "FILE_TYPE_DIRECTORY");
        assert_eq!(make("a/b"), Err(Code::AlreadyExists));
        assert_eq!(stat("a/c"), Err(Code::NotFound));
        assert_eq!(list("a/c"), Err(Code::NotFound));
        fs::write(home.path().join("file"), "").unwrap();
        assert_eq!(list("file"), Err(Code::InvalidArgument));
        assert_eq!(make("file"), Err(Code::InvalidArgument));
        assert_eq!(rename("nothing", "x"), Err(Code::NotFound));
        assert_eq!(rename("file", "a/b"), Err(Code::AlreadyExists));
        assert_eq!(rename("file", "~/new/place").unwrap()[0]["name"], "place");
        assert!(home.path().join("new/place").exists());
        run(home.path(), &[BEGIN, REMOVE], &["a"]).unwrap();
        run(home.path(), &[BEGIN, REMOVE], &["a"]).unwrap();
        assert!(!home.path().join("a").exists());
    }

    #[test]
    fn paths_are_cleaned_and_stay_below_the_root() {
        for (path, clean) in [
            ("/a/../b//c/.", "/b/c"),
            ("/../..", "/"),
            ("a/./b/", "a/b"),
            ("../a", "../a"),
            ("~/../a", "~/../a"),
            ("", ""),
            ("/", "/"),
        ] {
            assert_eq!(cleaned(path).unwrap(), clean, "{path}");
        }
        assert!(cleaned("a\0b").is_err());
    }

    #[test]
    fn output_that_is_no_entry_is_refused() {
        for output in [&b"81a4 1 2 a\nb\0\0"[..], b"x 1 2 a b\nc\0\0", b"81a4 1 2 a b\nc\0"] {
            assert_eq!(entries(output).unwrap_err().code, Code::Internal);
        }
        assert!(entries(b"").unwrap().is_empty());
        let many = b"81a4 1 2 a b\nc\0\0".repeat(MAX_ENTRIES + 1);
        assert_eq!(entries(&many).unwrap_err().code, Code::ResourceExhausted);
    }
}
