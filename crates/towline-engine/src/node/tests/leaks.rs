//! Case 5 on a node that runs: the report of a ticket never comes. For the node it is the same as a ticket that is leaked,
//! which no type can prevent.

use std::time::Duration;

use super::common::wait;
use super::seams::Loss;
use super::stage::{BEHIND, Stage};
use crate::config::Config;
use crate::status::{AttemptOutcome, PeerProgress};

fn config() -> Config {
    Config {
        tick: Duration::from_millis(20),
        heartbeat_interval: Duration::from_millis(20),
        // Long: a busy machine must not cost it its office, with which its attempts would be over.
        election_timeout_min: Duration::from_millis(400),
        election_timeout_max: Duration::from_millis(500),
        lane_backoff_max: Duration::from_millis(90),
        snapshot_backoff_max: Duration::from_millis(400),
        ..Config::default()
    }
}

/// Heartbeats until the watchdog reported: one tick sends each of the two peers one, and a ping another. As many may wait in
/// the lanes from the tick before.
const BEATS_MAX: u64 = 8;

/// The heartbeats are a clock that runs slower on a machine with other work, as the shard does.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_report_is_made_up_for_within_a_tick_once_and_the_next_attempt_finishes() {
    // Some of each peer, with waits between them of one tick, of two and more: a watchdog that looked only now and then would be
    // late for one of them.
    let reports = 6;
    let mut stage = Stage::node(config()).await;
    stage.losses.next_of_tickets(reports);
    stage.lead(1).await;
    let made_up =
        |lost: &Vec<Loss>| lost.len() as u64 == reports && lost.iter().all(|loss| loss.beats.is_some());
    let lost = wait("the watchdog", || Some(stage.losses.so_far()).filter(made_up)).await;
    // A task whose thread is held up between its report and its end still holds the ticket: that may make a few late.
    let in_time = lost.iter().filter(|loss| loss.beats <= Some(BEATS_MAX)).count();
    assert!(in_time > lost.len() / 2, "{lost:?}");

    let finished = Some(AttemptOutcome::Finished);
    let peers = stage
        .when_behind("served again", |peer| {
            let last = peer.last_attempt.map(|last| last.outcome);
            peer.progress == PeerProgress::Replicate && last == finished
        })
        .await;
    for Loss { attempt, .. } in lost {
        let of_lost = peers.iter().find(|peer| peer.id == attempt.peer).unwrap();
        assert!(of_lost.last_attempt.unwrap().number > attempt.number);
    }
    let beats = *stage.script.beats.borrow();
    stage.script.beats.subscribe().wait_for(|now| *now >= beats + 10).await.unwrap();
    let counted = |kind, outcome| stage.reports(kind, outcome);
    assert_eq!(counted("snapshot_failure", "synthesized"), reports, "once each");
    assert_eq!((counted("snapshot_finish", "applied"), counted("snapshot_failure", "applied")), (2, 0));
}

/// The control: what the watchdog reports is lost as well.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_report_of_the_watchdog_the_peer_is_latched() {
    let mut stage = Stage::node(config()).await;
    stage.losses.all();
    stage.lead(1).await;
    let lost = wait("the loss", || stage.losses.so_far().pop()).await.attempt;
    let beats = *stage.script.beats.borrow();
    stage.script.beats.subscribe().wait_for(|now| *now >= beats + 200).await.unwrap();
    let peers = stage.when_behind("waits", |peer| BEHIND.contains(&peer.id.as_u64())).await;
    let of_lost = peers.iter().find(|peer| peer.id == lost.peer).unwrap();
    assert_eq!(of_lost.progress, PeerProgress::Snapshot);
    assert_eq!(of_lost.attempt.map(|attempt| attempt.number), Some(lost.number));
    assert_eq!(stage.reports("snapshot_failure", "synthesized"), 0);
}
