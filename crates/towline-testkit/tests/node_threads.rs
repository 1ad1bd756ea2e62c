//! Threads of a node: those that move snapshots stand back behind the others. Its own process, since it looks at all
//! threads there are.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;

use towline_engine::node::Node;
use towline_testkit::cluster::{Disk, cluster_id, node_id, quick, until};
use towline_testkit::mem::MemNet;

/// How far each thread of this process stands back, by the beginning of its name (the system keeps 15 bytes).
fn niceness() -> BTreeMap<String, Vec<i64>> {
    let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for thread in fs::read_dir("/proc/self/task").unwrap() {
        // It may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(thread.unwrap().path().join("stat")) else { continue };
        let (before, behind) = stat.rsplit_once(')').unwrap();
        let name = before.split_once('(').unwrap().1.to_owned();
        // The third field is the first behind the name, niceness the nineteenth.
        let nice = behind.split_whitespace().nth(16).unwrap().parse().unwrap();
        found.entry(name).or_default().push(nice);
    }
    found
}

/// On two processors a snapshot that moved at the same priority kept the shard's thread waiting for tens of
/// milliseconds, and with it the heartbeats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_snapshots_stands_back_and_nothing_else_does() {
    let (net, disk) = (MemNet::new(), Disk::default());
    let builder = Node::builder(node_id(1), cluster_id()).config(quick()).storage(disk.storage());
    let node = builder.transport(net.transport(), "mem://n1:1".parse().unwrap()).start().await.unwrap();
    let all = |found: &BTreeMap<String, Vec<i64>>, names: &[&str], expected: i64| {
        names.iter().all(|name| found.get(*name).is_some_and(|of| of.iter().all(|nice| *nice == expected)))
    };
    until("each thread is there and as far back as it should be", || {
        let found = niceness();
        all(&found, &["towline-bulk", "towline-snapsho"], 5)
            && all(&found, &["towline-shard", "towline-log", "towline-net", "towline-apply-0"], 0)
    })
    .await;
    node.shutdown(std::time::Duration::ZERO).await;
}
