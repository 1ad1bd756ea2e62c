//! Case 5 on a node that runs: a ticket that is leaked, which no type can prevent.

use super::common::wait;
use super::stage::{BEHIND, Stage};
use crate::config::Config;
use crate::snapshots::Leak;
use crate::status::{AttemptOutcome, PeerProgress};

fn config() -> Config {
    Config {
        tick_ms: 20,
        heartbeat_ticks: 1,
        // Long: a busy machine must not cost it its office, with which its attempts would be over.
        election_ticks_min: 20,
        election_ticks_max: 25,
        lane_backoff_max_ms: 90,
        snapshot_backoff_max_ms: 400,
        ..Config::default()
    }
}

/// In ticks of the shard, which a machine with other work makes longer, but not more.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_ticket_is_reported_within_a_tick_once_and_the_next_attempt_finishes() {
    // Some of each peer, with waits between them of one tick, of two and more: a watchdog that looked only now and then would be
    // late for one of them.
    let tickets = 6;
    let mut stage = Stage::node(config()).await;
    let sends = stage.alone.node.inner.sends.clone();
    sends.leak_next(tickets);
    stage.lead(1).await;
    let made_up = |leaks: &Vec<Leak>| leaks.len() as u64 == tickets && leaks.iter().all(|leak| leak.made_up);
    let leaks = wait("the watchdog", || Some(sends.leaks()).filter(made_up)).await;
    assert!(leaks.iter().all(|leak| leak.ticks <= 1), "{leaks:?}");

    let finished = Some(AttemptOutcome::Finished);
    let peers = stage
        .when_behind("served again", |peer| {
            let last = peer.last_attempt.map(|last| last.outcome);
            peer.progress == PeerProgress::Replicate && last == finished
        })
        .await;
    for Leak { attempt, .. } in leaks {
        let of_leaked = peers.iter().find(|peer| peer.id == attempt.peer).unwrap();
        assert!(of_leaked.last_attempt.unwrap().number > attempt.number);
    }
    let beats = *stage.script.beats.borrow();
    stage.script.beats.subscribe().wait_for(|now| *now >= beats + 10).await.unwrap();
    let reports = |kind, outcome| stage.reports(kind, outcome);
    assert_eq!(reports("snapshot_failure", "synthesized"), tickets, "once each");
    assert_eq!((reports("snapshot_finish", "applied"), reports("snapshot_failure", "applied")), (2, 0));
}

/// The control: reports are lost, and nobody looks after them.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_watchdog_the_peer_of_a_leaked_ticket_is_latched() {
    let config = Config { control_lose_reports: true, ..config() };
    let mut stage = Stage::node(config).await;
    let sends = stage.alone.node.inner.sends.clone();
    sends.leak_next(1);
    stage.lead(1).await;
    let leaked = wait("the leak", || sends.leaks().pop()).await.attempt;
    let beats = *stage.script.beats.borrow();
    stage.script.beats.subscribe().wait_for(|now| *now >= beats + 200).await.unwrap();
    let peers = stage.when_behind("waits", |peer| BEHIND.contains(&peer.id.as_u64())).await;
    let of_leaked = peers.iter().find(|peer| peer.id == leaked.peer).unwrap();
    assert_eq!(of_leaked.progress, PeerProgress::Snapshot);
    assert_eq!(of_leaked.attempt.map(|attempt| attempt.number), Some(leaked.number));
    assert_eq!(stage.reports("snapshot_failure", "synthesized"), 0);
}
