//! The fuzz targets, bounded and on stable: random bytes, and mutations of frames that mean something.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use crate::fuzz;
use crate::samples::samples;
use proptest::prelude::*;
use prost::Message as _;
use towline_wire::{pb, prefixed};

/// Frames in some order, one of them mutated, as they are on a stream.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let samples = samples();
    let order = prop::collection::vec(0..samples.len(), 1..6);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (order, changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        move |(order, changes, cut, cuts)| {
            let mut bytes: Vec<u8> = order.iter().flat_map(|sample| prefixed(&samples[*sample])).collect();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if cuts {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

/// One frame, mutated.
fn mutants() -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<_> = samples().iter().map(pb::Frame::encode_to_vec).collect();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (0..samples.len(), changes).prop_map(move |(sample, changes)| {
        let mut bytes = samples[sample].clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes
    })
}

#[test]
fn every_sample_is_understood() {
    for sample in samples() {
        fuzz::frame(&sample.encode_to_vec());
    }
    let transfer: Vec<_> = samples().iter().skip(6).take(3).flat_map(prefixed).collect();
    fuzz::listener(&transfer);
    let answers: Vec<_> = samples().iter().skip(9).flat_map(prefixed).collect();
    fuzz::dialler(&answers);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(25_000))]

    #[test]
    fn random_bytes_are_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz::frame(&bytes);
        fuzz::stream(&bytes);
        fuzz::listener(&bytes);
        fuzz::dialler(&bytes);
    }

    #[test]
    fn mutated_frames_are_no_harm(bytes in mutants()) {
        fuzz::frame(&bytes);
        fuzz::listener(&bytes);
        fuzz::dialler(&bytes);
    }

    #[test]
    fn mutated_streams_are_no_harm(bytes in streams(), piece in any::<u8>()) {
        fuzz::stream(&[&[piece][..], &bytes[..]].concat());
        fuzz::listener(&bytes);
        fuzz::dialler(&bytes);
    }
}
