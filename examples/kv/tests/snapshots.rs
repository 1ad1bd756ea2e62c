//! Snapshots between real processes: a follower that the log has left behind, and everything that may happen to its
//! transfer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

#[allow(dead_code)] // not all of it is needed here
mod common;

use common::{Cluster, SETTINGS, alone, wait};
use serde_json::Value;

/// Bytes of a value, and how many are written while the follower is away.
const VALUE_BYTES: usize = 64 << 10;
const VALUES: usize = 256;

/// One snapshot at three quarters of that, and a transfer that takes more than a second, so that there is a middle of it.
fn settings() -> String {
    let all = (VALUES * VALUE_BYTES) as u64;
    format!(
        "{SETTINGS}snapshot_log_bytes = {}\nsnapshot_trailing_entries = 20\nsnapshot_bytes_per_second = {}\n\
         snapshot_progress_timeout_ms = 1000\nsnapshot_offer_timeout_ms = 1000\nsnapshot_backoff_max_ms = 500\n",
        all / 4 * 3,
        all / 2
    )
}

/// A cluster, and the follower that needs a snapshot.
struct Rescue {
    cluster: Cluster,
    leader: usize,
    follower: usize,
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
        cluster.restart(follower);
        Self { cluster, leader, follower }
    }

    /// What the leader says of the follower.
    fn peer(&self) -> Option<Value> {
        let status = self.cluster.ports[self.leader].json("/status")?;
        let id = self.follower as u64 + 1;
        status["peers"].as_array()?.iter().find(|peer| peer["id"] == id).cloned()
    }

    /// Waits for an attempt of which so much has arrived, in parts of four.
    fn attempt_at(&self, quarters: u64) -> Value {
        wait("an attempt on its way", || {
            let peer = self.peer()?;
            let attempt = &peer["attempt"];
            (attempt["acked"].as_u64()? * 4 > attempt["bytes"].as_u64()? * quarters).then_some(peer)
        })
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

fn number(attempt: &Value) -> u64 {
    attempt["number"].as_u64().unwrap()
}

#[test]
fn a_follower_that_the_log_left_behind_gets_every_key_and_the_books_agree() {
    let _alone = alone();
    let mut rescue = Rescue::begin(Cluster::start_with(3, &settings()));
    let midway = rescue.attempt_at(1);
    // What an operator sees of a peer, while it happens.
    assert_eq!(midway["progress"], "snapshot");
    for name in ["progress_age_ms", "matched", "lag"] {
        assert!(midway[name].is_u64(), "{name} in {midway}");
    }
    let attempt = &midway["attempt"];
    assert!(attempt["sent"].as_u64().unwrap() >= attempt["acked"].as_u64().unwrap(), "{midway}");
    assert_eq!(attempt["offset"], 0, "{midway}");

    let last = rescue.finished();
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
    rescue.cluster.restart(follower);
    rescue.finished();
    rescue.cluster.assert_equal();
    let (leader, bytes) = (rescue.leader, midway["attempt"]["bytes"].as_u64().unwrap());
    let first = rescue.line(leader, "sent", "failed");
    assert!(first.contains("cause="), "{first}");
    for (at, direction) in [(leader, "sent"), (follower, "received")] {
        let line = rescue.line(at, direction, "finished");
        let (offset, moved) = (field(&line, "offset"), field(&line, "payload_bytes"));
        // A receiver that was killed may have to take again what was not synced, of which there are two pieces at most.
        assert!(offset > 0, "{line}");
        assert_eq!(offset + moved, bytes, "{line}");
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
    let last = rescue.finished();
    assert!(number(&last) > cut, "{last}");
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
