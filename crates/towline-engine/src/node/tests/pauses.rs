//! A shard that pauses again and again, as on an overloaded machine.

use std::time::{Duration, Instant};

use super::fixture::{BEHIND, LeaderFixture};
use super::hooks::HeldShard;
use crate::config::Config;
use crate::status::PeerProgress;

const TICK: Duration = Duration::from_millis(10);
const HEARTBEAT_TICKS: u32 = 10;

const PAUSE: Duration = Duration::from_millis(45);

fn config() -> Config {
    Config {
        tick: TICK,
        heartbeat_interval: TICK * HEARTBEAT_TICKS,
        // Long: the node must stay leader.
        election_timeout_min: Duration::from_secs(3),
        election_timeout_max: Duration::from_secs(4),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skipped_ticks_do_not_reduce_the_rate_of_heartbeats() {
    let mut fixture = LeaderFixture::new(config()).await;
    fixture.lead(1).await;
    // From here on the node sends only heartbeats.
    fixture.when_behind("has its snapshot", |peer| peer.progress == PeerProgress::Replicate).await;
    let skipped = || fixture.test.counter("towline_ticks_skipped_total", "");
    let beats = || *fixture.played.beats.borrow() / BEHIND.len() as u64;
    let (began, skipped_before, beats_before) = (Instant::now(), skipped(), beats());
    while began.elapsed() < 30 * HEARTBEAT_TICKS * TICK {
        let held = HeldShard::new(&fixture.hooks);
        tokio::time::sleep(PAUSE).await; // not synchronisation: the pause itself
        drop(held);
    }
    let due = began.elapsed().div_duration_f64(TICK);
    let done = due - (skipped() - skipped_before) as f64;
    assert!(done < due * 0.6, "{done} of {due} ticks were done: too few were skipped");
    let (beats, by_ticks) = ((beats() - beats_before) as f64, done / f64::from(HEARTBEAT_TICKS));
    assert!(beats > by_ticks * 1.4, "{beats} rounds of heartbeats in {due} ticks, of which {done} were done");
    assert!(beats <= due / f64::from(HEARTBEAT_TICKS) * 1.5, "{beats} rounds in {due} ticks");
}
