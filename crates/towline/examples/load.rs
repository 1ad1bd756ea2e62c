//! Measures durable proposals per second: three nodes in this process, gRPC on loopback, a real log, and 1, 64 and 1024
//! callers of 256-byte commands. The state machine only counts.
//!
//! `cargo run --release -p towline --example load -- [SECONDS] [DIR]`
#![allow(clippy::print_stdout, clippy::indexing_slicing)] // a program that talks to a person

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use towline::*;

#[derive(Default)]
struct Count(Arc<AtomicU64>);

impl StateMachine for Count {
    type Response = u64;
    type View = Arc<AtomicU64>;

    fn view(&self) -> Self::View {
        self.0.clone()
    }

    fn durable(&self) -> LogId {
        LogId::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<u64>) -> Result<(), Fatal> {
        for _ in batch.commands() {
            replies.push(self.0.fetch_add(1, Ordering::Relaxed) + 1);
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(self.0.load(Ordering::Relaxed).to_be_bytes().to_vec()))
    }

    fn restore(&mut self, _: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Fatal> {
        let mut count = [0; 8];
        body.read_exact(&mut count)?;
        self.0.store(u64::from_be_bytes(count), Ordering::Relaxed);
        Ok(())
    }
}

type Error = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let seconds = std::env::args().nth(1).map_or(Ok(5), |s| s.parse())?;
    let dir = match std::env::args().nth(2) {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let mut peers = Vec::new();
    for id in 1..=3 {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        peers.push((NodeId::new(id).ok_or("zero")?, format!("grpc://127.0.0.1:{port}").parse()?));
    }
    let mut nodes = Vec::new();
    for (id, address) in peers.clone() {
        let node = Node::builder(id, ClusterId::new("load")?)
            .storage(DataDir::open(&dir.path().join(id.to_string()))?)
            .transport(Arc::new(GrpcTransport::new(GrpcConfig::default())), address)
            .start()
            .await?;
        let start = Start::Bootstrap(peers.clone());
        let group = node.group(GroupId::DEFAULT, Count::default()).start(start).await?;
        nodes.push((node, group));
    }
    let leader = nodes[0].1.wait_leader(Duration::from_secs(10)).await?.as_u64() as usize;
    let group = nodes[leader - 1].1.clone();
    println!("callers | proposals/s | p50 ms | p99 ms");
    for callers in [1, 64, 1024] {
        let (rate, mut micros) = load(&group, callers, Duration::from_secs(seconds)).await?;
        micros.sort_unstable();
        let at = |q: usize| micros[(micros.len() - 1) * q / 100] as f64 / 1000.0;
        println!("{callers:7} | {rate:11.0} | {:6.2} | {:6.2}", at(50), at(99));
    }
    for (node, _) in nodes {
        node.shutdown(Duration::from_secs(5)).await;
    }
    Ok(())
}

async fn load(group: &Group<Count>, callers: usize, time: Duration) -> Result<(f64, Vec<u32>), Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..callers {
        let (group, stop) = (group.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let mut micros = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let at = Instant::now();
                group.propose(vec![7; 256]).await?;
                micros.push(at.elapsed().as_micros() as u32);
            }
            Ok::<_, ProposeError>(micros)
        }));
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    Ok((all.len() as f64 / started.elapsed().as_secs_f64(), all))
}
