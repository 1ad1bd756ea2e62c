//! Snapshots for a follower that the log has left behind, with failures during the transfer.

use std::time::Instant;

use crate::common::{Cluster, SETTINGS, wait};
use serde_json::Value;

/// Bytes of a value, and the number of values that the follower misses.
const VALUE_BYTES: usize = 64 << 10;
const VALUES: usize = 256;
/// Bytes under one checksum of the snapshot store. A killed receiver may lose as many.
const STORE_CHUNK_BYTES: u64 = 256 << 10;
/// The longest wait after a first failure: one heartbeat and a quarter of jitter.
const FIRST_WAIT_MS: u64 = 125;

/// Makes one snapshot after three quarters of the values. Slows the transfer to more than a second, so tests can
/// interrupt it.
fn settings() -> String {
    let all = (VALUES * VALUE_BYTES) as u64;
    format!(
        "{SETTINGS}snapshot_log_bytes = '{}B'\nsnapshot_trailing_entries = 20\nsnapshot_bytes_per_second = '{}B'\n\
         snapshot_progress_timeout = '1s'\nsnapshot_offer_timeout = '1s'\nsnapshot_backoff_max = '500ms'\n",
        all / 4 * 3,
        all / 2
    )
}

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
        let others = cluster.others(leader);
        let follower = others[0];
        cluster.write_somewhere(&[leader], "before", "1");
        cluster.assert_equal();
        let (missed, _) = cluster.ports[follower].digest().unwrap();
        cluster.kill(follower);
        // The disk of a busy machine may stand still for an election timeout: the leadership may change.
        let up = [leader, others[1]];
        for key in 0..VALUES {
            // No two values are alike, or the store might shrink them.
            let value: Vec<u8> = (0..VALUE_BYTES).map(|n| ((n * (key + 3)) >> 3) as u8).collect();
            cluster.write_somewhere(&up, &format!("key-{key}"), &value);
        }
        let leader = cluster.leader_among(&up);
        wait("compaction beyond the follower", || {
            let status = cluster.ports[leader].json("/status")?;
            (status["log"]["first"].as_u64()? > missed + 1).then_some(())
        });
        let back_since = Instant::now();
        cluster.restart(follower);
        Self { cluster, leader, follower, missed, back_since }
    }

    /// The leader's status of the follower.
    fn peer(&self) -> Option<Value> {
        let status = self.cluster.ports[self.leader].json("/status")?;
        let id = self.follower as u64 + 1;
        status["peers"].as_array()?.iter().find(|peer| peer["id"] == id).cloned()
    }

    /// Waits until more than `quarters` of an attempt later than `cut` have arrived. Skips the time in which the receiver
    /// reads its partial file before it answers the offer.
    fn attempt_after(&self, cut: u64, quarters: u64) -> Value {
        wait("an attempt on its way", || {
            let peer = self.peer()?;
            let attempt = &peer["attempt"];
            let arrived = attempt["acked"].as_u64()? * 4 > attempt["bytes"].as_u64()? * quarters;
            let is_offered = attempt["phase"] == "verifying" && attempt["sent"] == 0;
            (number(attempt) > cut && arrived && !is_offered).then_some(peer)
        })
    }

    /// Waits until an attempt from `number` on has ended with `outcome`.
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

    /// The log line of one side about an attempt with this outcome.
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

fn number(attempt: &Value) -> u64 {
    attempt["number"].as_u64().unwrap_or(0)
}

#[test]
fn a_follower_gets_every_key_and_both_sides_count_the_same_bytes() {
    let mut rescue = Rescue::begin(Cluster::start_with(3, &settings()));
    let midway = rescue.attempt_after(0, 1);
    // What `/status` shows during the transfer.
    let of = |peer: &Value, name: &str| peer[name].as_u64().unwrap_or_else(|| panic!("{name} in {peer}"));
    assert_eq!(midway["progress"], "snapshot");
    assert_eq!((of(&midway, "backoff_ms"), &midway["last_attempt"]), (0, &Value::Null), "{midway}");
    let attempt = &midway["attempt"];
    assert!(of(attempt, "sent") >= of(attempt, "acked"), "{midway}");
    assert_eq!(of(attempt, "offset"), 0, "{midway}");
    let log = rescue.cluster.ports[rescue.leader].json("/status").unwrap()["log"].take();
    assert_eq!(of(attempt, "index"), of(&log, "snapshot"), "{midway}, {log}");
    // No client writes meanwhile, so the follower lacks everything since it stopped.
    assert!((rescue.missed..of(attempt, "index")).contains(&of(&midway, "matched")), "{midway}");
    assert_eq!(of(&midway, "lag"), of(&log, "last") - of(&midway, "matched"), "{midway}, {log}");
    let later = rescue.attempt_after(0, 2);
    let (age, later_age) = (of(&midway, "progress_age_ms"), of(&later, "progress_age_ms"));
    assert!(
        age < later_age && later_age <= rescue.back_since.elapsed().as_millis() as u64,
        "{age}, {later_age}"
    );

    let last = rescue.finished();
    wait("nothing to be missing", || (of(&rescue.peer()?, "lag") == 0).then_some(()));
    assert_eq!(number(&last), number(attempt), "one attempt: {last}");
    rescue.cluster.assert_equal();
    let bytes = attempt["bytes"].as_u64().unwrap();
    assert!(bytes >= (VALUES * VALUE_BYTES / 2) as u64, "{bytes}");
    let (leader, follower) = (rescue.leader, rescue.follower);
    for (at, direction) in [(leader, "sent"), (follower, "received")] {
        let line = rescue.line(at, direction, "finished");
        assert_eq!((field(&line, "payload_bytes"), field(&line, "total")), (bytes, bytes), "{line}");
        let name = "towline_snapshot_payload_bytes_total";
        assert_eq!(rescue.cluster.ports[at].counter(name, &[direction]), bytes, "{direction}");
    }
}

/// Kills the receiver during a transfer. The next attempt goes on where the first one ended.
fn resumes_after_the_death_of_the_receiver(cluster: Cluster) {
    let mut rescue = Rescue::begin(cluster);
    let midway = rescue.attempt_after(0, 2);
    let follower = rescue.follower;
    rescue.cluster.kill(follower);
    let cut = number(&midway["attempt"]);
    let failed = rescue.ended(cut, |outcome| outcome.get("failed").is_some());
    assert_eq!(number(&failed), cut, "{failed}");
    assert_eq!(failed["outcome"]["failed"], "transfer", "{failed}");
    let peer = rescue.peer().unwrap();
    assert!(peer["backoff_ms"].as_u64().unwrap() <= FIRST_WAIT_MS, "{peer}");
    assert_ne!(peer["progress"], "snapshot", "Raft got the report: {peer}");
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
fn a_transfer_resumes_after_its_receiver_was_killed() {
    resumes_after_the_death_of_the_receiver(Cluster::start_with(3, &settings()));
}

#[test]
fn a_transfer_over_quic_resumes_after_its_receiver_was_killed() {
    resumes_after_the_death_of_the_receiver(Cluster::secure(&["quic"; 3], &settings()));
}

#[test]
fn a_transfer_to_a_paused_receiver_fails_in_time_and_is_tried_again() {
    let mut rescue = Rescue::begin(Cluster::start_with(3, &settings()));
    let midway = rescue.attempt_after(0, 1);
    let (follower, cut) = (rescue.follower, number(&midway["attempt"]));
    rescue.cluster.process(follower).signal("STOP");
    let failed = rescue.ended(cut, |outcome| outcome.get("failed").is_some());
    rescue.cluster.process(follower).signal("CONT");
    assert_eq!(number(&failed), cut, "{failed}");
    // Keep-alive finds it, or on a slow machine the progress timeout.
    let cause = failed["outcome"]["failed"].as_str().unwrap();
    assert!(["transfer", "timeout"].contains(&cause), "{failed}");
    let last = rescue.finished();
    assert!(number(&last) > cut, "{last}");
    rescue.cluster.assert_equal();
}

#[test]
fn a_new_leader_sends_the_snapshot_when_the_old_one_dies() {
    let mut rescue = Rescue::begin(Cluster::start_with(3, &settings()));
    rescue.attempt_after(0, 1);
    let dead = rescue.leader;
    rescue.cluster.kill(dead);
    let others = rescue.cluster.others(dead);
    rescue.leader = rescue.cluster.leader_among(&others);
    assert_ne!(rescue.leader, rescue.follower, "the follower behind cannot lead");
    rescue.finished();
    rescue.cluster.write_somewhere(&others, "after", "1");
    rescue.cluster.restart(dead);
    rescue.cluster.leader();
    rescue.cluster.assert_equal();
}
