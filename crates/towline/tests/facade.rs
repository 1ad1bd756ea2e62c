//! What the facade promises about errors, on real gRPC and a real disk.
#![cfg(all(feature = "grpc", feature = "storage"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // tests

#[path = "../examples/snapshot/machine.rs"]
mod machine;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use towline::*;

use self::machine::Large;

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_names_the_leader_and_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut nodes) = (machine::members().unwrap(), Vec::new());
    for (id, address) in members.clone() {
        let builder = Node::builder(id, ClusterId::new("facade").unwrap())
            .storage(DataDir::create(&dir.path().join(id.to_string())).unwrap())
            .transport(Arc::new(GrpcTransport::default()), address);
        let node = builder.start().await.unwrap();
        let start = Start::auto(members.clone());
        let group = node.group(GroupId::DEFAULT, Large(0)).start(start).await.unwrap();
        nodes.push((node, group));
    }
    let leader = nodes[0].1.wait_leader(DEADLINE).await.unwrap();
    let (_, follower) = nodes.iter().find(|(_, group)| group.node() != leader).unwrap();
    follower.wait_leader(DEADLINE).await.unwrap();
    let error = follower.propose("x").await.unwrap_err();
    let ProposeError::NotLeader { hint: Some(hint) } = error else { panic!("{error}") };
    assert!(members.contains(&(hint.node, hint.address.unwrap())));
    for (node, _) in nodes {
        node.shutdown(Duration::from_secs(5)).await;
    }
}

/// On a runtime without a driver, a task of the node panicked, or the error said only that a start had panicked.
#[test]
fn a_runtime_without_timers_or_io_is_refused_with_a_remedy() {
    let mut timed = Builder::new_multi_thread();
    timed.enable_time();
    for (missing, mut runtime) in
        [("timers are disabled", Builder::new_multi_thread()), ("IO is disabled", timed)]
    {
        let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime.worker_threads(1).build().unwrap());
        let node = Node::builder(NodeId::new(1).unwrap(), ClusterId::new("facade").unwrap())
            .storage(DataDir::open(dir.path()).unwrap())
            .transport(Arc::new(GrpcTransport::default()), "grpc://127.0.0.1:0".parse().unwrap())
            .runtime(runtime.handle().clone());
        let error = runtime.block_on(node.start()).unwrap_err();
        assert!(matches!(&error, StartError::Runtime { detail } if detail.contains(missing)), "{error:?}");
        assert!(error.to_string().contains("build it with `enable_all`"), "{error}");
    }
}
