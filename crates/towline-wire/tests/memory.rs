//! A hundred thousand random and mutated frames, streams and transfers of strangers, with the memory of the process looked
//! at before and after: no panic, nothing that stays. Alone in its file, so that no other test's memory is measured.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

#[path = "../../../fuzz/src/decoders.rs"]
#[allow(unreachable_pub)] // a crate of its own under cargo-fuzz
mod decoders;

mod samples;

use samples::samples;
use towline_wire::prefixed;

const INPUTS: usize = 100_000;
/// Inputs until allocator and tables have what they keep.
const WARM_UP: usize = 10_000;
/// What a page cache of the allocator may still do. A leak of 100 bytes an input would be above.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

/// Resident memory of this process, where the system tells it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1_024)
}

fn mutated(random: &mut fastrand::Rng, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..random.usize(0..5) {
        if bytes.is_empty() {
            break;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..4) {
            0 => bytes[at] = random.u8(..),
            1 => bytes[at] ^= 1 << random.u8(..8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, random.u8(..)),
        }
    }
    bytes
}

fn input(random: &mut fastrand::Rng, frames: &[Vec<u8>], streams: &[Vec<u8>]) {
    match random.u8(..4) {
        0 => {
            let length = random.usize(..300);
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            decoders::frame(&bytes);
            decoders::stream(&bytes);
        }
        1 => {
            let frame = frames[random.usize(..frames.len())].clone();
            decoders::frame(&mutated(random, frame));
        }
        2 => {
            let piece = random.u8(..);
            let mut bytes = vec![piece];
            for _ in 0..random.usize(1..5) {
                bytes.extend_from_slice(&streams[random.usize(..streams.len())]);
            }
            decoders::stream(&mutated(random, bytes));
        }
        _ => {
            let mut bytes = Vec::new();
            for _ in 0..random.usize(1..6) {
                bytes.extend_from_slice(&streams[random.usize(..streams.len())]);
            }
            let bytes = mutated(random, bytes);
            decoders::listener(&bytes);
            decoders::dialler(&bytes);
        }
    }
}

#[test]
fn a_hundred_thousand_inputs_of_strangers_leave_no_memory_behind() {
    let frames: Vec<_> = samples().iter().map(prost::Message::encode_to_vec).collect();
    let streams: Vec<_> = samples().iter().map(|frame| prefixed(frame).to_vec()).collect();
    // The seed is the input: a failure comes again.
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..WARM_UP {
        input(&mut random, &frames, &streams);
    }
    let before = resident_bytes();
    for _ in 0..INPUTS {
        input(&mut random, &frames, &streams);
    }
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        let grown = after.saturating_sub(before);
        assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more after {INPUTS} inputs");
    }
}
