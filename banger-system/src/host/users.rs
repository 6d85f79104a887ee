//! The accounts of the host, from its name service.
//!
//! The name service may ask a server on the network, and its calls block. So they run on threads of their own, few at
//! once, and nobody waits long for them. An answer that comes too late is remembered for the next question.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use banger_domain::id::Uid;
use tokio::sync::Semaphore;

use super::blocking::blocking;
use crate::ports::{
    FromHost as _,
    users::{Error, Result, Users},
};

/// How long a question may take. A directory on the network answers in milliseconds, or not at all.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer counts. Accounts are rarely renamed.
const KEPT: Duration = Duration::from_secs(300);
/// How long an unknown name stays unknown. The account may be added at any time.
const KEPT_UNKNOWN: Duration = Duration::from_secs(5);
/// How many answers of each kind are remembered.
const MAX_ANSWERS: usize = 1024;
/// How many questions are open at once. More than that would take threads from everything else.
const MAX_QUESTIONS: usize = 4;

/// The name service of a host. Its calls may block for long.
pub trait NameService: Send + Sync {
    /// Returns the user with this login name.
    fn uid_of(&self, login: &str) -> Option<Uid>;
    /// Returns the login name of a user.
    fn login_of(&self, uid: Uid) -> Option<String>;
}

/// The name service of this host: nsswitch.conf(5).
struct Nss;

impl NameService for Nss {
    fn uid_of(&self, login: &str) -> Option<Uid> {
        uzers::get_user_by_name(login).map(|user| Uid(user.uid()))
    }

    fn login_of(&self, uid: Uid) -> Option<String> {
        uzers::get_user_by_uid(uid.0).map(|user| user.name().to_string_lossy().into_owned())
    }
}

/// The accounts of the host.
pub struct Accounts {
    service: Arc<dyn NameService>,
    timeout: Duration,
    uids: Answers<String, Uid>,
    unknown: Answers<String, ()>,
    logins: Answers<Uid, Option<String>>,
    questions: Arc<Semaphore>,
}

impl Accounts {
    /// Returns the accounts of this host.
    pub fn of_host() -> Self {
        Self::new(Arc::new(Nss), TIMEOUT)
    }

    /// Returns the accounts of a name service, which has this much time to answer.
    pub fn new(service: Arc<dyn NameService>, timeout: Duration) -> Self {
        let questions = Arc::new(Semaphore::new(MAX_QUESTIONS));
        let (uids, logins) = (Answers::kept(KEPT), Answers::kept(KEPT));
        Self { service, timeout, uids, unknown: Answers::kept(KEPT_UNKNOWN), logins, questions }
    }

    /// Asks the name service. The question continues if the caller stops waiting, and its answer is remembered.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn NameService) -> T + Send + 'static,
    ) -> Result<T> {
        let (service, questions) = (Arc::clone(&self.service), Arc::clone(&self.questions));
        let asked = async move {
            const DOING: &str = "look up an account";
            let permit = questions.acquire_owned().await.map_err(|closed| Error::other(DOING, closed))?;
            blocking(DOING, move || {
                let answer = question(&*service);
                drop(permit);
                Ok(answer)
            })
            .await
        };
        let late = |_| Error::not_ready("the name service of this host does not answer");
        tokio::time::timeout(self.timeout, asked).await.map_err(late)?
    }
}

#[async_trait]
impl Users for Accounts {
    async fn uid_of(&self, login: &str) -> Result<Option<Uid>> {
        if let Ok(number) = login.parse() {
            return Ok(Some(Uid(number)));
        }
        if let Some(uid) = self.uids.get(login) {
            return Ok(Some(uid));
        }
        if self.unknown.get(login).is_some() {
            return Ok(None);
        }
        let (uids, unknown, login) = (self.uids.clone(), self.unknown.clone(), login.to_owned());
        self.ask(move |service| {
            let uid = service.uid_of(&login);
            match uid {
                Some(uid) => uids.put(login, uid),
                None => unknown.put(login, ()),
            }
            uid
        })
        .await
    }

    async fn login_of(&self, uid: Uid) -> Result<Option<String>> {
        if let Some(login) = self.logins.get(&uid) {
            return Ok(login);
        }
        let answers = self.logins.clone();
        self.ask(move |service| {
            let login = service.login_of(uid);
            answers.put(uid, login.clone());
            login
        })
        .await
    }
}

/// A bounded number of recent answers. Clones share them.
struct Answers<K, V> {
    known: Arc<Mutex<HashMap<K, (V, Instant)>>>,
    /// How long an answer counts.
    kept: Duration,
}

impl<K: Hash + Eq + Clone, V: Clone> Answers<K, V> {
    fn kept(kept: Duration) -> Self {
        Self { known: Arc::default(), kept }
    }

    fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
    {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, since) = known.get(key)?;
        (since.elapsed() < self.kept).then(|| value.clone())
    }

    /// Remembers an answer, and forgets the oldest one if there are too many.
    fn put(&self, key: K, value: V) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ANSWERS && !known.contains_key(&key) {
            let oldest = known.iter().min_by_key(|(_, (_, since))| *since).map(|(key, _)| key.clone());
            oldest.map(|key| known.remove(&key));
        }
        known.insert(key, (value, Instant::now()));
    }
}

impl<K, V> Clone for Answers<K, V> {
    fn clone(&self) -> Self {
        Self { known: Arc::clone(&self.known), kept: self.kept }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{
        Condvar,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// A name service that answers when it is told to, and counts its questions.
    #[derive(Default)]
    struct Slow {
        answers: Mutex<bool>,
        changed: Condvar,
        questions: AtomicUsize,
    }

    impl Slow {
        fn wait(&self) {
            self.questions.fetch_add(1, Ordering::Relaxed);
            let answers = self.answers.lock().unwrap();
            // The runtime of a failed test waits for its threads.
            drop(self.changed.wait_timeout_while(answers, Duration::from_secs(120), |answers| !*answers));
        }

        fn answer(&self) {
            *self.answers.lock().unwrap() = true;
            self.changed.notify_all();
        }

        fn questions(&self) -> usize {
            self.questions.load(Ordering::Relaxed)
        }
    }

    impl NameService for Slow {
        fn uid_of(&self, login: &str) -> Option<Uid> {
            self.wait();
            (login == "alice").then_some(Uid(1000))
        }

        fn login_of(&self, uid: Uid) -> Option<String> {
            self.wait();
            (uid == Uid(1000)).then(|| "alice".to_owned())
        }
    }

    /// Waits for an answer that is only late.
    async fn in_time<T>(mut ask: impl AsyncFnMut() -> Result<T>) -> T {
        let asked = async {
            loop {
                if let Ok(answer) = ask().await {
                    return answer;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(120), asked).await.unwrap()
    }

    #[tokio::test]
    async fn a_slow_name_service_delays_nobody_for_long_and_is_asked_once() {
        let service = Arc::new(Slow::default());
        let accounts = Accounts::new(service.clone(), Duration::from_millis(50));
        // This runtime has one thread: a question that blocked it would never end.
        let error = accounts.login_of(Uid(1000)).await.unwrap_err();
        assert_eq!(error.to_string(), "the name service of this host does not answer");
        assert!(accounts.uid_of("alice").await.is_err());
        assert_eq!(accounts.uid_of("42").await.unwrap(), Some(Uid(42)), "a number needs no name service");

        service.answer();
        assert_eq!(in_time(async || accounts.login_of(Uid(1000)).await).await.as_deref(), Some("alice"));
        assert_eq!(in_time(async || accounts.uid_of("alice").await).await, Some(Uid(1000)));
        let asked = service.questions();
        assert_eq!(accounts.login_of(Uid(1000)).await.unwrap().as_deref(), Some("alice"));
        assert_eq!(accounts.uid_of("alice").await.unwrap(), Some(Uid(1000)));
        assert_eq!(service.questions(), asked, "the answers are remembered");
        // So is it that a user or a name has no account.
        assert_eq!(accounts.login_of(Uid(7)).await.unwrap(), None);
        assert_eq!(accounts.uid_of("bob").await.unwrap(), None);
        let asked = service.questions();
        assert_eq!(accounts.login_of(Uid(7)).await.unwrap(), None);
        assert_eq!(accounts.uid_of("bob").await.unwrap(), None);
        assert_eq!(service.questions(), asked);
    }

    #[tokio::test]
    async fn only_a_few_questions_are_open_at_once() {
        let service = Arc::new(Slow::default());
        let accounts = Accounts::new(service.clone(), Duration::from_millis(50));
        let all = (0..20).map(|uid| accounts.login_of(Uid(uid)));
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_err));
        assert_eq!(service.questions(), MAX_QUESTIONS);
        service.answer();
    }

    #[test]
    fn an_answer_counts_for_some_time() {
        let (long, short) = (Answers::kept(KEPT), Answers::kept(Duration::ZERO));
        for answers in [&long, &short] {
            answers.put("alice", Uid(1000));
        }
        assert_eq!((long.get("alice"), short.get("alice")), (Some(Uid(1000)), None));
    }

    #[test]
    fn the_answers_are_bounded() {
        let answers = Answers::kept(KEPT);
        for n in 0..MAX_ANSWERS + 10 {
            answers.put(n, n);
        }
        assert_eq!(answers.known.lock().unwrap().len(), MAX_ANSWERS);
        assert_eq!((answers.get(&0), answers.get(&(MAX_ANSWERS + 9))), (None, Some(MAX_ANSWERS + 9)));
    }
}
