//! Threads that move snapshots have a lower priority than the others. Alone in its binary, because it reads all threads of the
//! process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;

use towline_engine::node::Node;
use towline_testkit::cluster::{Disk, cluster_id, node_id, quick, until};
use towline_testkit::mem::MemNet;

/// The niceness of the threads of this process, by the first 15 bytes of their names.
fn niceness() -> BTreeMap<String, Vec<i64>> {
    let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for thread in fs::read_dir("/proc/self/task").unwrap() {
        // The thread may have ended.
        let Ok(stat) = fs::read_to_string(thread.unwrap().path().join("stat")) else { continue };
        let (before, behind) = stat.rsplit_once(')').unwrap();
        let name = before.split_once('(').unwrap().1.to_owned();
        // The name is the second field, niceness the nineteenth.
        let nice = behind.split_whitespace().nth(16).unwrap().parse().unwrap();
        found.entry(name).or_default().push(nice);
    }
    found
}

/// On two processors a snapshot at equal priority delayed the shard, and with it the heartbeats, by tens of milliseconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_threads_of_snapshots_have_a_lower_priority() {
    let (net, disk) = (MemNet::new(), Disk::default());
    let builder = Node::builder(node_id(1), cluster_id()).config(quick()).storage(disk.storage());
    let node = builder.transport(net.transport(), "mem://n1:1".parse().unwrap()).start().await.unwrap();
    let all = |found: &BTreeMap<String, Vec<i64>>, names: &[&str], expected: i64| {
        names.iter().all(|name| found.get(*name).is_some_and(|of| of.iter().all(|nice| *nice == expected)))
    };
    until("each thread has its priority", || {
        let found = niceness();
        all(&found, &["towline-bulk", "towline-snapsho"], 5)
            && all(&found, &["towline-shard", "towline-log", "towline-net", "towline-apply-0"], 0)
    })
    .await;
    node.shutdown(std::time::Duration::ZERO).await;
}
