//! Snapshots between real processes: a follower that the log has left behind, and everything that may happen to its
//! transfer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use std::time::Instant;

use crate::common::{Cluster, SETTINGS, alone, wait};
use serde_json::Value;

/// Bytes of a value, and how many are written while the follower is away.
const VALUE_BYTES: usize = 64 << 10;
const VALUES: usize = 256;
/// What the store keeps under one checksum: so much that was received may be lost with the process.
const STORE_CHUNK_BYTES: u64 = 256 << 10;
/// The longest first wait after a failure: one heartbeat, and a quarter of jitter.
const FIRST_WAIT_MS: u64 = 125;

/// One snapshot at three quarters of that, and a transfer that takes more than a second, so that there is a middle of it.
fn settings() -> String {
    let all = (VALUES * VALUE_BYTES) as u64;
    format!(
        "{SETTINGS}snapshot_log_bytes = '{}B'\nsnapshot_trailing_entries = 20\nsnapshot_bytes_per_second = '{}B'\n\
         snapshot_progress_timeout = '1s'\nsnapshot_offer_timeout = '1s'\nsnapshot_backoff_max = '500ms'\n",
        all / 4 * 3,
        all / 2
    )
}

/// A cluster, and the follower that needs a snapshot.
struct Rescue {
    cluster: Cluster,
    leader: usize,
    follower: usize,
    /// The last index the follower had applied before it went down.
    missed: u64,
    back_since: Instant,
}

impl Rescue {
    /// The follower goes down, misses more than the log keeps, and comes back.
    fn begin(mut cluster: Cluster) -> Self {
        let leader = cluster.leader();
        let follower = cluster.others(leader)[0];
        cluster.write_somewhere(&[leader], "before", "1");
        cluster.assert_equal();
        let (missed, _) = cluster.ports[follower].digest().unwrap();
        cluster.kill(follower);
        let mut client = cluster.ports[leader].client().unwrap();
        for key in 0..VALUES {
            // No two values are alike, or the store might shrink them.
            let value: Vec<u8> = (0..VALUE_BYTES).map(|n| ((n * (key + 3)) >> 3) as u8).collect();
            redis::cmd("SET").arg(format!("key-{key}")).arg(value).query::<()>(&mut client).unwrap();
        }
        wait("compaction beyond the follower", || {
            let status = cluster.ports[leader].json("/status")?;
            (status["log"]["first"].as_u64()? > missed + 1).then_some(())
        });
        let back_since = Instant::now();
        cluster.restart(follower);
        Self { cluster, leader, follower, missed, back_since }
    }

    /// What the leader says of the follower.
    fn peer(&self) -> Option<Value> {
        let status = self.cluster.ports[self.leader].json("/status")?;
        let id = self.follower as u64 + 1;
        status["peers"].as_array()?.iter().find(|peer| peer["id"] == id).cloned()
    }

    /// Waits for an attempt of which so much has arrived, in parts of four.
    fn attempt_at(&self, quarters: u64) -> Value {
        self.attempt_after(0, quarters)
    }

    /// The same of an attempt later than `cut`. Bytes that the receiver reads again before it answers the offer do not
    /// count: where the attempt begins is not known then.
    fn attempt_after(&self, cut: u64, quarters: u64) -> Value {
        wait("an attempt on its way", || {
            let peer = self.peer()?;
            let attempt = &peer["attempt"];
            let arrived = attempt["acked"].as_u64()? * 4 > attempt["bytes"].as_u64()? * quarters;
            let is_offered = attempt["phase"] == "verifying" && attempt["sent"] == 0;
            (number(attempt) > cut && arrived && !is_offered).then_some(peer)
        })
    }

    /// Waits until the follower has counted so many more messages of the leader beside appends: its heartbeats.
    fn heartbeats(&self, wanted: u64) {
        let labels = format!("peer=\"{}\",transport=\"grpc\",lane=\"control\"", self.leader + 1);
        let port = &self.cluster.ports[self.follower];
        let taken =
            || Some(port.counter("towline_messages_received_total", &labels)).filter(|taken| *taken > 0);
        let first = wait("a first heartbeat", taken);
        wait("heartbeats", || (taken()? >= first + wanted).then_some(()));
    }

    /// Waits until an attempt from `number` on has ended so.
    fn ended(&self, number: u64, outcome: impl Fn(&Value) -> bool) -> Value {
        wait("the end of an attempt", || {
            let last = self.peer()?["last_attempt"].take();
            (last["number"].as_u64()? >= number && outcome(&last["outcome"])).then_some(last)
        })
    }

    fn finished(&self) -> Value {
        let last = self.ended(0, |outcome| outcome == "finished");
        wait("the follower to replicate", || (self.peer()?["progress"] == "replicate").then_some(()));
        last
    }

    /// The line that one side wrote of an attempt that ended so.
    fn line(&mut self, at: usize, direction: &str, outcome: &str) -> String {
        let wanted = [format!("direction=\"{direction}\""), format!("outcome=\"{outcome}\"")];
        wait("the line of a transfer", || {
            let log = self.cluster.process(at).log();
            log.lines()
                .find(|l| l.contains("snapshot transfer ended") && wanted.iter().all(|w| l.contains(w)))
                .map(ToOwned::to_owned)
        })
    }
}

fn field(line: &str, name: &str) -> u64 {
    let fields = line.split_once("snapshot transfer ended").unwrap().1;
    let value = fields.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{name} in {line}")).parse().unwrap()
}

/// Zero for no attempt.
fn number(attempt: &Value) -> u64 {
    attempt["number"].as_u64().unwrap_or(0)
}

#[test]
fn a_follower_that_the_log_left_behind_gets_every_key_and_the_books_agree() {
    let _alone = alone();
    let mut rescue = Rescue::begin(Cluster::start_with(3, &settings()));
    let midway = rescue.attempt_at(1);
    // What an operator sees of a peer, while it happens.
    let of = |peer: &Value, name: &str| peer[name].as_u64().unwrap_or_else(|| panic!("{name} in {peer}"));
    assert_eq!(midway["progress"], "snapshot");
    assert_eq!((of(&midway, "backoff_ms"), &midway["last_attempt"]), (0, &Value::Null), "{midway}");
    let attempt = &midway["attempt"];
    assert!(of(attempt, "sent") >= of(attempt, "acked"), "{midway}");
    assert_eq!(of(attempt, "offset"), 0, "{midway}");
    let log = rescue.cluster.ports[rescue.leader].json("/status").unwrap()["log"].take();
    assert_eq!(of(attempt, "index"), of(&log, "snapshot"), "{midway}, {log}");
    // It had what it had applied, and lacks all since; nobody writes meanwhile.
    assert!((rescue.missed..of(attempt, "index")).contains(&of(&midway, "matched")), "{midway}");
    assert_eq!(of(&midway, "lag"), of(&log, "last") - of(&midway, "matched"), "{midway}, {log}");
    let later = rescue.attempt_at(2);
    let (age, later_age) = (of(&midway, "progress_age_ms"), of(&later, "progress_age_ms"));
    assert!(
        age < later_age && later_age <= rescue.back_since.elapsed().as_millis() as u64,
        "{age}, {later_age}"
    );

    let last = rescue.finished();
    wait("nothing to be missing", || (of(&rescue.peer()?, "lag") == 0).then_some(()));
    assert_eq!(number(&last), number(attempt), "the first attempt does it: {last}");
    rescue.cluster.assert_equal();
    let bytes = attempt["bytes"].as_u64().unwrap();
    assert!(bytes >= (VALUES * VALUE_BYTES / 2) as u64, "{bytes}");
    let (leader, follower) = (rescue.leader, rescue.follower);
    for (at, direction) in [(leader, "sent"), (follower, "received")] {
        let line = rescue.line(at, direction, "finished");
        assert_eq!((field(&line, "payload_bytes"), field(&line, "total")), (bytes, bytes), "{line}");
        let labels = format!("direction=\"{direction}\"");
        let name = "towline_snapshot_payload_bytes_total";
        assert_eq!(rescue.cluster.ports[at].counter(name, &labels), bytes, "{direction}");
    }
}

/// The transfer is cut by the death of its receiver; the next goes on where it was.
fn resumes_after_the_death_of_the_receiver(cluster: Cluster) {
    let mut rescue = Rescue::begin(cluster);
    let midway = rescue.attempt_at(2);
    let follower = rescue.follower;
    rescue.cluster.kill(follower);
    let cut = number(&midway["attempt"]);
    let failed = rescue.ended(cut, |outcome| outcome.get("failed").is_some());
    assert_eq!(number(&failed), cut, "{failed}");
    assert_eq!(failed["outcome"]["failed"], "transfer", "{failed}");
    let peer = rescue.peer().unwrap();
    assert!(peer["backoff_ms"].as_u64().unwrap() <= FIRST_WAIT_MS, "{peer}");
    assert_ne!(peer["progress"], "snapshot", "Raft was told: {peer}");
    rescue.cluster.restart(follower);
    let again = rescue.attempt_after(cut, 0)["attempt"].take();
    let (offset, acked) = (again["offset"].as_u64().unwrap(), midway["attempt"]["acked"].as_u64().unwrap());
    assert!(offset + STORE_CHUNK_BYTES >= acked, "{again} after {midway}");
    assert_eq!(again["index"], midway["attempt"]["index"]);
    rescue.finished();
    rescue.cluster.assert_equal();
    let (leader, bytes) = (rescue.leader, midway["attempt"]["bytes"].as_u64().unwrap());
    let first = rescue.line(leader, "sent", "failed");
    assert!(first.contains("cause=the transfer broke: "), "{first}");
    for (at, direction) in [(leader, "sent"), (follower, "received")] {
        let line = rescue.line(at, direction, "finished");
        assert_eq!(field(&line, "offset"), offset, "{line}");
        assert_eq!(offset + field(&line, "payload_bytes"), bytes, "{line}");
    }
}

#[test]
fn a_transfer_whose_receiver_was_killed_goes_on_where_it_was() {
    let _alone = alone();
    resumes_after_the_death_of_the_receiver(Cluster::start_with(3, &settings()));
}

#[test]
fn a_transfer_over_quic_whose_receiver_was_killed_goes_on_where_it_was() {
    let _alone = alone();
    resumes_after_the_death_of_the_receiver(Cluster::secure_with(&["quic"; 3], &settings()));
}

#[test]
fn a_receiver_that_stalls_is_given_up_in_time_and_tried_again() {
    let _alone = alone();
    let mut rescue = Rescue::begin(Cluster::start_with(3, &settings()));
    let midway = rescue.attempt_at(1);
    let (follower, cut) = (rescue.follower, number(&midway["attempt"]));
    rescue.cluster.process(follower).signal("STOP");
    let failed = rescue.ended(cut, |outcome| outcome.get("failed").is_some());
    rescue.cluster.process(follower).signal("CONT");
    assert_eq!(number(&failed), cut, "{failed}");
    // Keep-alive finds it, or the progress timeout on a machine that is slow.
    let cause = failed["outcome"]["failed"].as_str().unwrap();
    assert!(["transfer", "timeout"].contains(&cause), "{failed}");
    let last = rescue.finished();
    assert!(number(&last) > cut, "{last}");
    rescue.cluster.assert_equal();
}

/// The transfer is cut, the receiver comes back, and the leader's heart beats on. Gives the attempt that was cut and what
/// the leader says of the follower then.
fn cut_and_thirty_heartbeats(rescue: &mut Rescue) -> (u64, Value) {
    let (cut, follower) = (number(&rescue.attempt_at(1)["attempt"]), rescue.follower);
    rescue.cluster.kill(follower);
    let leader = rescue.leader;
    rescue.line(leader, "sent", "failed");
    rescue.cluster.restart(follower);
    rescue.heartbeats(30);
    (cut, rescue.peer().unwrap())
}

#[test]
fn with_lost_reports_a_follower_stays_latched() {
    let _alone = alone();
    let mut rescue = Rescue::begin(Cluster::start_with_flags(3, &settings(), &["--lose-reports"]));
    let (cut, peer) = cut_and_thirty_heartbeats(&mut rescue);
    assert_eq!((&peer["progress"], &peer["last_attempt"]), (&"snapshot".into(), &Value::Null), "{peer}");
    assert_eq!(peer["attempt"]["number"], cut, "nobody has told Raft that it is over: {peer}");
    assert_eq!((&peer["attempt"]["sent"], &peer["attempt"]["acked"]), (&0.into(), &0.into()), "{peer}");
    let (applied, _) = rescue.cluster.ports[rescue.follower].digest().unwrap();
    assert_eq!(applied, rescue.missed, "it got nothing");
}

#[test]
fn with_its_reports_the_same_cut_is_made_up_for() {
    let _alone = alone();
    let mut rescue = Rescue::begin(Cluster::start_with(3, &settings()));
    let (cut, peer) = cut_and_thirty_heartbeats(&mut rescue);
    let later = number(&peer["attempt"]).max(number(&peer["last_attempt"]));
    assert!(later > cut, "another attempt is under way or over: {peer}");
    rescue.finished();
    rescue.cluster.assert_equal();
}

#[test]
fn a_leader_that_dies_while_it_sends_is_replaced_by_one_that_sends() {
    let _alone = alone();
    let mut rescue = Rescue::begin(Cluster::start_with(3, &settings()));
    rescue.attempt_at(1);
    let dead = rescue.leader;
    rescue.cluster.kill(dead);
    let others = rescue.cluster.others(dead);
    rescue.leader = rescue.cluster.leader_among(&others);
    assert_ne!(rescue.leader, rescue.follower, "what was left behind cannot lead");
    rescue.finished();
    rescue.cluster.write_somewhere(&others, "after", "1");
    rescue.cluster.restart(dead);
    rescue.cluster.leader();
    rescue.cluster.assert_equal();
}

#[test]
fn what_was_restored_survives_the_death_of_the_node_at_once() {
    let _alone = alone();
    let mut rescue = Rescue::begin(Cluster::start_with(3, &settings()));
    rescue.ended(0, |outcome| outcome == "finished");
    let follower = rescue.follower;
    rescue.cluster.kill(follower);
    rescue.cluster.restart(follower);
    rescue.cluster.leader();
    rescue.cluster.assert_equal();
    // It needed no other snapshot for it.
    let sent = rescue.cluster.ports[rescue.leader].counter("towline_snapshot_transfers_total", "sent");
    assert_eq!(sent, 1);
}
