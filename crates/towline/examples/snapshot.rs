//! How fast a large snapshot gets from a leader to a follower that the log has left behind, over gRPC on loopback and
//! real files, and what memory that takes. Beside it, in the same run: how fast the same bytes are written and synced
//! alone, and how long commands take meanwhile.
//!
//! `cargo run --release -p towline --example snapshot -- [MIB] [DIR]`
#![allow(clippy::print_stdout, clippy::indexing_slicing)] // a program that talks to a person

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towline::*;

type Error = Box<dyn std::error::Error>;

const PART_BYTES: usize = 1 << 20;

/// Its state is so many MiB of noise, which nobody keeps.
struct Large(u64);

impl StateMachine for Large {
    type Response = ();
    type View = ();

    fn view(&self) {}

    fn durable(&self) -> Applied {
        Applied::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<()>) -> Result<(), Fatal> {
        batch.commands().for_each(|_| replies.push(()));
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(Noise(self.0)))
    }

    fn restore(&mut self, _: &SnapshotMeta, body: &mut dyn Read) -> Result<(), Fatal> {
        io::copy(body, &mut io::sink())?;
        Ok(())
    }
}

struct Noise(u64);

impl SnapshotSource for Noise {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        let part = noise();
        (0..self.0).try_for_each(|_| out.write_all(&part))
    }
}

/// Not to be compressed by anything below.
fn noise() -> Vec<u8> {
    let mut seed = 1_u64;
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_be_bytes()[0]
    })
    .take(PART_BYTES)
    .collect()
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mib: u64 = std::env::args().nth(1).map_or(Ok(1024), |s| s.parse())?;
    let dir = match std::env::args().nth(2) {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let config = Config { snapshot_entries: 100, snapshot_trailing_entries: 0, ..Config::default() };
    let mut peers = Vec::new();
    for id in 1..=3 {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        peers.push((NodeId::new(id).ok_or("zero")?, format!("grpc://127.0.0.1:{port}").parse()?));
    }
    let start = async |id: usize| {
        let (node, address): (NodeId, PeerAddr) = peers[id - 1].clone();
        let node = Node::builder(node, ClusterId::new("snapshot")?)
            .config(config.clone())
            .storage(DataDir::open(&dir.path().join(id.to_string()))?)
            .transport(Arc::new(GrpcTransport::new(GrpcConfig::default())), address)
            .start()
            .await?;
        let founders = Start::Bootstrap(peers.clone());
        let group = node.group(GroupId::DEFAULT, Large(mib)).start(founders).await?;
        Ok::<_, Error>((node, group))
    };
    let mut nodes = vec![start(1).await?, start(2).await?];
    let leader = nodes[0].1.wait_leader(Duration::from_secs(10)).await?.as_u64() as usize;
    let group = nodes[leader - 1].1.clone();
    while group.status().await?.first_index < 3 {
        group.propose("x").await?;
    }
    let floor = write_and_sync(&dir.path().join("floor"), mib)?;
    let idle = commands(&group, Duration::from_secs(2)).await?;
    let memory = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let before = resident_mib()?;
    let (began, peak) = (Instant::now(), memory.clone());
    nodes.push(start(3).await?);
    let joined = began.elapsed();
    let watched = group.clone();
    let transfer = tokio::spawn(async move {
        loop {
            peak.fetch_max(resident_mib().unwrap_or(0), std::sync::atomic::Ordering::Relaxed);
            let status = watched.status().await.map_err(|e| e.to_string())?;
            let ended = status.peers.iter().find(|p| p.id.as_u64() == 3).and_then(|p| p.last_attempt);
            if let Some(ended) = ended {
                return Ok::<_, String>((began.elapsed(), ended));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let during = commands_while(&group, || !transfer.is_finished()).await?;
    let (took, ended) = transfer.await??;
    let rate = mib as f64 / took.as_secs_f64();
    let floor = mib as f64 / floor.as_secs_f64();
    println!("transfer of {mib} MiB: {:.2} s, {rate:.0} MiB/s, {:?}", took.as_secs_f64(), ended.outcome);
    println!("  of which the start of the node took {:.2} s", joined.as_secs_f64());
    println!("write + fsync of the same bytes: {floor:.0} MiB/s; ratio {:.2}", rate / floor);
    let grown = memory.load(std::sync::atomic::Ordering::Relaxed).saturating_sub(before);
    println!("memory of both sides together grew by {grown} MiB at most");
    println!("commands, p50 / p99: idle {idle}, during the transfer {during}");
    for (node, _) in nodes {
        node.shutdown(Duration::from_secs(5)).await;
    }
    Ok(())
}

fn write_and_sync(path: &Path, mib: u64) -> io::Result<Duration> {
    let (part, began) = (noise(), Instant::now());
    let mut file = File::create(path)?;
    (0..mib).try_for_each(|_| file.write_all(&part))?;
    file.sync_data()?;
    let took = began.elapsed();
    std::fs::remove_file(path)?;
    Ok(took)
}

async fn commands(group: &Group<Large>, time: Duration) -> Result<String, Error> {
    let until = Instant::now() + time;
    commands_while(group, || Instant::now() < until).await
}

async fn commands_while(group: &Group<Large>, go_on: impl Fn() -> bool) -> Result<String, Error> {
    let mut micros = Vec::new();
    while go_on() {
        let began = Instant::now();
        group.propose(vec![7; 256]).await?;
        micros.push(began.elapsed().as_micros());
    }
    micros.sort_unstable();
    let at =
        |q: usize| micros.get(micros.len().saturating_sub(1) * q / 100).map_or(0.0, |&m| m as f64 / 1000.0);
    Ok(format!("{:.1} / {:.1} ms of {}", at(50), at(99), micros.len()))
}

/// Anonymous memory of this process: files in the page cache are not in it.
fn resident_mib() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}
