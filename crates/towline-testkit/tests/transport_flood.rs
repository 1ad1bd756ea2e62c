//! Hundreds of strangers at a real listener, and the memory of the process before and after. Alone in its binary, because it
//! measures the memory of the process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

mod wires;

use bytes::Bytes;
use towline_engine::transport::Refusal;
use towline_testkit::cluster::{node_id, until};
use wires::{AUTHORITY, Bounds, First, Heard, Listening, Wire};

/// The resident memory of this process, on systems that report it.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4_096)
}

/// Strangers with a certificate send first frames without a meaning. The listener refuses each by type and keeps nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_malformed_first_frames_is_refused_and_leaves_nothing_behind() {
    const EACH: usize = 600;
    // Less than 60 KB each, most of it the buffers of the test's own sockets.
    const GROWTH_BYTES_MAX: u64 = 16 << 20;
    for wire in Wire::BOTH {
        let listening = Listening::start(wire, &Bounds::default()).await;
        let cert = AUTHORITY.issue(node_id(9)).unwrap();
        let mut random = fastrand::Rng::with_seed(30);
        let mut settled = None;
        for n in 0..EACH {
            let length = random.usize(1..6_000);
            let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            // Field numbers of frames, so that some get further.
            bytes[0] = random.u8(0..16) << 3 | 2;
            let heard = wire.say(listening.at(), Some(&cert), First::Frame(Bytes::from(bytes))).await;
            assert!(matches!(heard, Heard::Refused(Refusal::Malformed { .. })), "{wire:?}: {heard:?}");
            if n == EACH / 2 {
                settled = resident_bytes();
            }
        }
        until("the refusals", || listening.inbound.look(|log| log.refused.len() >= EACH)).await;
        listening.inbound.look(|log| {
            assert_eq!((log.refused.len(), log.asked.len()), (EACH, 0), "{wire:?}");
            let malformed = |refusal: &Refusal| matches!(refusal, Refusal::Malformed { .. });
            assert!(log.refused.iter().all(malformed), "{wire:?}");
        });
        if let (Some(before), Some(now)) = (settled, resident_bytes()) {
            let grown = now.saturating_sub(before);
            assert!(grown < GROWTH_BYTES_MAX, "{wire:?}: {grown} bytes more after {EACH} strangers");
        }
    }
}
