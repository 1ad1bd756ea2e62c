//! Case 53 with the real program: a cluster whose nodes are reached over gRPC and over QUIC, with load, kills, and a
//! snapshot over each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use std::fs;

use crate::common::{Cluster, SETTINGS, alone, wait};

const SCHEMES: [&str; 3] = ["quic", "grpc", "quic"];
/// The one that is reached over gRPC.
const OVER_GRPC: usize = 1;

/// What the log keeps is less than what a follower misses that is down.
const SNAPSHOTS: &str = "snapshot_entries = 50\nsnapshot_trailing_entries = 5\n";

#[test]
fn followers_of_both_kinds_are_brought_back_by_snapshots_under_load() {
    let _alone = alone();
    let mut cluster = Cluster::secure(&SCHEMES);
    fs::write(cluster.dir.path().join("settings.toml"), format!("{SETTINGS}{SNAPSHOTS}")).unwrap();
    for at in 0..SCHEMES.len() {
        cluster.kill(at);
        cluster.restart(at);
        cluster.leader();
    }
    // A leader that is reached over QUIC has a follower of each kind.
    while cluster.leader() == OVER_GRPC {
        cluster.kill(OVER_GRPC);
        cluster.leader_among(&cluster.others(OVER_GRPC));
        cluster.restart(OVER_GRPC);
    }
    for scheme in ["grpc", "quic"] {
        let leader = cluster.leader();
        let behind = cluster.others(leader).into_iter().find(|at| SCHEMES[*at] == scheme).unwrap();
        cluster.kill(behind);
        let others = cluster.others(behind);
        for number in 0..150 {
            cluster.write_somewhere(&others, &format!("{scheme}-{number}"), "value");
        }
        cluster.restart(behind);
        cluster.leader();
        cluster.assert_equal();
        wait(&format!("a snapshot over {scheme}"), || {
            let sent = others.iter().map(|at| {
                let (_, text) = cluster.ports[*at].page("/metrics").unwrap_or_default();
                let labels =
                    ["direction=\"sent\"", "outcome=\"finished\"", &format!("transport=\"{scheme}\"")];
                let lines = text.lines().filter(|line| line.starts_with("towline_snapshot_transfers_total"));
                let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
                lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum::<u64>()
            });
            (sent.sum::<u64>() > 0).then_some(())
        });
    }
}
