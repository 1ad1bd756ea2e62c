//! How fast a large snapshot gets from a leader to a follower that the log has left behind, over gRPC on loopback and
//! real files, and what memory that takes. Beside it, in the same run: how fast the same bytes are written and synced
//! alone, and how fast bare tonic streams them. Then once more, while another group saturates the same peer's append
//! lane: how much later than due that peer's heartbeats come.
//!
//! `cargo run --release -p towline --example snapshot -- [MIB] [DIR]`
#![allow(clippy::print_stdout, clippy::indexing_slicing)] // a program that talks to a person

#[path = "../wire/bare_tonic.rs"]
mod bare_tonic;
mod machine;
mod probe;

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use towline::*;

use self::machine::{Large, noise};
use self::probe::{Heartbeats, Probed, Times};

pub(crate) type Error = Box<dyn std::error::Error>;

pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The groups whose snapshots move, one after the other, while another one is busy: so many that their heartbeats have a
/// 99th percentile to speak of.
const OTHERS: [GroupId; 4] = [GroupId::new(2), GroupId::new(3), GroupId::new(4), GroupId::new(5)];
/// The busy one. It has no state to speak of, so that its own snapshots cost nothing.
const BUSY: GroupId = GroupId::new(9);
/// Commands after which a group makes a snapshot.
const SNAPSHOT_ENTRIES: u64 = 5_000;
/// Commands of the busy group under way at once, and their size.
const WRITERS: usize = 64;
const COMMAND_BYTES: usize = 4 << 10;

/// `bytes` in pieces.
pub(crate) fn pieces(piece: &Bytes, bytes: u64) -> impl Iterator<Item = Bytes> + Send + 'static {
    let piece = piece.clone();
    (0..bytes / piece.len() as u64).map(move |_| piece.clone())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mib: u64 = std::env::args().nth(1).map_or(Ok(1024), |s| s.parse())?;
    let dir = match std::env::args().nth(2) {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let config =
        Config { snapshot_entries: SNAPSHOT_ENTRIES, snapshot_trailing_entries: 0, ..Config::default() };
    let (tick, interval) = (config.tick_ms, config.tick_ms * u64::from(config.heartbeat_ticks));
    let (tick, interval) = (Duration::from_millis(tick), Duration::from_millis(interval));
    let mut peers = Vec::new();
    for id in 1..=3 {
        let port = std::net::TcpListener::bind(LOOPBACK)?.local_addr()?.port();
        peers.push((NodeId::new(id).ok_or("zero")?, format!("grpc://127.0.0.1:{port}").parse()?));
    }
    let (heartbeats, times) = (Heartbeats::default(), Times::default());
    let start = async |id: usize| {
        let (node, address): (NodeId, PeerAddr) = peers[id - 1].clone();
        let heard = if id == 3 { heartbeats.clone() } else { Heartbeats::default() };
        let transport = Probed(times.clone(), GrpcTransport::new(GrpcConfig::default()), heard);
        let node = Node::builder(node, ClusterId::new("snapshot")?)
            .config(config.clone())
            .storage(DataDir::open(&dir.path().join(id.to_string()))?)
            .transport(Arc::new(transport), address);
        Ok::<_, Error>(node.start().await?)
    };
    let group = async |node: &Node, id: GroupId| {
        let (founders, mib) = (Start::Bootstrap(peers.clone()), if id == BUSY { 0 } else { mib });
        Ok::<_, Error>(node.group(id, Large(mib)).start(founders).await?)
    };

    // Two of three, one of them the leader of all groups, which have a snapshot and no log behind it.
    let nodes = [start(1).await?, start(2).await?];
    let first = [group(&nodes[0], GroupId::DEFAULT).await?, group(&nodes[1], GroupId::DEFAULT).await?];
    let mut others = Vec::new();
    for id in OTHERS {
        others.push([group(&nodes[0], id).await?, group(&nodes[1], id).await?]);
    }
    let busy = [group(&nodes[0], BUSY).await?, group(&nodes[1], BUSY).await?];
    let leader = first[0].wait_leader(Duration::from_secs(10)).await?;
    let place = (leader.as_u64() - 1) as usize;
    for group in others.iter().chain([&busy]) {
        while group[place].wait_leader(Duration::from_secs(10)).await? != leader {
            let _ = group[1 - place].transfer(leader).await;
            tokio::time::sleep(interval).await; // nothing says when an election that was asked for is over
        }
    }
    let (first, busy) = (&first[place], &busy[place]);
    let others: Vec<_> = others.iter().map(|group| &group[place]).collect();
    for group in [first].into_iter().chain(others.iter().copied()) {
        while group.status().await?.first_index < 3 {
            let commands: Vec<_> =
                (0..SNAPSHOT_ENTRIES / 10).map(|_| group.submit("x")).collect::<Result<_, _>>()?;
            for command in commands {
                command.await?;
            }
        }
    }

    let floors = Floors::measure(&dir.path().join("floor"), mib, config.snapshot_chunk_bytes).await?;
    let memory = resident_mib()?;
    let joined = start(3).await?;
    let quiet = transfer(first, async || group(&joined, GroupId::DEFAULT).await.map(drop)).await?;
    println!("{mib} MiB from the leader's file to the follower's, with all checks and syncs:");
    let rate = mib as f64 / quiet.took.as_secs_f64();
    let (took, processor) = (quiet.took.as_secs_f64(), quiet.processor);
    println!("  {took:.2} s, {rate:.0} MiB/s, {processor:.2} s of processor time, {:?}", quiet.ended.outcome);
    println!("  {}", times.since(quiet.began));
    let (disk, wire) = (floors.disk(mib), floors.wire(mib));
    println!("  write + fsync alone {disk:.0} MiB/s, bare tonic alone {wire:.0} MiB/s");
    println!("  ratio to the slower of them: {:.2}", rate / disk.min(wire));
    if let Some(transfer) = times.transfer() {
        let rate = mib as f64 / transfer.as_secs_f64();
        println!("  from the offer on: {rate:.0} MiB/s, ratio {:.2}", rate / disk.min(wire));
    }
    println!("  memory of both sides together grew by {} MiB at most", quiet.peak_mib.saturating_sub(memory));

    let stop = Arc::new(AtomicBool::new(false));
    let _follower = group(&joined, BUSY).await?;
    let writers: Vec<_> = (0..WRITERS).map(|_| tokio::spawn(write(busy.clone(), stop.clone()))).collect();
    let (mut delays, mut took) = (Vec::new(), Duration::ZERO);
    for (id, other) in OTHERS.into_iter().zip(others) {
        let moved = transfer(other, async || group(&joined, id).await.map(drop)).await?;
        if moved.ended.outcome != AttemptOutcome::Finished {
            return Err(format!("a transfer ended as {:?}", moved.ended.outcome).into());
        }
        delays.extend(heartbeats.delays(id, moved.began, interval));
        took += moved.took;
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await?;
    }
    let transfers = OTHERS.len();
    let rate = (mib * transfers as u64) as f64 / took.as_secs_f64();
    println!(
        "the same {transfers} times while another group writes {COMMAND_BYTES}-byte commands, {WRITERS} at a time, to that follower too:"
    );
    println!("  {:.2} s each, {rate:.0} MiB/s; {written} commands", took.as_secs_f64() / transfers as f64);
    delays.sort_unstable();
    let at = |q: usize| delays.get(delays.len().saturating_sub(1) * q / 100).map_or(0.0, ms);
    println!(
        "  its heartbeats, every {interval:?}, came later than due by p50 {:.2} ms, p99 {:.2} ms, at most {:.2} ms of {} (a tick is {tick:?})",
        at(50),
        at(99),
        at(100),
        delays.len()
    );
    for node in nodes.into_iter().chain([joined]) {
        node.shutdown(Duration::from_secs(5)).await;
    }
    Ok(())
}

struct Moved {
    began: Instant,
    took: Duration,
    /// Seconds of processor time that this process used meanwhile, both sides and all.
    processor: f64,
    ended: LastAttempt,
    peak_mib: u64,
}

/// From the moment a follower joins until its transfer has ended.
async fn transfer(leader: &Group<Large>, join: impl AsyncFn() -> Result<(), Error>) -> Result<Moved, Error> {
    let peak = Arc::new(AtomicU64::new(0));
    let (before, began) = (processor_seconds()?, Instant::now());
    let (watched, seen) = (leader.clone(), peak.clone());
    let ended = tokio::spawn(async move {
        loop {
            seen.fetch_max(resident_mib().unwrap_or(0), Ordering::Relaxed);
            let status = watched.status().await.map_err(|e| e.to_string())?;
            let ended = status.peers.iter().find(|p| p.id.as_u64() == 3).and_then(|p| p.last_attempt);
            if let Some(ended) = ended {
                return Ok::<_, String>((began.elapsed(), ended));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    join().await?;
    let (took, ended) = ended.await??;
    let processor = processor_seconds()? - before;
    Ok(Moved { began, took, processor, ended, peak_mib: peak.load(Ordering::Relaxed) })
}

async fn write(group: Group<Large>, stop: Arc<AtomicBool>) -> u64 {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) && group.propose(vec![7; COMMAND_BYTES]).await.is_ok() {
        written += 1;
    }
    written
}

/// What disk and wire do alone.
struct Floors {
    disk: Duration,
    wire: Duration,
}

impl Floors {
    /// The better of two of each: the first time, memory may have to be found.
    async fn measure(path: &Path, mib: u64, piece: usize) -> Result<Self, Error> {
        let piece = Bytes::from(noise().repeat(piece.div_ceil(1 << 20))).slice(..piece);
        let disk = write_and_sync(path, mib)?.min(write_and_sync(path, mib)?);
        let wire =
            bare_tonic::stream(&piece, mib << 20).await?.min(bare_tonic::stream(&piece, mib << 20).await?);
        Ok(Self { disk, wire })
    }

    fn disk(&self, mib: u64) -> f64 {
        mib as f64 / self.disk.as_secs_f64()
    }

    fn wire(&self, mib: u64) -> f64 {
        mib as f64 / self.wire.as_secs_f64()
    }
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

fn ms(time: &Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Anonymous memory of this process: files in the page cache are not in it.
fn resident_mib() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}

/// Processor time of this process so far. The kernel counts in hundredths of a second.
fn processor_seconds() -> Result<f64, Error> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().ok_or("no stat")?.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>()).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / 100.0)
}
