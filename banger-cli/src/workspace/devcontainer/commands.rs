//! The commands that a devcontainer.json runs in the sandbox.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Limit on the commands of one moment, which run at the same time.
const MAX_COMMANDS: usize = 16;
/// Limit on a command, in bytes.
const MAX_LENGTH: usize = 16 << 10;

/// When a command runs, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The sandbox is new.
    OnCreate,
    /// After that, once the repository is there.
    UpdateContent,
    /// After that.
    PostCreate,
    /// The sandbox has booted.
    PostStart,
    /// A shell begins.
    PostAttach,
}

impl Moment {
    /// Every moment.
    pub const ALL: [Self; 5] =
        [Self::OnCreate, Self::UpdateContent, Self::PostCreate, Self::PostStart, Self::PostAttach];
    /// The moments of a new sandbox.
    pub const OF_CREATION: [Self; 3] = [Self::OnCreate, Self::UpdateContent, Self::PostCreate];

    /// Returns the setting with its commands.
    pub fn key(self) -> &'static str {
        match self {
            Self::OnCreate => "onCreateCommand",
            Self::UpdateContent => "updateContentCommand",
            Self::PostCreate => "postCreateCommand",
            Self::PostStart => "postStartCommand",
            Self::PostAttach => "postAttachCommand",
        }
    }

    /// Returns the moment of a setting.
    pub fn of(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|moment| moment.key() == key)
    }
}

/// A program and its arguments.
pub type Command = Vec<String>;

/// The commands after the creation, which are remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Later {
    /// Those of each boot.
    #[serde(default)]
    pub start: Vec<Command>,
    /// Those of each shell.
    #[serde(default)]
    pub attach: Vec<Command>,
}

/// Reads commands: a string is for a shell, a list is a program with its arguments, and an object has several of
/// either. The second value lists those that cannot be used, with the reason.
pub fn read(
    key: &str,
    value: &Value,
    fill: &impl Fn(&str) -> Result<String, String>,
) -> (Vec<Command>, Vec<(String, String)>) {
    let (mut commands, mut ignored) = (Vec::new(), Vec::new());
    let named: Vec<(String, &Value)> = match value {
        Value::Object(several) => {
            several.iter().map(|(name, command)| (format!("{key}.{name}"), command)).collect()
        }
        one => vec![(key.to_owned(), one)],
    };
    for (name, command) in named {
        match one(command, fill) {
            Ok(None) => {}
            Ok(Some(_)) if commands.len() == MAX_COMMANDS => {
                ignored.push((name, format!("there are more than {MAX_COMMANDS} commands")));
            }
            Ok(Some(command)) => commands.push(command),
            Err(why) => ignored.push((name, why)),
        }
    }
    (commands, ignored)
}

fn one(value: &Value, fill: &impl Fn(&str) -> Result<String, String>) -> Result<Option<Command>, String> {
    let words: Command = match value {
        Value::Null => return Ok(None),
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => vec!["/bin/sh".to_owned(), "-c".to_owned(), fill(text)?],
        Value::Array(list) => {
            let word = |word: &Value| fill(word.as_str().ok_or("it is not a list of strings")?);
            list.iter().map(word).collect::<Result<_, String>>()?
        }
        _ => return Err("it is not a command".to_owned()),
    };
    if words.iter().any(|word| word.contains('\0')) {
        return Err("it has a zero byte".to_owned());
    }
    if words.iter().map(String::len).sum::<usize>() > MAX_LENGTH {
        return Err(format!("it is longer than {} KiB", MAX_LENGTH >> 10));
    }
    Ok(Some(words).filter(|words| !words.is_empty()))
}
