//! A shard that is held up again and again, as on a machine that has no time for it.

use std::time::{Duration, Instant};

use super::seams::Held;
use super::stage::{BEHIND, Stage};
use crate::config::Config;
use crate::status::PeerProgress;

const TICK: Duration = Duration::from_millis(10);
const HEARTBEAT_TICKS: u32 = 10;

/// Of each.
const PAUSE: Duration = Duration::from_millis(45);

fn config() -> Config {
    Config {
        tick: TICK,
        heartbeat_interval: TICK * HEARTBEAT_TICKS,
        // Long: it must not lose its office meanwhile.
        election_timeout_min: Duration::from_secs(3),
        election_timeout_max: Duration::from_secs(4),
        ..Config::default()
    }
}

/// Heartbeats go by the clock, though most ticks are skipped. Without that there would be as many of them as the ticks that
/// were done make.
#[tokio::test(flavor = "multi_thread")]
async fn skipped_ticks_do_not_thin_out_heartbeats() {
    let mut stage = Stage::node(config()).await;
    stage.lead(1).await;
    // From then on there is nothing to send but heartbeats.
    stage.when_behind("has its snapshot", |peer| peer.progress == PeerProgress::Replicate).await;
    let skipped = || stage.alone.counter("towline_ticks_skipped_total", "");
    let beats = || *stage.script.beats.borrow() / BEHIND.len() as u64;
    let (began, skipped_before, beats_before) = (Instant::now(), skipped(), beats());
    while began.elapsed() < 30 * HEARTBEAT_TICKS * TICK {
        let held = Held::shard(&stage.acts);
        tokio::time::sleep(PAUSE).await; // not synchronisation: the pause itself
        drop(held);
        // It goes on, and is held again at its next tick.
    }
    let due = began.elapsed().div_duration_f64(TICK);
    let done = due - (skipped() - skipped_before) as f64;
    assert!(done < due * 0.6, "{done} of {due} ticks were done: nothing to make up for");
    let (beats, by_ticks) = ((beats() - beats_before) as f64, done / f64::from(HEARTBEAT_TICKS));
    assert!(beats > by_ticks * 1.4, "{beats} rounds of heartbeats in {due} ticks, of which {done} were done");
    assert!(beats <= due / f64::from(HEARTBEAT_TICKS) * 1.5, "{beats} rounds in {due} ticks");
}
