//! Random and mutated frames, streams and transfers of strangers. The test compares the memory of the process before and
//! after, so it has its own program.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests

#[path = "../../../fuzz/src/decoders.rs"]
#[allow(unreachable_pub)] // its own crate under cargo-fuzz
mod decoders;
#[path = "../../../fuzz/src/memory.rs"]
#[allow(unreachable_pub)] // its own crate under cargo-fuzz
mod memory;
mod samples;

use memory::{mutated, random_bytes, resident_bytes};
use samples::{OF_A_DIALLER, OF_A_LISTENER, sample, samples};
use towline_wire::prefixed;

const INPUTS: usize = 100_000;
/// Inputs before the first measurement, which fill the caches.
const WARM_UP: usize = 10_000;
/// The allocator may still grow this much. A leak of 100 bytes an input would exceed it.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

fn input(random: &mut fastrand::Rng, frames: &[Vec<u8>], streams: &[Vec<u8>]) {
    match random.u8(..4) {
        0 => {
            let bytes = random_bytes(random, 300);
            decoders::frame(&bytes);
            decoders::stream(&bytes);
            decoders::listener(&bytes);
            decoders::dialler(&bytes);
        }
        1 => {
            let frame = &frames[random.usize(..frames.len())];
            let bytes = mutated(random, frame);
            decoders::frame(&bytes);
            decoders::listener(&bytes);
            decoders::dialler(&bytes);
        }
        2 => {
            let piece = random.u8(..);
            let mut bytes = vec![piece];
            for _ in 0..random.usize(1..5) {
                bytes.extend_from_slice(&streams[random.usize(..streams.len())]);
            }
            decoders::stream(&mutated(random, &bytes));
        }
        _ => {
            let mut bytes = Vec::new();
            for _ in 0..random.usize(1..6) {
                bytes.extend_from_slice(&streams[random.usize(..streams.len())]);
            }
            let bytes = mutated(random, &bytes);
            decoders::listener(&bytes);
            decoders::dialler(&bytes);
        }
    }
}

fn decode_samples() {
    samples().iter().for_each(|sample| decoders::frame(&prost::Message::encode_to_vec(sample)));
    let stream =
        |golden: &[&str]| golden.iter().flat_map(|golden| prefixed(&sample(golden))).collect::<Vec<_>>();
    decoders::listener(&stream(&OF_A_DIALLER[1..]));
    decoders::dialler(&stream(&OF_A_LISTENER[1..]));
}

#[test]
fn a_hundred_thousand_inputs_of_strangers_leak_no_memory() {
    let frames: Vec<_> = samples().iter().map(prost::Message::encode_to_vec).collect();
    let streams: Vec<_> = samples().iter().map(|frame| prefixed(frame).to_vec()).collect();
    decode_samples();
    // A fixed seed, so that a failure repeats.
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
