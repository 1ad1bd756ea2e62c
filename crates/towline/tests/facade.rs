//! The facade alone is enough to run a service on real gRPC and a real disk.
#![cfg(all(feature = "grpc", feature = "storage"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Builder;
use towline::*;

#[derive(Default)]
struct Sum(Arc<AtomicU64>);

impl StateMachine for Sum {
    type Response = u64;
    type View = Arc<AtomicU64>;

    fn view(&self) -> Arc<AtomicU64> {
        self.0.clone()
    }

    fn durable(&self) -> LogId {
        LogId::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<u64>) -> Result<(), Fatal> {
        for command in batch.commands() {
            let n = u64::from(command.data[0]);
            replies.push(self.0.fetch_add(n, Ordering::SeqCst) + n);
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Err(Fatal::new("not asked for"))
    }

    fn restore(&mut self, _meta: &SnapshotMeta, _body: &mut dyn io::Read) -> Result<(), Fatal> {
        Err(Fatal::new("not asked for"))
    }
}

async fn start(id: u64, members: &[(NodeId, PeerAddr)], dir: DataDir) -> (Node, Group<Sum>) {
    let (id, address) = members[id as usize - 1].clone();
    let builder = Node::builder(id, ClusterId::new("facade").unwrap());
    #[cfg(feature = "prometheus")]
    let (builder, exporter) = {
        let exporter = Exporter::new();
        (builder.prometheus(&exporter), exporter)
    };
    let node = builder
        .storage(dir)
        .transport(Arc::new(GrpcTransport::new(GrpcConfig::default())), address)
        .start()
        .await
        .unwrap();
    let group =
        node.group(GroupId::DEFAULT, Sum::default()).start(Start::auto(members.to_vec())).await.unwrap();
    #[cfg(feature = "prometheus")]
    assert!(exporter.render().contains(&format!("node=\"{id}\"")));
    (node, group)
}

async fn add(nodes: &[(Node, Group<Sum>)], n: u8) -> u64 {
    loop {
        for (_, group) in nodes {
            match group.propose(vec![n]).await {
                Ok(sum) => return sum,
                Err(error) => assert_eq!(error.outcome(), Outcome::NeverHappened, "{error}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await; // not synchronisation: paces the retries
    }
}

/// What a node that does not lead says of the leader.
async fn hint(nodes: &[(Node, Group<Sum>)]) -> LeaderHint {
    loop {
        for (_, group) in nodes {
            if let Err(ProposeError::NotLeader { hint: Some(hint) }) = group.propose(vec![0]).await {
                return hint;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await; // not synchronisation: paces the retries
    }
}

/// A whole cluster is stopped in order and started again on the same directories and ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_on_disk_outlives_its_processes() {
    let dir = tempfile::tempdir().unwrap();
    let listeners: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let members: Vec<_> = (1..)
        .zip(&listeners)
        .map(|(id, l)| {
            let address = format!("grpc://{}", l.local_addr().unwrap());
            (NodeId::new(id).unwrap(), address.parse().unwrap())
        })
        .collect();
    drop(listeners);
    let work = async {
        for round in 1..=2 {
            let mut nodes = Vec::new();
            for id in 1..=3 {
                let open = if round == 1 { DataDir::create } else { DataDir::open };
                nodes.push(start(id, &members, open(&dir.path().join(id.to_string())).unwrap()).await);
            }
            assert_eq!(add(&nodes, 20).await, round * 40 - 20);
            assert_eq!(add(&nodes, 20).await, round * 40);
            for (_, group) in &nodes {
                let sum = group.read(Consistency::Linearizable).await.unwrap();
                assert_eq!(sum.load(Ordering::SeqCst), round * 40);
            }
            let hint = hint(&nodes).await;
            assert!(members.contains(&(hint.node, hint.address.unwrap())), "where the leader is called");
            for (node, _) in nodes {
                node.shutdown(Duration::from_secs(5)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap();
}

/// A node on a runtime that lacks a driver panicked in one of its tasks, or said only that a start had panicked.
#[test]
fn a_runtime_without_timers_or_io_is_named_with_its_remedy() {
    for (missing, mut runtime) in [
        ("timers are disabled", Builder::new_multi_thread()),
        ("IO is disabled", timed(Builder::new_multi_thread())),
    ] {
        let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime.worker_threads(1).build().unwrap());
        let node = Node::builder(NodeId::new(1).unwrap(), ClusterId::new("facade").unwrap())
            .storage(DataDir::open(dir.path()).unwrap())
            .transport(
                Arc::new(GrpcTransport::new(GrpcConfig::default())),
                "grpc://127.0.0.1:0".parse().unwrap(),
            )
            .runtime(runtime.handle().clone());
        let error = runtime.block_on(node.start()).unwrap_err();
        assert!(matches!(&error, StartError::Runtime { detail } if detail.contains(missing)), "{error:?}");
        assert!(error.to_string().contains("build it with `enable_all`"), "{error}");
    }
}

fn timed(mut builder: Builder) -> Builder {
    builder.enable_time();
    builder
}
