//! Batches are what moves: a lane carries far more small messages than a Raft group makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

use std::time::Instant;

use crate::common::*;
use towline_engine::message::{Batch, Lane};
use towline_grpc::GrpcConfig;

#[tokio::test]
async fn a_hundred_thousand_small_messages_cross_one_lane_on_one_core() {
    const BATCHES: u64 = 200;
    const PER_BATCH: usize = 500;
    let (fake, mut seen) = accepting();
    let listener = listen(GrpcConfig::default(), fake).await;
    let (mut link, _ear) = link(GrpcConfig::default(), listener.local_addr(), Lane::Append).await;
    let start = Instant::now();
    let send = async {
        for index in 0..BATCHES {
            let envelopes = vec![batch(index, 64).envelopes.remove(0); PER_BATCH];
            link.dispatch(Batch { envelopes }).await.unwrap();
        }
    };
    let receive = async {
        let mut messages = 0;
        while messages < BATCHES as usize * PER_BATCH {
            messages += seen.delivered.recv().await.unwrap().1.envelopes.len();
        }
        messages
    };
    let ((), messages) = within(async { tokio::join!(send, receive) }).await;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{messages} messages in {seconds:.3} s: {:.0} a second, unoptimised build",
        messages as f64 / seconds
    );
}
