//! On a running node: the report of a ticket is lost. For the node that equals a leaked ticket.

use std::time::Duration;

use super::common::wait;
use super::fixture::{BEHIND, LeaderFixture};
use super::hooks::LostReport;
use crate::config::Config;
use crate::status::{AttemptOutcome, PeerProgress};

fn config() -> Config {
    Config {
        tick: Duration::from_millis(20),
        heartbeat_interval: Duration::from_millis(20),
        // Long: on a busy machine the node must stay leader.
        election_timeout_min: Duration::from_millis(400),
        election_timeout_max: Duration::from_millis(500),
        lane_backoff_max: Duration::from_millis(90),
        snapshot_backoff_max: Duration::from_millis(400),
        ..Config::default()
    }
}

/// The most heartbeats until the watchdog reports. A tick sends each of the two peers one, and a ping another. The lanes may
/// hold as many from the tick before.
const BEATS_MAX: u64 = 8;

/// Heartbeats are the clock, because on a busy machine they slow down with the shard.
#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_replaces_a_lost_report_once_within_a_tick_and_the_next_attempt_finishes() {
    // Several of each peer, with different waits between them: a watchdog that skips ticks would be late for one.
    let reports = 6;
    let mut fixture = LeaderFixture::new(config()).await;
    fixture.losses.next_of_tickets(reports);
    fixture.lead(1).await;
    let replaced =
        |lost: &Vec<LostReport>| lost.len() as u64 == reports && lost.iter().all(|loss| loss.beats.is_some());
    let lost = wait("the watchdog", || Some(fixture.losses.so_far()).filter(replaced)).await;
    // A task holds its ticket until its end. A delay between its report and its end makes the watchdog late.
    let in_time = lost.iter().filter(|loss| loss.beats <= Some(BEATS_MAX)).count();
    assert!(in_time > lost.len() / 2, "{lost:?}");

    let finished = Some(AttemptOutcome::Finished);
    let peers = fixture
        .when_behind("served again", |peer| {
            let last = peer.last_attempt.map(|last| last.outcome);
            peer.progress == PeerProgress::Replicate && last == finished
        })
        .await;
    for LostReport { attempt, .. } in lost {
        let of_lost = peers.iter().find(|peer| peer.id == attempt.peer).unwrap();
        assert!(of_lost.last_attempt.unwrap().number > attempt.number);
    }
    let beats = *fixture.played.beats.borrow();
    fixture.played.beats.subscribe().wait_for(|now| *now >= beats + 10).await.unwrap();
    let counted = |kind, outcome| fixture.reports(kind, outcome);
    assert_eq!(counted("snapshot_failure", "synthesized"), reports, "once each");
    assert_eq!((counted("snapshot_finish", "applied"), counted("snapshot_failure", "applied")), (2, 0));
}

/// The control: the reports of the watchdog are lost too.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_report_of_the_watchdog_the_peer_is_latched() {
    let mut fixture = LeaderFixture::new(config()).await;
    fixture.losses.all();
    fixture.lead(1).await;
    let lost = wait("the loss", || fixture.losses.so_far().pop()).await.attempt;
    let beats = *fixture.played.beats.borrow();
    fixture.played.beats.subscribe().wait_for(|now| *now >= beats + 200).await.unwrap();
    let peers = fixture.when_behind("waits", |peer| BEHIND.contains(&peer.id.as_u64())).await;
    let of_lost = peers.iter().find(|peer| peer.id == lost.peer).unwrap();
    assert_eq!(of_lost.progress, PeerProgress::Snapshot);
    assert_eq!(of_lost.attempt.map(|attempt| attempt.number), Some(lost.number));
    assert_eq!(fixture.reports("snapshot_failure", "synthesized"), 0);
}
