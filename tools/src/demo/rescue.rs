//! A follower that the log has left behind: its snapshot transfer is cut several times, resumes, and finishes.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::peer::{Attempt, Ended, PeerView, mib, number};
use super::transfers::{Cut, Moments, Transfers, time_of_day};
use crate::Result;
use crate::cluster::{Cluster, Transport};
use crate::load::Load;
use crate::process::Stopped;
use crate::proxy::Stop;
use crate::resp::{Connection, Reply};
use crate::watch::{Screen, TICK};

/// Bytes of each value of the bulk.
const VALUE_BYTES: usize = 64 << 10;
/// How long the transfer takes at the configured rate: long enough to cut it.
const TRANSFER_SECONDS: u64 = 5;
/// Causes of a failed attempt at `/status`: a broken connection, or no progress in time.
const BROKEN: &str = "transfer";
const TIMEOUT: &str = "timeout";
const STEP_DEADLINE: Duration = Duration::from_secs(90);

/// Settings with which the leader makes exactly one snapshot, at three quarters of the bulk, and sends it slowly.
pub(super) fn settings(data: &Path, megabytes: u64) -> Result<Vec<String>> {
    let file = data.join("settings.toml");
    let bytes = megabytes << 20;
    let (log_bytes, bytes_per_second) = (bytes / 4 * 3, bytes / TRANSFER_SECONDS);
    let text = format!(
        "[engine]\nnetwork_workers = 1\nsnapshot_log_bytes = '{log_bytes}B'\nsnapshot_trailing_entries = 10\n\
         snapshot_bytes_per_second = '{bytes_per_second}B'\nsnapshot_progress_timeout = '1500ms'\n\
         snapshot_offer_timeout = '1500ms'\nsnapshot_backoff_max = '2s'\n"
    );
    fs::write(&file, text)?;
    Ok(vec!["--config".into(), file.to_string_lossy().into_owned()])
}

/// The rescue of one follower, as the leader's status page shows it.
pub(super) struct Rescue<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) screen: &'a mut Screen,
    pub(super) load: &'a Load,
    begun: Instant,
    pub(super) leader: usize,
    pub(super) follower: usize,
    /// Lengths of the logs of leader and follower at the start.
    skip: (usize, usize),
    last: PeerView,
    /// Bytes that the follower has, and the size of the snapshot, as last seen.
    transferred: (u64, u64),
    cuts: Vec<Cut>,
    moments: BTreeMap<u64, Moments>,
}

impl<'a> Rescue<'a> {
    pub(super) async fn new(
        cluster: &'a mut Cluster,
        screen: &'a mut Screen,
        load: &'a Load,
        begun: Instant,
        leader: usize,
        follower: usize,
    ) -> Result<Self> {
        let skip = (cluster.log(leader)?.len(), cluster.log(follower)?.len());
        let last = PeerView::read(&cluster.page(leader).await?, follower as u64 + 1)?;
        let (cuts, moments) = (Vec::new(), BTreeMap::new());
        let transferred = (0, 1);
        Ok(Self { cluster, screen, load, begun, leader, follower, skip, last, transferred, cuts, moments })
    }

    /// Kills the follower and writes until the leader's log no longer holds what it needs.
    pub(super) async fn leave_behind(&mut self, megabytes: u64, seed: u64) -> Result<()> {
        let started = Instant::now();
        // The follower may be the former leader, which has just restarted.
        let page = loop {
            match self.cluster.page(self.follower).await {
                Ok(page) => break page,
                Err(_) => self.pace(started, "the follower is up").await?,
            }
        };
        let applied = number(page.get("state").ok_or("/status has no state")?, "applied")?;
        self.cluster.kill(self.follower)?;
        self.screen.say(format!("kill -9 of a follower, node {}, at index {applied}", self.follower + 1));
        let address = *self.cluster.redis_addresses().get(self.leader).ok_or("no leader")?;
        let count = (megabytes << 20) / VALUE_BYTES as u64;
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
            let page = self.cluster.page(self.leader).await?;
            let first = number(page.get("log").ok_or("/status has no log")?, "first")?;
            if first > applied + 1 {
                self.screen.say(format!(
                    "{megabytes} MiB of values written; the log now begins at {first}: the follower is left behind"
                ));
                return Ok(());
            }
            self.screen.show(self.load, self.begun);
            self.pace(started, "the leader's log is compacted").await?;
        }
    }

    /// Restarts the follower and cuts its transfer: kills the receiver, then stalls the connection.
    pub(super) async fn bring_back(&mut self, transport: Transport) -> Result<()> {
        self.restart()?;
        let cut = self.attempt_past(1).await?;
        self.cluster.kill(self.follower)?;
        self.screen.say(format!("attempt {}: kill -9 of the receiver at {}", cut.number, cut.part()));
        // The kernel closes the TCP connections of a killed process. Over UDP only keep-alive finds out.
        let finder = match transport {
            Transport::Grpc => "the end of its connection",
            Transport::Quic => "keep-alive",
        };
        self.failed(cut, finder, BROKEN).await?;
        let heard = self.heard_of().await?;
        self.restart()?;
        self.healed(cut, heard).await?;
        match transport {
            Transport::Grpc => {
                self.stall(Stop::Everything, 2).await?;
                self.stall(Stop::AllButPings, 3).await?;
            }
            // All lanes share one QUIC connection: stalling it would stop the heartbeats too.
            Transport::Quic => self.pause(2).await?,
        }
        let cut = self.cuts.last().map_or(0, |cut| cut.number);
        // The rest of the transfer may end between two polls.
        let rest = self.until("another attempt", |_, seen| {
            let finished = seen.last.as_ref().is_some_and(|last| last.number > cut);
            // Bytes that the receiver re-reads count as acknowledged, not as sent.
            let accepted = seen.attempt.filter(|live| live.number > cut && live.sent > 0);
            Ok((finished || accepted.is_some()).then_some(accepted))
        });
        if let Some(rest) = rest.await? {
            self.resumed(rest);
        }
        let lag = self.finished().await?;
        self.catch_up(lag).await?;
        let transfers = self.transfers()?;
        self.screen.say(String::new());
        transfers.table(&self.moments).into_iter().for_each(|line| self.screen.say(line));
        transfers.judge(&self.cuts, &self.moments)
    }

    /// Stalls the connection of the transfer, and no other connection of the node.
    async fn stall(&mut self, stop: Stop, quarters: u64) -> Result<()> {
        let cut = self.attempt_past(quarters).await?;
        self.resumed(cut);
        let (lost, term) = (self.links_lost().await?, self.last.term);
        let (carried, next) = self.cluster.stop_the_busiest(self.follower, stop)?;
        if carried < cut.acked - cut.offset || next >= carried / 2 {
            return Err(format!(
                "no connection is clearly the transfer's: the busiest carried {carried} bytes, the next {next}"
            )
            .into());
        }
        // Where nothing passes, no end or reset of the connection passes either: only keep-alive can find it.
        let (how, finder, cause) = match stop {
            Stop::Everything => ("nothing passes any more", "keep-alive", BROKEN),
            Stop::AllButPings => ("nothing but keep-alive passes", "the progress timeout", TIMEOUT),
        };
        self.screen.say(format!("attempt {}: its connection stalls at {}: {how}", cut.number, cut.part()));
        self.failed(cut, finder, cause).await?;
        // The other links must survive: otherwise the sender found a dead follower, not a stalled transfer.
        if self.links_lost().await? != lost || self.last.term != term {
            return Err("more than the transfer was lost".into());
        }
        let page = self.cluster.page(self.follower).await?;
        let state = page.get("state").ok_or("/status has no state")?;
        if number(state, "leader")? != self.leader as u64 + 1 || number(state, "term")? != term {
            return Err(format!("the follower does not follow: {state}").into());
        }
        self.screen.say(format!(
            "           node {} follows node {} in term {term} all the while, and no other link was lost",
            self.follower + 1,
            self.leader + 1
        ));
        Ok(())
    }

    /// Stops the whole receiver for a while.
    async fn pause(&mut self, quarters: u64) -> Result<()> {
        let cut = self.attempt_past(quarters).await?;
        self.resumed(cut);
        let stopped = Stopped::new(self.cluster.process_id(self.follower)?)?;
        self.screen.say(format!(
            "attempt {}: the receiver stops (SIGSTOP; over QUIC all shares one connection) at {}",
            cut.number,
            cut.part()
        ));
        let failed = self.failed(cut, "keep-alive", BROKEN).await;
        let heard = self.heard_of().await;
        drop(stopped);
        failed?;
        self.screen.say(format!("node {} goes on (SIGCONT)", self.follower + 1));
        self.healed(cut, heard?).await
    }

    pub(super) fn restart(&mut self) -> Result<()> {
        self.cluster.restart(self.follower)?;
        self.screen.say(format!("restart of node {}", self.follower + 1));
        Ok(())
    }

    /// Waits for an attempt after the last cut one that is past this number of quarters.
    pub(super) async fn attempt_past(&mut self, quarters: u64) -> Result<Attempt> {
        let cut = self.cuts.last().map_or(0, |cut| cut.number);
        self.until("an attempt makes progress", |_, seen| {
            Ok(seen.attempt.filter(|live| live.number > cut && live.is_past(quarters)))
        })
        .await
    }

    /// Waits until the leader reports to Raft that this attempt failed. The cause shows what found the failure.
    async fn failed(&mut self, cut: Attempt, finder: &str, of: &str) -> Result<()> {
        let since = Instant::now();
        let Attempt { number, index, acked, .. } = cut;
        self.cuts.push(Cut { number, index, acked });
        let cause = self
            .until("the failure is reported", |_, seen| match &seen.last {
                Some(last) if last.number < number => Ok(None),
                None => Ok(None),
                Some(Ended { number: of, cause: Some(cause), .. }) if *of == number => {
                    Ok(Some(cause.clone()))
                }
                Some(other) => {
                    Err(format!("attempt {number} should have failed, but the leader shows {other:?}").into())
                }
            })
            .await?;
        if cause != of {
            return Err(format!("attempt {number} failed with cause `{cause}`, not `{of}`").into());
        }
        self.screen.say(format!(
            "attempt {number}: Failure reported ({cause}) after {} ms, found by {finder}",
            since.elapsed().as_millis()
        ));
        Ok(())
    }

    /// Waits until the leader receives messages of the follower again.
    async fn healed(&mut self, cut: Attempt, heard: u64) -> Result<()> {
        let started = Instant::now();
        while self.heard_of().await? == heard {
            self.wait(started, "the leader hears of the follower").await?;
        }
        self.moments.entry(cut.number).or_default().healed = Some(time_of_day());
        Ok(())
    }

    /// Messages that the leader has received from the follower.
    async fn heard_of(&self) -> Result<u64> {
        self.counter("towline_messages_received_total").await
    }

    async fn links_lost(&self) -> Result<u64> {
        self.counter("towline_links_closed_total").await
    }

    /// A counter of the leader's links with the follower.
    async fn counter(&self, name: &str) -> Result<u64> {
        let peer = format!("peer=\"{}\"", self.follower + 1);
        self.cluster.counter(self.leader, name, &[&peer]).await
    }

    fn resumed(&mut self, attempt: Attempt) {
        let Attempt { number, offset, bytes, .. } = attempt;
        self.screen.say(format!("attempt {number}: resumed at {} of {}", mib(offset), mib(bytes)));
    }

    /// Waits for the end of the transfer and returns the follower's lag at that time.
    async fn finished(&mut self) -> Result<u64> {
        let (number, lag) = self
            .until("the transfer finishes", |_, seen| {
                let last = seen.last.as_ref().filter(|last| last.outcome == "finished");
                Ok(last.map(|last| (last.number, seen.lag)))
            })
            .await?;
        self.screen.say(format!("attempt {number}: finished: durable, verified and taken by Raft"));
        Ok(lag)
    }

    /// Waits until the follower lacks only writes in flight, one per writer.
    async fn catch_up(&mut self, lag: u64) -> Result<()> {
        let (started, bound) = (Instant::now(), self.load.writers());
        loop {
            let seen = self.look().await?;
            if seen.progress == "replicate" && seen.lag <= bound {
                self.screen.say(format!(
                    "node {} replicates and has caught up: {lag} entries behind, {} after {} ms",
                    self.follower + 1,
                    seen.lag,
                    started.elapsed().as_millis()
                ));
                return Ok(());
            }
            let message =
                format!("node {}: {}, {} entries behind", self.follower + 1, seen.progress, seen.lag);
            self.screen.show_part(lag.saturating_sub(seen.lag), lag, &message);
            self.pace(started, "the follower catches up by appends").await?;
        }
    }

    /// Polls the leader until `wanted` finds something, fails, or the deadline passes.
    pub(super) async fn until<T>(
        &mut self,
        what: &str,
        wanted: impl Fn(&Self, &PeerView) -> Result<Option<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            let seen = self.look().await?;
            if let Some(found) = wanted(self, &seen)? {
                return Ok(found);
            }
            self.wait(started, what).await?;
        }
    }

    async fn wait(&mut self, started: Instant, what: &str) -> Result<()> {
        self.show();
        self.pace(started, what).await
    }

    async fn pace(&self, started: Instant, what: &str) -> Result<()> {
        if started.elapsed() > STEP_DEADLINE {
            let (deadline, last) = (STEP_DEADLINE.as_secs(), &self.last);
            return Err(format!("not within {deadline} s: {what}; the leader shows {last:?}").into());
        }
        sleep(TICK / 4).await;
        Ok(())
    }

    /// Shows the follower's bytes on the bar, and its state as text.
    pub(super) fn show(&mut self) {
        let PeerView { progress, lag, backoff_ms, .. } = &self.last;
        let node = self.follower + 1;
        let message = match self.last.attempt {
            Some(live) if live.acked == 0 => {
                format!("node {node}: {progress}, waits for attempt {}", live.number)
            }
            Some(live) => format!("node {node}: {progress}, attempt {}, {}", live.number, live.part()),
            None if *backoff_ms > 0 => format!("node {node}: {progress}, next attempt in {backoff_ms} ms"),
            None => format!("node {node}: {progress}, {lag} entries behind"),
        };
        let (has, of) = self.transferred;
        self.screen.show_part(has, of, &message);
    }

    /// Polls the leader. Returns an error if it does not answer, lost its leadership, or has another term.
    pub(super) async fn look(&mut self) -> Result<PeerView> {
        let seen = PeerView::read(&self.cluster.page(self.leader).await?, self.follower as u64 + 1)?;
        if seen.term != self.last.term {
            return Err(format!("the leader's term was {} and is {}", self.last.term, seen.term).into());
        }
        if let Some(last) = &seen.last {
            let moments = self.moments.entry(last.number).or_default();
            moments.seen.get_or_insert_with(|| (time_of_day(), Duration::from_millis(seen.backoff_ms)));
        }
        if let Some(live) = seen.attempt.filter(|live| live.acked > 0) {
            self.transferred = (live.acked, live.bytes);
        }
        self.last = seen.clone();
        Ok(seen)
    }

    pub(super) fn transfers(&self) -> Result<Transfers> {
        let (sender, receiver) = (self.cluster.log(self.leader)?, self.cluster.log(self.follower)?);
        let (skip_sender, skip_receiver) = self.skip;
        Ok(Transfers::read(
            sender.get(skip_sender..).unwrap_or_default(),
            receiver.get(skip_receiver..).unwrap_or_default(),
            self.leader as u64 + 1,
            self.follower as u64 + 1,
        ))
    }
}

/// Writes random values over a few connections.
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
            Result::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}
