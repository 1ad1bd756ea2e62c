//! Case 5 on a node that runs: a ticket that is leaked, which no type can prevent.

use std::time::Duration;

use super::common::wait;
use super::stage::{BEHIND, Stage};
use crate::config::Config;
use crate::status::{AttemptOutcome, PeerProgress};

fn config(tick: Duration) -> Config {
    Config {
        tick_ms: tick.as_millis() as u64,
        heartbeat_ticks: 1,
        election_ticks_min: 5,
        election_ticks_max: 8,
        lane_backoff_max_ms: 90,
        snapshot_backoff_max_ms: 400,
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_ticket_is_reported_within_a_tick_once_and_the_next_attempt_finishes() {
    // Long, so that what the machine does meanwhile is little beside it.
    let tick = Duration::from_millis(250);
    let mut stage = Stage::node(config(tick)).await;
    let sends = stage.alone.node.inner.sends.clone();
    let skipped = |stage: &Stage| stage.alone.counter("towline_ticks_skipped_total", "");
    sends.leak_next();
    let skipped_before = skipped(&stage);
    stage.lead(1).await;
    let (leaked, since) = wait("the leak", || sends.leaked()).await;
    wait("the watchdog", || (stage.reports("snapshot_failure", "synthesized") > 0).then_some(())).await;
    // One until it looks, and what the machine keeps the shard and this test from doing.
    let ticks = 3 + (skipped(&stage) - skipped_before) as u32;
    assert!(since.elapsed() <= ticks * tick, "{:?}, {ticks} ticks of {tick:?}", since.elapsed());

    let finished = Some(AttemptOutcome::Finished);
    let peers = stage
        .when_behind("served again", |peer| {
            let last = peer.last_attempt.map(|last| last.outcome);
            peer.progress == PeerProgress::Replicate && last == finished
        })
        .await;
    let of_leaked = peers.iter().find(|peer| peer.id == leaked.peer).unwrap();
    assert!(of_leaked.last_attempt.unwrap().number > leaked.number);
    let beats = *stage.script.beats.borrow();
    stage.script.beats.subscribe().wait_for(|now| *now >= beats + 10).await.unwrap();
    let reports = |kind, outcome| stage.reports(kind, outcome);
    assert_eq!(reports("snapshot_failure", "synthesized"), 1, "once");
    assert_eq!((reports("snapshot_finish", "applied"), reports("snapshot_failure", "applied")), (2, 0));
}

/// The control: reports are lost, and nobody looks after them.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_watchdog_the_peer_of_a_leaked_ticket_is_latched() {
    let config = Config { control_lose_reports: true, ..config(Duration::from_millis(20)) };
    let mut stage = Stage::node(config).await;
    let sends = stage.alone.node.inner.sends.clone();
    sends.leak_next();
    stage.lead(1).await;
    let (leaked, _) = wait("the leak", || sends.leaked()).await;
    let beats = *stage.script.beats.borrow();
    stage.script.beats.subscribe().wait_for(|now| *now >= beats + 200).await.unwrap();
    let peers = stage.when_behind("waits", |peer| BEHIND.contains(&peer.id.as_u64())).await;
    let of_leaked = peers.iter().find(|peer| peer.id == leaked.peer).unwrap();
    assert_eq!(of_leaked.progress, PeerProgress::Snapshot);
    assert_eq!(of_leaked.attempt.map(|attempt| attempt.number), Some(leaked.number));
    assert_eq!(stage.reports("snapshot_failure", "synthesized"), 0);
}
