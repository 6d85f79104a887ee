//! What a guest may ask of the name server. The packet filter enforces these bounds before a packet reaches a socket
//! that guests share, and the server enforces them again for each guest, whichever protocol it uses.

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many times a second, for long.
    pub per_second: u32,
    /// How many times at once after a pause.
    pub at_once: u32,
}

/// Questions of a guest. A package manager that resolves a thousand names does not notice the limit.
pub const QUESTIONS: Rate = Rate { per_second: 500, at_once: 1000 };
/// Questions of the host. Its resolver asks for all users.
pub const QUESTIONS_OF_HOST: Rate = Rate { per_second: 10_000, at_once: 10_000 };
/// New connections of a guest. A connection carries many questions, and the kernel remembers a closed one for two
/// minutes.
pub const CONNECTIONS: Rate = Rate { per_second: 20, at_once: 64 };
/// New connections of the host.
pub const CONNECTIONS_OF_HOST: Rate = Rate { per_second: 400, at_once: 1000 };
/// The longest accepted question, in bytes. The longest one with a name and a few options is half of it.
pub const MAX_QUESTION: usize = 1024;
