//! The story of the product: a follower that the log has left behind, a snapshot to it that is cut twice, and how it comes
//! back; or, when reports are lost, how it does not.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

use crate::Result;
use crate::cluster::Cluster;
use crate::load::Load;
use crate::resp::{Connection, Reply};
use crate::watch::{Screen, TICK};

/// Bytes of each value of the bulk.
const VALUE_BYTES: usize = 64 << 10;
/// The rate of a transfer, so that there is something to see and to cut.
const BYTES_PER_SECOND: u64 = 40 << 20;
const HEARTBEAT_MS: u64 = 100;
const STEP_DEADLINE: Duration = Duration::from_secs(90);
/// How long the control run waits for what does not happen: many times what a retry takes.
const CONTROL_WAIT: Duration = Duration::from_secs(10);

/// Settings under which a snapshot happens within a minute and takes seconds.
pub(super) fn settings(data: &Path, megabytes: u64) -> Result<Vec<String>> {
    let file = data.join("settings.toml");
    let log_bytes = megabytes * (1 << 20) / 2;
    let text = format!(
        "[engine]\nnetwork_workers = 1\nsnapshot_log_bytes = {log_bytes}\nsnapshot_trailing_entries = 1000\n\
         snapshot_bytes_per_second = {BYTES_PER_SECOND}\nsnapshot_progress_timeout_ms = 1500\n\
         snapshot_offer_timeout_ms = 1500\nsnapshot_backoff_max_ms = 2000\n"
    );
    fs::write(&file, text)?;
    Ok(vec!["--config".into(), file.to_string_lossy().into_owned()])
}

/// What a leader says of a peer.
#[derive(Debug, Clone, Default)]
struct Seen {
    progress: String,
    lag: u64,
    attempt: Option<Attempt>,
    last: Option<(u64, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    number: u64,
    bytes: u64,
    offset: u64,
    acked: u64,
}

/// One follower's way, as the leader tells it.
pub(super) struct Rescue<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) screen: &'a mut Screen,
    pub(super) load: &'a Load,
    pub(super) begun: Instant,
    pub(super) leader: usize,
    pub(super) follower: usize,
    /// When each attempt was first seen, and when it was seen to have ended.
    times: BTreeMap<u64, (Instant, Option<Instant>)>,
    last: Seen,
}

impl<'a> Rescue<'a> {
    pub(super) fn new(
        cluster: &'a mut Cluster,
        screen: &'a mut Screen,
        load: &'a Load,
        begun: Instant,
        leader: usize,
        follower: usize,
    ) -> Self {
        let (times, last) = (BTreeMap::new(), Seen::default());
        Self { cluster, screen, load, begun, leader, follower, times, last }
    }

    /// The follower goes down and misses more than the log keeps.
    pub(super) async fn leave_behind(&mut self, megabytes: u64, seed: u64) -> Result<()> {
        let applied = field(&self.cluster.page(self.follower).await?, &["state", "applied"])?;
        self.cluster.kill(self.follower)?;
        self.screen.say(format!("kill -9 of a follower, node {}, at index {applied}", self.follower + 1));
        let address = *self.cluster.redis_addresses().get(self.leader).ok_or("no leader")?;
        let count = megabytes * (1 << 20) / VALUE_BYTES as u64;
        let (screen, load, begun) = (&mut *self.screen, self.load, self.begun);
        let mut filling = Box::pin(fill(address, count, seed));
        loop {
            tokio::select! {
                done = &mut filling => break done?,
                () = sleep(TICK) => screen.show(load, begun),
            }
        }
        let started = Instant::now();
        loop {
            let first = field(&self.cluster.page(self.leader).await?, &["log", "first"])?;
            if first > applied + 1 {
                self.screen.say(format!(
                    "{megabytes} MiB of values written; the log now begins at {first}: it is left behind"
                ));
                return Ok(());
            }
            self.wait(started, "the leader's log is not compacted").await?;
        }
    }

    /// Brings it back and cuts its transfer twice: by killing it, and by stopping it for longer than the progress timeout.
    pub(super) async fn bring_back(&mut self) -> Result<()> {
        self.restart()?;
        let cut = self
            .until("an attempt at a third", |seen| seen.attempt.filter(|a| a.acked > a.bytes / 3))
            .await?;
        self.cluster.kill(self.follower)?;
        self.screen.say(format!("attempt {}: kill -9 of the receiver at {}", cut.number, part(cut)));
        self.failed(cut).await?;
        self.restart()?;
        let cut = self
            .until("an attempt at two thirds", |seen| seen.attempt.filter(|a| a.acked > a.bytes / 3 * 2))
            .await?;
        self.resumed(cut);
        self.cluster.pause(self.follower, true)?;
        self.screen.say(format!("attempt {}: the receiver stalls (SIGSTOP) at {}", cut.number, part(cut)));
        let failed = self.failed(cut).await;
        self.cluster.pause(self.follower, false)?;
        failed?;
        self.screen.say(format!("node {} goes on (SIGCONT)", self.follower + 1));
        let rest = self
            .until("another attempt", |seen| {
                seen.attempt.filter(|a| a.number > cut.number && a.acked > a.offset)
            })
            .await?;
        self.resumed(rest);
        let number = self
            .until("the transfer finishes", |seen| {
                seen.last.as_ref().filter(|(_, outcome)| outcome == "finished").map(|(number, _)| *number)
            })
            .await?;
        self.screen.say(format!("attempt {number}: finished: durable, verified and taken by Raft"));
        self.until("it is served by appends", |seen| {
            (seen.progress == "replicate" && seen.lag < 10_000).then_some(())
        })
        .await?;
        self.screen.say(format!("node {} has caught up and replicates", self.follower + 1));
        self.table()
    }

    /// The control: with reports lost and nobody who looks after them, one cut is enough.
    pub(super) async fn stays_away(&mut self) -> Result<()> {
        self.restart()?;
        let cut = self
            .until("an attempt at a third", |seen| seen.attempt.filter(|a| a.acked > a.bytes / 3))
            .await?;
        self.cluster.kill(self.follower)?;
        self.screen.say(format!("attempt {}: kill -9 of the receiver at {}", cut.number, part(cut)));
        self.restart()?;
        let started = Instant::now();
        while started.elapsed() < CONTROL_WAIT {
            self.look().await;
            self.screen.show(self.load, self.begun);
            sleep(TICK).await;
        }
        let latched =
            self.last.progress == "snapshot" && self.last.attempt.is_some_and(|a| a.number == cut.number);
        let beats = CONTROL_WAIT.as_millis() as u64 / HEARTBEAT_MS;
        if !latched {
            return Err(format!("the follower was to be latched, but the leader says {:?}", self.last).into());
        }
        self.screen.say(format!(
            "LATCHED, as predicted: {beats} heartbeats later node {} is up and well, {} entries behind, and the leader \
             sends it nothing but heartbeats, waiting for the end of attempt {} that nobody reports",
            self.follower + 1,
            self.last.lag,
            cut.number
        ));
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.cluster.restart(self.follower)?;
        self.screen.say(format!("restart of node {}", self.follower + 1));
        Ok(())
    }

    async fn failed(&mut self, cut: Attempt) -> Result<()> {
        let outcome = self
            .until("the failure is reported", |seen| {
                seen.last
                    .as_ref()
                    .filter(|(number, _)| *number >= cut.number)
                    .map(|(_, outcome)| outcome.clone())
            })
            .await?;
        self.screen.say(format!("attempt {}: Failure reported ({outcome})", cut.number));
        Ok(())
    }

    fn resumed(&mut self, attempt: Attempt) {
        let Attempt { number, offset, bytes, .. } = attempt;
        self.screen.say(format!("attempt {number}: resumed at {} of {} MiB", offset >> 20, bytes >> 20));
    }

    async fn until<T>(&mut self, what: &str, wanted: impl Fn(&Seen) -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            self.look().await;
            if let Some(found) = wanted(&self.last) {
                return Ok(found);
            }
            self.wait(started, what).await?;
        }
    }

    async fn wait(&mut self, started: Instant, what: &str) -> Result<()> {
        match self.last.attempt {
            Some(attempt) => self.screen.show_transfer(
                attempt.acked,
                attempt.bytes,
                &format!(
                    "node {}: {}, attempt {}, {}",
                    self.follower + 1,
                    self.last.progress,
                    attempt.number,
                    part(attempt)
                ),
            ),
            None => self.screen.show(self.load, self.begun),
        }
        if started.elapsed() > STEP_DEADLINE {
            return Err(format!(
                "not within {} s: {what}; the leader says {:?}",
                STEP_DEADLINE.as_secs(),
                self.last
            )
            .into());
        }
        sleep(TICK / 4).await;
        Ok(())
    }

    /// Asks the leader; keeps the last answer if there is none.
    async fn look(&mut self) {
        let Ok(page) = self.cluster.page(self.leader).await else { return };
        let Some(peer) = peer_of(&page, self.follower as u64 + 1) else { return };
        let seen = seen(peer);
        let now = Instant::now();
        if let Some(attempt) = seen.attempt {
            self.times.entry(attempt.number).or_insert((now, None));
        }
        if let Some((number, _)) = seen.last {
            let times = self.times.entry(number).or_insert((now, None));
            times.1.get_or_insert(now);
        }
        self.last = seen;
    }

    /// Every attempt, as both sides have written it down.
    fn table(&mut self) -> Result<()> {
        let mut books: BTreeMap<u64, (Option<Line>, Option<Line>)> = BTreeMap::new();
        for line in lines(&self.cluster.log(self.leader)?, "sent", self.follower as u64 + 1) {
            let attempt = line.attempt;
            books.entry(attempt).or_default().0 = Some(line);
        }
        for line in lines(&self.cluster.log(self.follower)?, "received", self.leader as u64 + 1) {
            let attempt = line.attempt;
            books.entry(attempt).or_default().1 = Some(line);
        }
        self.screen.say(String::new());
        self.screen.say("attempt   from MiB   sent bytes   received bytes   outcome      next after".into());
        let moved = books.iter().filter(|(_, (sent, _))| sent.as_ref().is_some_and(|s| s.bytes > 0));
        let rows: Vec<_> = moved.map(|(number, books)| (*number, books.clone())).collect();
        for (place, (number, (sent, received))) in rows.iter().enumerate() {
            let Some(sent) = sent else { continue };
            let received = received.as_ref().map_or("killed".to_owned(), |line| line.bytes.to_string());
            let next = rows.get(place + 1).and_then(|(next, _)| {
                let ended = self.times.get(number)?.1?;
                Some(self.times.get(next)?.0.saturating_duration_since(ended))
            });
            let next = next.map_or("-".to_owned(), |gap| {
                format!("{:.1} heartbeats", gap.as_millis() as f64 / HEARTBEAT_MS as f64)
            });
            let (from, bytes, outcome) = (sent.offset >> 20, sent.bytes, &sent.outcome);
            self.screen.say(format!(
                "{number:>7}   {from:>8}   {bytes:>10}   {received:>14}   {outcome:<10}   {next}"
            ));
        }
        Ok(())
    }
}

/// Values that do not compress, over a few connections.
async fn fill(leader: SocketAddr, count: u64, seed: u64) -> Result<()> {
    const CONNECTIONS: u64 = 8;
    let mut tasks = Vec::new();
    for n in 0..CONNECTIONS {
        tasks.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed ^ n);
            let mut connection = Connection::open(leader).await?;
            let mut value = vec![0; VALUE_BYTES];
            for key in (n..count).step_by(CONNECTIONS as usize) {
                random.fill(&mut value);
                let key = format!("bulk:{key}");
                match connection.ask(&[b"SET", key.as_bytes(), &value]).await? {
                    Reply::Simple(_) => {}
                    other => return Err(format!("SET {key}: {other:?}").into()),
                }
            }
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn part(attempt: Attempt) -> String {
    format!("{} of {} MiB", attempt.acked >> 20, attempt.bytes >> 20)
}

fn field(page: &Value, path: &[&str]) -> Result<u64> {
    let found = path.iter().try_fold(page, |value, key| value.get(key)).and_then(Value::as_u64);
    found.ok_or_else(|| format!("/status has no {}", path.join(".")).into())
}

fn peer_of(page: &Value, id: u64) -> Option<&Value> {
    page.get("peers")?.as_array()?.iter().find(|peer| peer.get("id").and_then(Value::as_u64) == Some(id))
}

fn seen(peer: &Value) -> Seen {
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).unwrap_or_default();
    let attempt = peer.get("attempt").filter(|attempt| attempt.is_object()).map(|attempt| Attempt {
        number: number(attempt, "number"),
        bytes: number(attempt, "bytes"),
        offset: number(attempt, "offset"),
        acked: number(attempt, "acked"),
    });
    let last = peer.get("last_attempt").filter(|last| last.is_object()).map(|last| {
        let outcome = last.get("outcome").map_or_else(String::new, |outcome| match outcome.as_str() {
            Some(text) => text.to_owned(),
            None => outcome.to_string().replace(['"', '{', '}'], ""),
        });
        (number(last, "number"), outcome)
    });
    let progress = peer.get("progress").and_then(Value::as_str).unwrap_or_default().to_owned();
    Seen { progress, lag: number(peer, "lag"), attempt, last }
}

/// A line of a log that closes the books of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    attempt: u64,
    offset: u64,
    bytes: u64,
    outcome: String,
}

fn lines(log: &str, direction: &str, peer: u64) -> Vec<Line> {
    log.lines()
        .filter(|line| line.contains("snapshot transfer ended"))
        .filter_map(|line| {
            // The fields stand behind the words; a span before them has some of the same names.
            let fields = line.split_once("snapshot transfer ended")?.1;
            let of = |key: &str| {
                fields
                    .split_whitespace()
                    .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
                    .map(|v| v.trim_matches('"'))
            };
            let wanted = of("direction")? == direction && of("peer")?.parse::<u64>().ok()? == peer;
            wanted.then_some(())?;
            Some(Line {
                attempt: of("attempt")?.parse().ok()?,
                offset: of("offset")?.parse().ok()?,
                bytes: of("payload_bytes")?.parse().ok()?,
                outcome: of("outcome")?.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_books_of_one_side_are_read_from_its_log() {
        let log = "INFO snapshot{node=1 group=1 peer=9 attempt=9}: towline_engine::snapshots::account: snapshot transfer \
                   ended group=1 peer=2 index=70 attempt=3 direction=\"sent\" offset=1048576 payload_bytes=77 total=99 \
                   seconds=0.1 outcome=\"failed\" cause=the transfer broke: x\nINFO something else peer=2\n";
        let line = Line { attempt: 3, offset: 1 << 20, bytes: 77, outcome: "failed".into() };
        assert_eq!(lines(log, "sent", 2), [line]);
        assert!(lines(log, "received", 2).is_empty() && lines(log, "sent", 3).is_empty());
    }

    #[test]
    fn a_peer_of_the_status_page_is_read() {
        let peer = json!({
            "id": 2, "progress": "snapshot", "lag": 5,
            "attempt": { "number": 4, "index": 9, "bytes": 100, "offset": 10, "sent": 30, "acked": 35 },
            "last_attempt": { "number": 3, "outcome": { "failed": "timeout" } }
        });
        let seen = seen(&peer);
        assert_eq!(seen.attempt, Some(Attempt { number: 4, bytes: 100, offset: 10, acked: 35 }));
        assert_eq!(seen.last, Some((3, "failed:timeout".to_owned())));
    }
}
