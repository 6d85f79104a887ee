//! Asks on the terminal of a command whether its sandbox may reach what it was denied.
//!
//! The guest chooses the names, and writes to the same terminal. So the keys of an answer are ones that commands do not use, one
//! question waits at a time, and what was allowed is printed after the answer.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
};

use banger_proto::bus::{names::VM_INTERFACE, proxy::Options};
use futures_util::StreamExt;
use tokio::task::JoinSet;
use zbus::{Message, MessageStream, OwnedObjectPath, message::Type};

use crate::{
    client::bus::Bus,
    error::Result,
    guest::attach::answer_keys::{Answer, AnswerKeys, Answers, answers},
    ui::{sanitize, terminal},
};

/// The most questions that wait.
const MAX_WAITING: usize = 16;
/// The most destinations that are asked about.
const MAX_ASKED: usize = 256;

/// The questions about one sandbox.
#[derive(Debug, Default)]
struct Questions {
    /// The entries to ask about, the current one first.
    waiting: VecDeque<String>,
    /// What the user was asked about already.
    asked: BTreeSet<String>,
}

impl Questions {
    /// Adds a denied destination. Returns whether it is the one to ask about now.
    fn add(&mut self, entry: String) -> bool {
        if self.waiting.len() >= MAX_WAITING
            || self.asked.len() >= MAX_ASKED
            || !self.asked.insert(entry.clone())
        {
            return false;
        }
        self.waiting.push_back(entry);
        self.waiting.len() == 1
    }

    fn current(&self) -> Option<&str> {
        self.waiting.front().map(String::as_str)
    }

    /// Returns the entry that an answer is about; the next one is the current one then.
    fn answer(&mut self) -> Option<String> {
        self.waiting.pop_front()
    }
}

/// Asks as long as the tasks live. Returns the keys to look for in what the user types.
pub async fn start(bus: &Bus, vm: &OwnedObjectPath) -> Result<(AnswerKeys, JoinSet<()>)> {
    // A connection of its own: answers to other calls do not wait behind signals.
    let signals = Bus::connect().await?;
    // Created before the call, so that nothing is missed.
    let messages = signals.messages();
    signals.subscribe(&Options::new()).await?;
    let (keys, answers) = answers();
    let mut tasks = JoinSet::new();
    // A password cannot be typed while the command has the terminal.
    tasks.spawn(run(bus.clone().without_prompts(), vm.clone(), messages, answers));
    Ok((keys, tasks))
}

async fn run(bus: Bus, vm: OwnedObjectPath, mut messages: MessageStream, mut answers: Answers) {
    let mut questions = Questions::default();
    loop {
        let is_new = tokio::select! {
            message = messages.next() => match message {
                Some(Ok(message)) => denied(&message, &vm).is_some_and(|entry| questions.add(entry)),
                Some(Err(_)) => false,
                None => return,
            },
            answer = answers.next() => {
                let Some(answer) = answer else { return };
                if let Some(entry) = questions.answer() {
                    print(&settle(&bus, &vm, &entry, answer).await);
                }
                true
            }
        };
        answers.ask(questions.current().is_some());
        if let Some(entry) = questions.current().filter(|_| is_new) {
            print(&format!(
                "banger: the sandbox was denied {entry}. Press Ctrl-] y to allow it, or Ctrl-] n to go on."
            ));
        }
    }
}

/// Does what was answered. Returns what to print.
async fn settle(bus: &Bus, vm: &OwnedObjectPath, entry: &str, answer: Answer) -> String {
    match answer {
        Answer::No => format!("banger: {entry} stays denied."),
        Answer::Yes => match bus.change_egress(vm, &[entry.to_owned()], &[]).await {
            Ok(()) => format!("banger: the sandbox may reach {entry} from now on."),
            Err(error) => format!("banger: cannot allow {entry}: {}", error.sentence()),
        },
    }
}

/// Returns the entry of a policy that would allow what a sandbox was denied, if a message is about that.
fn denied(message: &Message, vm: &OwnedObjectPath) -> Option<String> {
    let header = message.header();
    if message.message_type() != Type::Signal
        || header.interface()?.as_str() != VM_INTERFACE
        || header.member()?.as_str() != "EgressDenied"
        || header.path()?.as_str() != vm.as_str()
    {
        return None;
    }
    let body = message.body();
    let (destination, port, protocol): (String, u16, String) = body.deserialize().ok()?;
    Some(entry(&destination, port, &protocol))
}

/// Returns the entry for a destination: a name, or a port of an address.
fn entry(destination: &str, port: u16, protocol: &str) -> String {
    let host = match destination.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => destination.to_owned(),
    };
    match (port, protocol) {
        (0, _) => host,
        (port, "udp") => format!("{host}:{port}/udp"),
        (port, _) => format!("{host}:{port}"),
    }
}

/// Prints a line while the terminal is in raw mode.
fn print(line: &str) {
    terminal::line_in_raw_mode(&sanitize::line(line));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_destination_becomes_the_entry_that_allows_it() {
        for (destination, port, protocol, expect) in [
            ("github.com", 0, "dns", "github.com"),
            ("192.0.2.7", 443, "tcp", "192.0.2.7:443"),
            ("192.0.2.7", 123, "udp", "192.0.2.7:123/udp"),
            ("2001:db8::1", 443, "tcp", "[2001:db8::1]:443"),
            ("2001:db8::1", 53, "udp", "[2001:db8::1]:53/udp"),
        ] {
            assert_eq!(entry(destination, port, protocol), expect);
        }
    }

    #[test]
    fn each_destination_is_asked_about_once_and_a_flood_is_bounded() {
        let mut questions = Questions::default();
        assert!(questions.add("a.example".to_owned()));
        assert!(!questions.add("b.example".to_owned()), "one question at a time");
        assert!(!questions.add("a.example".to_owned()));
        assert_eq!(questions.answer().as_deref(), Some("a.example"));
        assert_eq!(questions.current(), Some("b.example"));
        assert!(!questions.add("a.example".to_owned()), "it was answered");
        assert_eq!(questions.answer().as_deref(), Some("b.example"));
        assert_eq!((questions.answer(), questions.current()), (None, None));
        for n in 0..1000 {
            questions.add(format!("host{n}.example"));
        }
        assert_eq!(questions.waiting.len(), MAX_WAITING);
        for n in 0..1000 {
            questions.answer();
            questions.add(format!("other{n}.example"));
        }
        assert!(questions.asked.len() <= MAX_ASKED);
    }
}
