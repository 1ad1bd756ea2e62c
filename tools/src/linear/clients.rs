//! Clients that call through the Redis port and note every call with its answer.
//!
//! They call every node, the leader more often. Followers refuse writes and answer reads.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use super::history::{Answer, Call, Key, Operation, Outcome};
use super::keys::Keys;
use super::sizes::SizeRead;
use crate::Result;
use crate::load::Reader;
use crate::resp::{Connection, Reply, moved_to, never_happened};

/// Bounds the memory of a run. Clients pace their calls so that it lasts to the end.
const OPERATIONS_MAX: u64 = 400_000;
const CLIENTS: u16 = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
/// After this time the outcome is uncertain.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// One call in this number goes to a random node. A follower must refuse a write and answer a read.
const CALLS_PER_STRAY: u8 = 8;
/// One call in this number asks a random node for the number of keys.
const CALLS_PER_SIZE: u8 = 8;
/// One read in this number is falsified, if the run breaks notes.
const READS_PER_STALE: u8 = 32;
const READ_BATCH_KEYS: usize = 256;

/// What the control run breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Break {
    /// Some reads note an older value than their client had read before, as a follower without a read round would answer.
    /// Clients falsify their own notes; the nodes are correct
    StaleReads,
    /// The waits in `/status` are not read, so that stalls look unexplained
    Waits,
}

struct RunState {
    addresses: Vec<SocketAddr>,
    leader: AtomicUsize,
    stop: AtomicBool,
    keys: Mutex<Keys>,
    begun: Instant,
    /// The minimum time between two calls of a client.
    pace: Duration,
    broken: Option<Break>,
}

pub(crate) struct Clients {
    shared: Arc<RunState>,
    running: Vec<JoinHandle<Notes>>,
}

/// The notes of one client.
#[derive(Default)]
struct Notes {
    operations: Vec<(Key, Operation)>,
    sizes: Vec<SizeRead>,
    seen: LastReads,
    reads_elsewhere: u64,
}

/// The notes of all clients, by key.
#[derive(Default)]
pub(crate) struct Noted {
    pub(crate) histories: BTreeMap<Key, Vec<Operation>>,
    pub(crate) sizes: Vec<SizeRead>,
    /// Reads that a follower answered.
    pub(crate) reads_elsewhere: u64,
    /// Falsified reads of each key.
    pub(crate) broken: BTreeMap<Key, u64>,
}

impl Clients {
    /// Must be called on a tokio runtime. `seed` decides which calls are made in which order.
    pub(crate) fn start(
        addresses: Vec<SocketAddr>,
        leader: usize,
        seed: u64,
        lasts: Duration,
        broken: Option<Break>,
    ) -> Self {
        let shared = Arc::new(RunState {
            addresses,
            leader: AtomicUsize::new(leader),
            stop: AtomicBool::new(false),
            keys: Mutex::new(Keys::new()),
            begun: Instant::now(),
            pace: lasts.mul_f64(f64::from(CLIENTS) / OPERATIONS_MAX as f64),
            broken,
        });
        let running = (0..CLIENTS)
            .map(|client| {
                // Differs from the seeds of the load's writers.
                let random = fastrand::Rng::with_seed(seed.wrapping_add(u64::from(client)) ^ (1 << 63));
                tokio::spawn(Client::new(client, Arc::clone(&shared), random).run())
            })
            .collect();
        Self { shared, running }
    }

    /// Ends the clients, then reads every key once more: the history must explain these reads too.
    pub(crate) async fn stop(self) -> Result<Noted> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut noted = Noted::default();
        for client in self.running {
            let notes = client.await?;
            for (key, operation) in notes.operations {
                noted.histories.entry(key).or_default().push(operation);
            }
            noted.sizes.extend(notes.sizes);
            noted.reads_elsewhere += notes.reads_elsewhere;
            for (key, reads) in notes.seen.broken {
                *noted.broken.entry(key).or_default() += reads;
            }
        }
        let keys: Vec<Key> = noted.histories.keys().copied().collect();
        let mut reader = Reader::new(&self.shared.addresses);
        for batch in keys.chunks(READ_BATCH_KEYS) {
            let names: Vec<String> = batch.iter().map(|key| key.name()).collect();
            let invoked = self.shared.now();
            let values = reader.read(&names).await?;
            let returned = self.shared.now();
            for (key, value) in batch.iter().zip(values) {
                let outcome = Outcome::Answered(key.read(value.as_deref()));
                let read = Operation { client: CLIENTS, invoked, returned, call: Call::Read, outcome };
                noted.histories.entry(*key).or_default().push(read);
            }
        }
        Ok(noted)
    }
}

impl RunState {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, Keys> {
        // A half-counted key is harmless.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_elsewhere(&self, asked: usize, moved: Option<SocketAddr>) {
        let named = moved.and_then(|address| self.addresses.iter().position(|other| *other == address));
        let next = named.unwrap_or((asked + 1) % self.addresses.len().max(1));
        let _ = self.leader.compare_exchange(asked, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

struct Client {
    id: u16,
    shared: Arc<RunState>,
    random: fastrand::Rng,
    /// One connection to each node.
    open: Vec<Option<Connection>>,
    notes: Notes,
}

impl Client {
    fn new(id: u16, shared: Arc<RunState>, random: fastrand::Rng) -> Self {
        let open = shared.addresses.iter().map(|_| None).collect();
        Self { id, shared, random, open, notes: Notes::default() }
    }

    async fn run(mut self) -> Notes {
        let mut next = tokio::time::Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            next = (next + self.shared.pace).max(tokio::time::Instant::now());
            if self.random.u8(..CALLS_PER_SIZE) == 0 {
                self.size().await;
            } else if !self.call().await {
                break;
            }
            sleep_until(next).await;
        }
        self.notes
    }

    /// Returns false if there is no key to call.
    async fn call(&mut self) -> bool {
        let Some((key, call)) = self.shared.keys().next(&mut self.random) else { return false };
        let stray = self.random.u8(..CALLS_PER_STRAY) == 0;
        let to = if stray { self.any_node() } else { self.shared.leader.load(Ordering::Relaxed) };
        let invoked = self.shared.now();
        let (outcome, moved) = match self.ask(to, &key.request(call)).await {
            Asked::Answered(reply) => outcome(key, call, reply),
            Asked::Unsent => (Outcome::Failed, None),
            Asked::Unanswered => (Outcome::Uncertain, None),
        };
        let returned = self.shared.now();
        match &outcome {
            Outcome::Answered(_) if call == Call::Read => {
                let elsewhere = to != self.shared.leader.load(Ordering::Relaxed);
                self.notes.reads_elsewhere += u64::from(elsewhere);
            }
            Outcome::Answered(_) => self.shared.leader.store(to, Ordering::Relaxed),
            Outcome::Failed | Outcome::Uncertain => {
                if outcome == Outcome::Uncertain && call != Call::Read {
                    self.shared.keys().uncertain(key);
                }
                self.shared.look_elsewhere(to, moved);
                if moved.is_none() {
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
        self.note(key, Operation { client: self.id, invoked, returned, call, outcome });
        true
    }

    async fn size(&mut self) {
        let node = self.any_node();
        let elsewhere = node != self.shared.leader.load(Ordering::Relaxed);
        let invoked = self.shared.now();
        if let Asked::Answered(Reply::Integer(size)) = self.ask(node, &[b"DBSIZE".to_vec()]).await {
            let returned = self.shared.now();
            self.notes.sizes.push(SizeRead { node, elsewhere, invoked, returned, size });
        }
    }

    fn any_node(&mut self) -> usize {
        self.random.usize(..self.open.len().max(1))
    }

    fn note(&mut self, key: Key, mut operation: Operation) {
        if let (Call::Read, Outcome::Answered(answer)) = (operation.call, &mut operation.outcome) {
            let stale =
                self.shared.broken == Some(Break::StaleReads) && self.random.u8(..READS_PER_STALE) == 0;
            self.notes.seen.read(key, answer, stale);
        }
        self.notes.operations.push((key, operation));
    }

    async fn ask(&mut self, to: usize, words: &[Vec<u8>]) -> Asked {
        let (Some(address), Some(open)) = (self.shared.addresses.get(to), self.open.get_mut(to)) else {
            return Asked::Unsent;
        };
        let mut connection = match open.take() {
            Some(connection) => connection,
            None => match timeout(CONNECT_TIMEOUT, Connection::open(*address)).await {
                Ok(Ok(mut connection)) => {
                    let readonly: &[&[u8]] = &[b"READONLY"];
                    match timeout(ANSWER_TIMEOUT, connection.ask(readonly)).await {
                        Ok(Ok(_)) => connection,
                        _ => return Asked::Unsent,
                    }
                }
                _ => return Asked::Unsent,
            },
        };
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        match timeout(ANSWER_TIMEOUT, connection.ask(&words)).await {
            Ok(Ok(reply)) => {
                *open = Some(connection);
                Asked::Answered(reply)
            }
            // Drop the connection: a late answer would be read as the answer to the next call.
            _ => Asked::Unanswered,
        }
    }
}

enum Asked {
    Answered(Reply),
    /// There was no connection.
    Unsent,
    Unanswered,
}

/// Only errors that promise it count as failed; an unknown error is uncertain.
fn outcome(key: Key, call: Call, reply: Reply) -> (Outcome, Option<SocketAddr>) {
    let answer = match (call, reply) {
        (Call::Read, Reply::Bulk(None)) => key.read(None),
        (Call::Read, Reply::Bulk(Some(text))) => key.read(Some(&String::from_utf8_lossy(&text))),
        (Call::Set(_), Reply::Simple(ok)) if ok == "OK" => Answer::Done,
        (Call::Append(_) | Call::Increment, Reply::Integer(number)) => key.written(call, number),
        (_, Reply::Error(error)) if never_happened(&error) => return (Outcome::Failed, moved_to(&error)),
        (_, Reply::Error(_)) => return (Outcome::Uncertain, None),
        (_, other) => Answer::Foreign(format!("{other:?}")),
    };
    (Outcome::Answered(answer), None)
}

/// The last answer to a read of each key, and the different answer before it. No value of a key ever returns, so noting
/// the older answer again is always a violation.
#[derive(Default)]
struct LastReads {
    last: HashMap<Key, (Option<Answer>, Answer)>,
    broken: BTreeMap<Key, u64>,
}

impl LastReads {
    fn read(&mut self, key: Key, answer: &mut Answer, stale: bool) {
        let before = self.last.get(&key);
        if stale && let Some((Some(older), _)) = before {
            *answer = older.clone();
            *self.broken.entry(key).or_default() += 1;
            return;
        }
        let older = match before {
            Some((older, newer)) if newer == answer => older.clone(),
            Some((_, newer)) => Some(newer.clone()),
            None => None,
        };
        self.last.insert(key, (older, answer.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::Kind;
    use super::*;

    const LOG: Key = Key { index: 0, kind: Kind::Log };
    const REGISTER: Key = Key { index: 1, kind: Kind::Register };

    fn read_as(key: Key, call: Call, reply: Reply) -> Outcome {
        outcome(key, call, reply).0
    }

    #[test]
    fn only_a_promise_counts_as_failed() {
        let error = |text: &str| read_as(REGISTER, Call::Set(1), Reply::Error(text.to_owned()));
        assert_eq!(error("CLUSTERDOWN no leader is known"), Outcome::Failed);
        assert_eq!(error("MOVED 12 127.0.0.1:7001"), Outcome::Failed);
        assert_eq!(error("UNCERTAIN the outcome is not known"), Outcome::Uncertain);
        assert_eq!(error("ERR this node is stopped"), Outcome::Uncertain);
    }

    #[test]
    fn answers_are_read_by_the_kind_of_key() {
        let bulk = |text: &str| Reply::Bulk(Some(text.as_bytes().to_vec()));
        let seen = |key, text| match read_as(key, Call::Read, bulk(text)) {
            Outcome::Answered(answer) => answer,
            other => panic!("{other:?}"),
        };
        assert_eq!(seen(REGISTER, "17"), Answer::Value(Some(17)));
        assert!(matches!(seen(REGISTER, "17x"), Answer::Foreign(_)));
        assert_eq!(seen(LOG, "00001,00003,"), Answer::Elements(vec![1, 3]));
        assert!(matches!(seen(LOG, "00001,0000"), Answer::Foreign(_)), "half an element");
        assert!(matches!(seen(LOG, "00001,+0003,"), Answer::Foreign(_)));
        let appended = |length| read_as(LOG, Call::Append(1), Reply::Integer(length));
        assert_eq!(appended(12), Outcome::Answered(Answer::Number(2)));
        assert!(matches!(appended(13), Outcome::Answered(Answer::Foreign(_))));
    }

    #[test]
    fn a_falsified_read_is_one_that_its_client_saw_replaced() {
        let mut seen = LastReads::default();
        let mut read = |value, stale| {
            let mut answer = Answer::Value(Some(value));
            seen.read(REGISTER, &mut answer, stale);
            answer
        };
        read(1, false);
        assert_eq!(read(1, true), Answer::Value(Some(1)), "nothing older is known");
        assert_eq!(read(2, true), Answer::Value(Some(2)));
        assert_eq!(read(3, true), Answer::Value(Some(1)), "and 3 is forgotten");
        read(2, false);
        assert_eq!(read(2, true), Answer::Value(Some(1)));
        assert_eq!(seen.broken.get(&REGISTER), Some(&2));
    }
}
