//! A replicated counter: three nodes in this process, real gRPC on loopback, real storage. One of them is killed and
//! brought back.
#![allow(clippy::print_stdout, clippy::indexing_slicing)] // a program that talks to a person

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towline::*;

/// What is replicated: a number. It is kept in memory only, so a restart applies the log again from its beginning.
#[derive(Default)]
struct Counter {
    value: Arc<AtomicU64>,
}

impl StateMachine for Counter {
    type Response = u64;
    type View = Arc<AtomicU64>;

    fn view(&self) -> Arc<AtomicU64> {
        self.value.clone()
    }

    fn durable(&self) -> Applied {
        Applied::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<u64>) -> Result<(), Fatal> {
        for command in batch.commands() {
            let step = u64::from_be_bytes(command.data.as_ref().try_into()?);
            replies.push(self.value.fetch_add(step, Ordering::SeqCst) + step);
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        struct Value(u64);
        impl SnapshotSource for Value {
            fn write_to(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()> {
                out.write_all(&self.0.to_be_bytes())
            }
        }
        Ok(Box::new(Value(self.value.load(Ordering::SeqCst))))
    }

    fn restore(&mut self, _meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        let mut value = [0; 8];
        body.read_exact(&mut value)?;
        self.value.store(u64::from_be_bytes(value), Ordering::SeqCst);
        Ok(())
    }
}

type Error = Box<dyn std::error::Error>;

async fn run(id: u64, peers: &[(NodeId, PeerAddr)], dir: &Path) -> Result<(Node, Group<Counter>), Error> {
    let (id, address) = peers.iter().find(|(peer, _)| peer.as_u64() == id).cloned().ok_or("no such node")?;
    let node = Node::builder(id, ClusterId::new("hello")?)
        .storage(DataDir::open(&dir.join(id.to_string()))?)
        .transport(Arc::new(GrpcTransport::new(GrpcConfig::default())), address)
        .start()
        .await?;
    let stored = node.has_group(GroupId::DEFAULT)?;
    let start = if stored { Start::Restart } else { Start::Bootstrap(peers.to_vec()) };
    let group = node.group(GroupId::DEFAULT, Counter::default()).start(start).await?;
    Ok((node, group))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let mut peers = Vec::new();
    for id in 1..=3 {
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        peers.push((NodeId::new(id).ok_or("zero")?, format!("grpc://{free}").parse()?));
    }
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(run(id, &peers, dir.path()).await?);
    }
    let leader = nodes[0].1.wait_leader(Duration::from_secs(10)).await?.as_u64() as usize;
    let counter = nodes[leader - 1].1.clone();
    println!("node {leader} leads; the counter is {}", counter.propose(1u64.to_be_bytes().to_vec()).await?);

    let follower = leader % 3 + 1;
    nodes.remove(follower - 1).0.shutdown(Duration::ZERO).await;
    println!(
        "node {follower} is down; the counter is {}",
        counter.propose(41u64.to_be_bytes().to_vec()).await?
    );

    let back = run(follower as u64, &peers, dir.path()).await?;
    let seen = back.1.read(Consistency::Linearizable).await?.load(Ordering::SeqCst);
    println!("node {follower} is back and reads {seen}");
    if seen == 42 { Ok(()) } else { Err("a command is missing".into()) }
}
