//! A load whose writers record every answer. Each writer owns its keys, so a lost acknowledged write is found later.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::Result;
use crate::resp::{Connection, Reply, moved_to, never_happened};

mod history;
pub(crate) use history::{Audit, History};
use history::{Observed, Write};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
/// After this time the outcome is uncertain, and the writer tries another node.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Short compared with a failover, so that the failover time measures the cluster.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
const READ_BATCH_KEYS: usize = 256;
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// The state that all writers share.
struct LoadState {
    addresses: Vec<SocketAddr>,
    /// Position of the node that last acknowledged a write, or was named as the leader.
    leader: AtomicUsize,
    stop: AtomicBool,
    acked: AtomicU64,
    uncertain: AtomicU64,
    watching: AtomicBool,
    watch: Mutex<Watch>,
}

/// Measures the time to the first acknowledgement from another node than the killed one.
#[derive(Clone, Copy)]
struct Watch {
    since: Instant,
    not_from: usize,
    took: Option<Duration>,
}

pub(crate) struct Load {
    shared: Arc<LoadState>,
    writers: Vec<JoinHandle<History>>,
}

/// The result of a stopped load.
pub(crate) struct Finished {
    pub(crate) histories: Vec<History>,
    pub(crate) acked: u64,
    pub(crate) uncertain: u64,
}

impl Load {
    /// Must be called on a tokio runtime. `seed` decides which writes are made in which order.
    pub(crate) fn start(addresses: Vec<SocketAddr>, leader: usize, writers: usize, seed: u64) -> Self {
        let shared = Arc::new(LoadState {
            addresses,
            leader: AtomicUsize::new(leader),
            stop: AtomicBool::new(false),
            acked: AtomicU64::new(0),
            uncertain: AtomicU64::new(0),
            watching: AtomicBool::new(false),
            watch: Mutex::new(Watch { since: Instant::now(), not_from: usize::MAX, took: None }),
        });
        let writers = (0..writers)
            .map(|writer| {
                let random = fastrand::Rng::with_seed(seed.wrapping_add(writer as u64));
                tokio::spawn(write_until_stopped(Arc::clone(&shared), History::new(writer), random))
            })
            .collect();
        Self { shared, writers }
    }

    pub(crate) fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Returns [`acked`](Self::acked) elsewhere.
    pub(crate) fn acked_counter(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.acked.load(Ordering::Relaxed)
    }

    /// The number of writers. Each has at most one write in flight.
    pub(crate) fn writers(&self) -> u64 {
        self.writers.len() as u64
    }

    /// Starts the measurement of a failover. Call it right before the kill.
    pub(crate) fn watch_failover(&self, killed: usize) {
        *self.shared.watch() = Watch { since: Instant::now(), not_from: killed, took: None };
        self.shared.watching.store(true, Ordering::Release);
    }

    /// The time from the kill to the first write that another node acknowledged.
    pub(crate) fn failover(&self) -> Option<Duration> {
        self.shared.watch().took
    }

    /// Ends the writers and returns their histories.
    pub(crate) async fn stop(self) -> Result<Finished> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut histories = Vec::new();
        for writer in self.writers {
            histories.push(writer.await?);
        }
        let (acked, uncertain) =
            (self.shared.acked.load(Ordering::Relaxed), self.shared.uncertain.load(Ordering::Relaxed));
        Ok(Finished { histories, acked, uncertain })
    }
}

impl LoadState {
    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        // A watch is replaced as a whole, so a panic leaves none half-written.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledged(&self, by: usize) {
        self.acked.fetch_add(1, Ordering::Relaxed);
        self.leader.store(by, Ordering::Relaxed);
        if self.watching.load(Ordering::Acquire) {
            let mut watch = self.watch();
            if watch.took.is_none() && watch.not_from != by {
                watch.took = Some(watch.since.elapsed());
                self.watching.store(false, Ordering::Release);
            }
        }
    }

    /// Follows the leader that an error names, or goes on to the next node.
    fn look_elsewhere(&self, asked: usize, moved: Option<SocketAddr>) {
        let named = moved.and_then(|address| self.addresses.iter().position(|other| *other == address));
        let next = named.unwrap_or((asked + 1) % self.addresses.len().max(1));
        // If another writer found the leader meanwhile, its value stays.
        let _ = self.leader.compare_exchange(asked, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

async fn write_until_stopped(
    shared: Arc<LoadState>,
    mut history: History,
    mut random: fastrand::Rng,
) -> History {
    let mut open: Option<(usize, Connection)> = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let target = shared.leader.load(Ordering::Relaxed);
        // After a change of leader the open connection leads to the wrong node.
        open = open.filter(|(to, _)| *to == target);
        let (to, mut connection) = match open.take() {
            Some(open) => open,
            None => match connect(&shared, target).await {
                Some(connection) => (target, connection),
                None => {
                    shared.look_elsewhere(target, None);
                    sleep(RETRY_PAUSE).await;
                    continue;
                }
            },
        };

        let write = history.next(&mut random);
        let answer = timeout(ANSWER_TIMEOUT, send(&mut connection, &history, &write)).await;
        match outcome(answer.ok().and_then(std::result::Result::ok), &write) {
            WriteResult::Acked(reply) => {
                history.acked(&write, reply);
                shared.acknowledged(to);
                open = Some((to, connection));
            }
            WriteResult::NeverHappened { moved } => {
                // A fresh key stays in the history without a value: it must be found empty.
                shared.look_elsewhere(to, moved);
                sleep(RETRY_PAUSE).await;
            }
            WriteResult::Uncertain => {
                history.uncertain(&write);
                shared.uncertain.fetch_add(1, Ordering::Relaxed);
                shared.look_elsewhere(to, None);
            }
        }
    }
    history
}

async fn connect(shared: &LoadState, target: usize) -> Option<Connection> {
    let address = shared.addresses.get(target)?;
    timeout(CONNECT_TIMEOUT, Connection::open(*address)).await.ok()?.ok()
}

async fn send(connection: &mut Connection, history: &History, write: &Write) -> std::io::Result<Reply> {
    match write {
        Write::Increment => connection.ask(&[b"INCR", history.counter_key().as_bytes()]).await,
        Write::Set { key, value } => {
            let (key, value) = (history.key(*key), history.value(*value));
            connection.ask(&[b"SET", key.as_bytes(), value.as_bytes()]).await
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum WriteResult {
    /// With the new value of a counter.
    Acked(Option<i64>),
    NeverHappened {
        moved: Option<SocketAddr>,
    },
    Uncertain,
}

/// Only errors that promise it count as "never happened"; an unknown error is uncertain.
fn outcome(answer: Option<Reply>, write: &Write) -> WriteResult {
    match (answer, write) {
        (Some(Reply::Integer(value)), Write::Increment) => WriteResult::Acked(Some(value)),
        (Some(Reply::Simple(ok)), Write::Set { .. }) if ok == "OK" => WriteResult::Acked(None),
        (Some(Reply::Error(error)), _) if never_happened(&error) => {
            WriteResult::NeverHappened { moved: moved_to(&error) }
        }
        _ => WriteResult::Uncertain,
    }
}

/// Reads all keys of the writers and compares them with the histories.
pub(crate) async fn verify(addresses: &[SocketAddr], histories: &[History]) -> Result<Audit> {
    let mut reader = Reader::new(addresses);
    let mut audit = Audit::default();
    for history in histories {
        let keys = history.keys();
        let mut values = Vec::new();
        for batch in keys.chunks(READ_BATCH_KEYS) {
            values.extend(reader.read(batch).await?);
        }
        let counter = reader.read(&[history.counter_key()]).await?.into_iter().next().flatten();
        history.check(&Observed { counter, values }, &mut audit);
    }
    Ok(audit)
}

/// Reads from any node that answers.
pub(crate) struct Reader<'a> {
    addresses: &'a [SocketAddr],
    at: usize,
    open: Option<Connection>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(addresses: &'a [SocketAddr]) -> Self {
        Self { addresses, at: 0, open: None }
    }

    pub(crate) async fn read(&mut self, keys: &[String]) -> Result<Vec<Option<String>>> {
        let mut words: Vec<&[u8]> = vec![b"MGET"];
        words.extend(keys.iter().map(|key| key.as_bytes()));
        let started = Instant::now();
        loop {
            let failure = match self.ask(&words).await {
                Ok(Reply::Array(values)) if values.len() == keys.len() => {
                    return values.into_iter().map(text).collect();
                }
                Ok(other) => format!("{other:?}").chars().take(200).collect(),
                Err(error) => error.to_string(),
            };
            self.open = None;
            self.at = (self.at + 1) % self.addresses.len().max(1);
            if started.elapsed() > READ_DEADLINE {
                return Err(
                    format!("no node answers a read after {} s: {failure}", READ_DEADLINE.as_secs()).into()
                );
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn ask(&mut self, words: &[&[u8]]) -> Result<Reply> {
        let address = *self.addresses.get(self.at).ok_or("no address")?;
        let mut connection = match self.open.take() {
            Some(connection) => connection,
            None => timeout(CONNECT_TIMEOUT, Connection::open(address)).await??,
        };
        let reply = timeout(ANSWER_TIMEOUT, connection.ask(words)).await??;
        self.open = Some(connection);
        Ok(reply)
    }
}

fn text(reply: Reply) -> Result<Option<String>> {
    match reply {
        Reply::Bulk(None) => Ok(None),
        Reply::Bulk(Some(bytes)) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        other => Err(format!("MGET answered {other:?} for a key").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_promise_counts_as_never_happened() {
        let error = |text: &str| outcome(Some(Reply::Error(text.to_owned())), &Write::Increment);
        let moved = Some("127.0.0.1:7001".parse().unwrap());
        assert_eq!(error("MOVED 12 127.0.0.1:7001"), WriteResult::NeverHappened { moved });
        assert_eq!(error("CLUSTERDOWN no leader"), WriteResult::NeverHappened { moved: None });
        assert_eq!(error("ERR the outcome is unknown"), WriteResult::Uncertain);
        assert_eq!(outcome(None, &Write::Increment), WriteResult::Uncertain);
        // An answer of the wrong type.
        assert_eq!(outcome(Some(Reply::Simple("OK".to_owned())), &Write::Increment), WriteResult::Uncertain);
    }
}
