//! Latency of linearizable reads on three nodes that are 10, 100 and 300 ms apart, at the leader and at a follower, while
//! writes go on. The nodes are in this process and talk gRPC through proxies that delay every byte; their logs are in memory.
//!
//! `cargo run --release -p towline-testkit --example read_latency -- [READS]`
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing)] // a program that talks to a person

#[path = "../tests/common/addresses.rs"]
#[allow(dead_code)] // the tests use the rest
mod addresses;
#[path = "../tests/common/distance.rs"]
mod distance;

use std::time::Duration;

use distance::DistantCluster;

#[tokio::main]
async fn main() {
    let reads = std::env::args().nth(1).map_or(2_000, |count| count.parse().unwrap());
    println!(
        "round trip, ms | at       | reads | failed | p50, ms | p99, ms | p50, round trips | p99, round trips"
    );
    for millis in [10, 100, 300] {
        let round_trip = Duration::from_millis(millis);
        let distant = DistantCluster::start(round_trip).await;
        let leader = distant.cluster.leader(1).await;
        for (at, node) in [("leader", leader), ("follower", distant.follower().await)] {
            let latencies = distant.read(node, reads).await;
            let [p50, p99] = [50, 99].map(|percent| latencies.percentile(percent).as_secs_f64() * 1_000.0);
            let trips = |ms: f64| ms / millis as f64;
            println!(
                "{millis:14} | {at:8} | {reads:5} | {:6} | {p50:7.1} | {p99:7.1} | {:16.2} | {:16.2}",
                latencies.failed.len(),
                trips(p50),
                trips(p99)
            );
        }
    }
}
