//! A replicated counter on three nodes in this process, with gRPC and storage. Stops one node and starts it again.
#![allow(clippy::print_stdout, clippy::indexing_slicing)] // a program that talks to a person

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::{error::Error, io::Read, sync::Arc, time::Duration};

use towline::*;

/// Keeps its state in memory: a restart applies the whole log again.
#[derive(Default)]
struct Counter(Arc<AtomicU64>);

impl StateMachine for Counter {
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
            let step = u64::from_be_bytes(command.data.as_ref().try_into()?);
            replies.push(self.0.fetch_add(step, SeqCst) + step);
        }
        Ok(())
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(self.0.load(SeqCst).to_be_bytes().to_vec()))
    }
    fn restore(&mut self, _: &SnapshotMeta, body: &mut dyn Read) -> Result<(), Fatal> {
        let mut value = [0; 8];
        body.read_exact(&mut value)?;
        self.0.store(u64::from_be_bytes(value), SeqCst);
        Ok(())
    }
}

type Running = (Node, Group<Counter>);

async fn run(peer: usize, peers: &[(NodeId, PeerAddr)], dir: DataDir) -> Result<Running, Box<dyn Error>> {
    let ((id, address), grpc) = (peers[peer].clone(), GrpcTransport::new(GrpcConfig::default()));
    let builder = Node::builder(id, "hello".parse()?).storage(dir).transport(Arc::new(grpc), address);
    let node = builder.start().await?;
    let group = node.group(GroupId::DEFAULT, Counter::default()).start(Start::auto(peers)).await?;
    Ok((node, group))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (root, mut peers, mut nodes) = (tempfile::tempdir()?, Vec::new(), Vec::new());
    for id in 1..=3 {
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        peers.push((NodeId::new(id).ok_or("zero")?, format!("grpc://{free}").parse()?));
    }
    let dir = |peer: usize| root.path().join(peer.to_string());
    for peer in 0..3 {
        nodes.push(run(peer, &peers, DataDir::create(&dir(peer))?).await?);
    }
    let leader = nodes[0].1.wait_leader(Duration::from_secs(10)).await?.as_u64() as usize - 1;
    let (counter, behind) = (nodes[leader].1.clone(), (leader + 1) % 3);
    println!("the counter is {}", counter.propose(1_u64.to_be_bytes().to_vec()).await?);
    nodes.remove(behind).0.shutdown(Duration::ZERO).await;
    println!("a node is down; the counter is {}", counter.propose(41_u64.to_be_bytes().to_vec()).await?);
    let (_node, group) = run(behind, &peers, DataDir::open(&dir(behind))?).await?;
    let seen = group.read(Consistency::Linearizable).await?.load(SeqCst);
    println!("the node is back and reads {seen}");
    if seen == 42 { Ok(()) } else { Err("a command is missing".into()) }
}
