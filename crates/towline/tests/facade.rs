//! The facade alone is enough to run a service on real gRPC and a real disk.
#![cfg(all(feature = "grpc", feature = "storage"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towline::*;

#[derive(Default)]
struct Sum(Arc<AtomicU64>);

impl StateMachine for Sum {
    type Response = u64;
    type View = Arc<AtomicU64>;

    fn view(&self) -> Arc<AtomicU64> {
        self.0.clone()
    }

    fn durable(&self) -> Applied {
        Applied::NONE
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

async fn start(id: u64, members: &[(NodeId, PeerAddr)], dir: &Path) -> (Node, Group<Sum>) {
    let (id, address) = members[id as usize - 1].clone();
    let node = Node::builder(id, ClusterId::new("facade").unwrap())
        .storage(DataDir::open(&dir.join(id.to_string())).unwrap())
        .transport(Arc::new(GrpcTransport::new(GrpcConfig::default())), address)
        .start()
        .await
        .unwrap();
    let how = match node.has_group(GroupId::DEFAULT).unwrap() {
        true => Start::Restart,
        false => Start::Bootstrap(members.to_vec()),
    };
    let group = node.group(GroupId::DEFAULT, Sum::default()).start(how).await.unwrap();
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
                nodes.push(start(id, &members, dir.path()).await);
            }
            assert_eq!(add(&nodes, 20).await, round * 40 - 20);
            assert_eq!(add(&nodes, 20).await, round * 40);
            for (_, group) in &nodes {
                let sum = group.read(Consistency::Linearizable).await.unwrap();
                assert_eq!(sum.load(Ordering::SeqCst), round * 40);
            }
            for (node, _) in nodes {
                node.shutdown(Duration::from_secs(5)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap();
}
