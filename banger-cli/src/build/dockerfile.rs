//! Parses Dockerfiles, as far as a build in a sandbox can do what they say. Everything else is refused by line, with
//! what to do instead. The format is <https://docs.docker.com/reference/dockerfile/>.

use std::path::Path;

use super::{
    instruction::{Instruction, Recipe, Text, What, digest, refused},
    template::{is_name, words},
};
use crate::{
    error::{Error, Result},
    ui::suggest,
};

const INSTRUCTIONS: [&str; 18] = [
    "FROM",
    "RUN",
    "COPY",
    "ADD",
    "ENV",
    "ARG",
    "WORKDIR",
    "USER",
    "LABEL",
    "CMD",
    "ENTRYPOINT",
    "EXPOSE",
    "STOPSIGNAL",
    "SHELL",
    "VOLUME",
    "HEALTHCHECK",
    "ONBUILD",
    "MAINTAINER",
];
/// Instructions that are refused, and what to do.
const UNSUPPORTED: [(&str, &str); 5] = [
    ("SHELL", "write RUN [\"program\", \"argument\"] for another shell"),
    ("VOLUME", "remove it: all disks of a sandbox are its own"),
    ("HEALTHCHECK", "remove it: `banger vm health` checks the guest"),
    ("ONBUILD", "write the instruction where it is needed"),
    ("MAINTAINER", "write LABEL maintainer=… instead"),
];
/// Archives that Docker would unpack.
const ARCHIVES: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst"];
/// How much of an instruction progress shows.
const MAX_SHOWN: usize = 80;

/// Parses a Dockerfile.
pub fn parse(text: &str, file: &Path, context: &Path) -> Result<Recipe> {
    let at = |line: usize| move |why: String| refused(file, line, why);
    let mut base = None;
    let (mut base_arguments, mut instructions) = (Vec::new(), Vec::new());
    for (line, logical) in logical_lines(text).map_err(|(line, why)| refused(file, line, why))? {
        let (word, rest) = logical.split_once(char::is_whitespace).unwrap_or((&logical, ""));
        let (word, rest) = (word.to_ascii_uppercase(), rest.trim());
        let what = match word.as_str() {
            "FROM" if base.is_some() => {
                return Err(refused(file, line, "a build has one stage")
                    .with_hint("build the other stage first, and copy its files into this directory."));
            }
            "FROM" => {
                base = Some((line, from(rest).map_err(at(line))?));
                continue;
            }
            "ARG" if base.is_none() => {
                base_arguments.extend(arguments(rest).map_err(at(line))?);
                continue;
            }
            _ if base.is_none() => {
                return Err(refused(file, line, format!("{word} is before FROM")));
            }
            word => instruction(word, rest).map_err(at(line))?,
        };
        let shown = shown(&logical);
        instructions.extend(what.into_iter().map(|what| Instruction { line, shown: shown.clone(), what }));
    }
    let (base_line, base) = base.ok_or_else(|| {
        let message = format!("cannot use {}: it has no FROM", file.display());
        Error::Refused(message)
            .with_hint("its first instruction names the base image, such as FROM debian:bookworm.")
    })?;
    Ok(Recipe {
        file: file.to_owned(),
        digest: digest(text),
        context: context.to_owned(),
        name: None,
        base,
        base_line,
        base_arguments,
        instructions,
    })
}

/// Joins continued lines, and removes comments. Returns each instruction with its first line.
fn logical_lines(text: &str) -> Result<Vec<(usize, String)>, (usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        let trimmed = line.trim();
        if let Some(comment) = trimmed.strip_prefix('#') {
            let directive: String = comment.to_ascii_lowercase().split_whitespace().collect();
            if lines.is_empty() && directive.starts_with("escape=") && directive != "escape=\\" {
                return Err((number, "only the backslash can continue a line".to_owned()));
            }
            continue;
        }
        if trimmed.is_empty() {
            continue;
        }
        let (part, continues) = match line.trim_end().strip_suffix('\\') {
            Some(part) => (part, true),
            None => (line.trim_end(), false),
        };
        match lines.last_mut().filter(|_| open) {
            Some((_, logical)) => logical.push_str(part),
            None => lines.push((number, part.trim_start().to_owned())),
        }
        open = continues;
    }
    Ok(lines)
}

fn instruction(word: &str, rest: &str) -> Result<Vec<What>, String> {
    if let Some((_, instead)) = UNSUPPORTED.iter().find(|(known, _)| *known == word) {
        return Err(format!("{word} is not supported; {instead}"));
    }
    if rest.is_empty() {
        return Err(format!("{word} has no argument"));
    }
    let one = |rest: &str| Text::Template(rest.to_owned());
    Ok(vec![match word {
        "RUN" => What::Run(run(rest)?),
        "COPY" | "ADD" => copy(word, rest)?,
        "ENV" => What::Env(variables(rest)?),
        "ARG" => {
            return Ok(arguments(rest)?
                .into_iter()
                .map(|(name, default)| What::Arg(name, default))
                .collect());
        }
        "WORKDIR" => What::Workdir(one(rest)),
        "USER" => What::User(one(rest)),
        "LABEL" => {
            let label = |(key, value): (String, Text)| (Text::Template(key), value);
            What::Label(pairs(rest)?.into_iter().map(label).collect())
        }
        "CMD" => What::Cmd(command(rest)?),
        "ENTRYPOINT" => What::Entrypoint(command(rest)?),
        "EXPOSE" => What::Expose(words(rest)?.into_iter().map(Text::Template).collect()),
        "STOPSIGNAL" => What::StopSignal(one(rest)),
        other => {
            let alike = suggest::closest(other, INSTRUCTIONS);
            let suggestion = alike.map(|word| format!("; did you mean {word}")).unwrap_or_default();
            return Err(format!("there is no instruction {other}{suggestion}"));
        }
    }])
}

fn from(rest: &str) -> Result<Text, String> {
    let words = words(rest)?;
    if words.first().is_some_and(|word| word.starts_with("--")) {
        return Err("FROM takes no options; sandboxes run the platform of the host".to_owned());
    }
    match words.as_slice() {
        [base] if base == "scratch" => Err("FROM scratch has no files to boot; name a base image".to_owned()),
        [base] => Ok(Text::Template(base.clone())),
        [base, word, _] if word.eq_ignore_ascii_case("as") => Ok(Text::Template(base.clone())),
        _ => Err("FROM takes one image".to_owned()),
    }
}

fn arguments(rest: &str) -> Result<Vec<(String, Option<Text>)>, String> {
    let argument = |word: String| {
        let (name, default) = match word.split_once('=') {
            Some((name, default)) => (name.to_owned(), Some(Text::Template(default.to_owned()))),
            None => (word, None),
        };
        match is_name(&name) {
            true => Ok((name, default)),
            false => Err(format!("{name} is not the name of an argument")),
        }
    };
    words(rest)?.into_iter().map(argument).collect()
}

fn variables(rest: &str) -> Result<Vec<(String, Text)>, String> {
    let pairs = pairs(rest)?;
    match pairs.iter().find(|(name, _)| name.is_empty() || name.contains(['$', '"', '\''])) {
        Some((name, _)) => Err(format!("\"{name}\" is not the name of a variable")),
        None => Ok(pairs),
    }
}

/// Parses `KEY=VALUE …`, or the older `KEY VALUE`.
fn pairs(rest: &str) -> Result<Vec<(String, Text)>, String> {
    let all = words(rest)?;
    if all.first().is_some_and(|first| !first.contains('=')) {
        let (key, value) = rest.split_once(char::is_whitespace).ok_or("a value is missing")?;
        return Ok(vec![(key.to_owned(), Text::Template(value.trim().to_owned()))]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), Text::Template(value.to_owned()))),
        None => Err(format!("{word} has no value")),
    };
    all.into_iter().map(pair).collect()
}

fn run(rest: &str) -> Result<Vec<String>, String> {
    if let Some(option) = rest.split_whitespace().next().filter(|word| word.starts_with("--")) {
        let name = option.split('=').next().unwrap_or(option);
        return Err(format!("RUN {name} is not supported; copy what the command needs with COPY"));
    }
    if rest.contains("<<") && rest.split_whitespace().any(|word| word.starts_with("<<")) {
        return Err("a here-document is not supported; put the commands into a file, and COPY it".to_owned());
    }
    command(rest)
}

/// Parses a command: a JSON array of words, or a line for the shell.
fn command(rest: &str) -> Result<Vec<String>, String> {
    if rest.starts_with('[')
        && let Ok(words) = serde_json::from_str::<Vec<String>>(rest)
    {
        return match words.is_empty() {
            true => Err("the command is empty".to_owned()),
            false => Ok(words),
        };
    }
    Ok(["/bin/sh", "-c", rest].map(str::to_owned).to_vec())
}

fn copy(word: &str, rest: &str) -> Result<What, String> {
    let mut owner = None;
    let mut rest = rest;
    while let Some(option) = rest.split_whitespace().next().filter(|word| word.starts_with("--")) {
        match option.split_once('=') {
            Some(("--chown", user)) => owner = Some(Text::Template(user.to_owned())),
            Some(("--from", _)) => {
                return Err(format!("{word} --from is not supported; a build has one stage"));
            }
            _ => return Err(format!("{word} {option} is not supported; RUN a command that does it")),
        }
        rest = rest[option.len()..].trim_start();
    }
    let paths: Vec<Text> = match serde_json::from_str::<Vec<String>>(rest) {
        Ok(paths) => paths.into_iter().map(Text::Literal).collect(),
        Err(_) => words(rest)?.into_iter().map(Text::Template).collect(),
    };
    let text = |path: &Text| match path {
        Text::Literal(text) | Text::Template(text) => text.clone(),
    };
    if paths.iter().any(|path| text(path).starts_with("<<")) {
        return Err("a here-document is not supported; copy a file".to_owned());
    }
    let Some((to, sources)) = paths.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        return Err(format!("{word} takes a source and a destination"));
    };
    if word == "ADD" {
        for source in sources.iter().map(text) {
            if source.contains("://") || source.starts_with("git@") {
                return Err("ADD of an address is not supported; RUN curl in the sandbox".to_owned());
            }
            if ARCHIVES.iter().any(|extension| source.ends_with(extension)) {
                return Err("ADD does not unpack archives; COPY it, and RUN tar".to_owned());
            }
        }
    }
    Ok(What::Copy { sources: sources.to_vec(), to: to.clone(), owner })
}

/// Shortens an instruction for people.
fn shown(logical: &str) -> String {
    let line = logical.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn recipe(text: &str) -> Result<Recipe> {
        parse(text, Path::new("Dockerfile"), Path::new("."))
    }

    fn refusal(text: &str) -> String {
        recipe(text).unwrap_err().to_string()
    }

    #[test]
    fn instructions_are_parsed_with_their_lines() {
        let text = "# syntax=docker/dockerfile:1\nARG V=12\n\nfrom debian:${V} AS base\nRUN apt-get update && \\\n  # why\n    \
                    apt-get install -y git\nENV A=1 B=\"two words\"\nENV OLD way of it\nCOPY --chown=ann a.txt b/ /srv/\n\
                    CMD [\"sh\", \"-l\"]\nENTRYPOINT run it\nEXPOSE 80 53/udp\nARG X Y=1\nLABEL a=b\n";
        let recipe = recipe(text).unwrap();
        let template = |text: &str| Text::Template(text.to_owned());
        assert_eq!((recipe.base_line, recipe.base), (4, template("debian:${V}")));
        assert_eq!(recipe.base_arguments, [("V".to_owned(), Some(template("12")))]);
        let lines: Vec<usize> = recipe.instructions.iter().map(|instruction| instruction.line).collect();
        assert_eq!(lines, [5, 8, 9, 10, 11, 12, 13, 14, 14, 15]);
        let whats: Vec<What> = recipe.instructions.into_iter().map(|instruction| instruction.what).collect();
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let shell = "apt-get update &&     apt-get install -y git";
        assert_eq!(whats[0], What::Run(strings(&["/bin/sh", "-c", shell])));
        let env = |pairs: &[(&str, &str)]| {
            What::Env(pairs.iter().map(|(name, value)| ((*name).to_owned(), template(value))).collect())
        };
        assert_eq!(whats[1], env(&[("A", "1"), ("B", "\"two words\"")]));
        assert_eq!(whats[2], env(&[("OLD", "way of it")]));
        let copy = What::Copy {
            sources: vec![template("a.txt"), template("b/")],
            to: template("/srv/"),
            owner: Some(template("ann")),
        };
        assert_eq!(whats[3], copy);
        assert_eq!(whats[4], What::Cmd(strings(&["sh", "-l"])));
        assert_eq!(whats[5], What::Entrypoint(strings(&["/bin/sh", "-c", "run it"])));
        assert_eq!(whats[6], What::Expose(vec![template("80"), template("53/udp")]));
        assert_eq!(whats[7], What::Arg("X".to_owned(), None));
    }

    #[test]
    fn what_a_build_cannot_do_is_refused_by_line_with_what_to_do() {
        for (text, expect) in [
            ("", "it has no FROM"),
            ("RUN x", "line 1: RUN is before FROM"),
            ("FROM a\nFROM b", "line 2: a build has one stage"),
            ("FROM --platform=linux/arm64 a", "line 1: FROM takes no options"),
            ("FROM scratch", "line 1: FROM scratch has no files to boot"),
            ("FROM a\n\nVOLUME /data", "line 3: VOLUME is not supported; remove it"),
            ("FROM a\nHEALTHCHECK NONE", "line 2: HEALTHCHECK is not supported"),
            ("FROM a\nONBUILD RUN x", "line 2: ONBUILD is not supported"),
            ("FROM a\nSHELL [\"bash\"]", "line 2: SHELL is not supported"),
            ("FROM a\nRUN --mount=type=cache,target=/x make", "line 2: RUN --mount is not supported"),
            ("FROM a\nRUN <<EOF\nmake\nEOF", "line 2: a here-document is not supported"),
            ("FROM a\nCOPY --from=b /x /x", "line 2: COPY --from is not supported"),
            ("FROM a\nCOPY --link x /x", "line 2: COPY --link is not supported"),
            ("FROM a\nCOPY x", "line 2: COPY takes a source and a destination"),
            ("FROM a\nADD https://x/y /y", "line 2: ADD of an address is not supported; RUN curl"),
            ("FROM a\nADD x.tar.gz /y", "line 2: ADD does not unpack archives; COPY it"),
            ("FROM a\nENV =x", "line 2: \"\" is not the name of a variable"),
            ("FROM a\nARG 1=x", "line 2: 1 is not the name of an argument"),
            ("FROM a\nRUM x", "line 2: there is no instruction RUM; did you mean RUN"),
            ("FROM a\nRUN", "line 2: RUN has no argument"),
            ("FROM a\nLABEL a='b", "line 2: a quotation mark (') has no end"),
            ("# escape=`\nFROM a", "line 1: only the backslash"),
        ] {
            let message = refusal(text);
            assert!(message.contains(expect), "{text:?}: {message}");
        }
    }
}
