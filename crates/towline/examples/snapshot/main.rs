//! Measures a large snapshot from a leader to a follower that the log has left behind, over gRPC on loopback and real files.
//! Beside each transfer it measures two floors with the same bytes: write and sync, and bare tonic. Then it repeats the
//! transfer while another group saturates the append lane to the same peer, and measures how late that peer's heartbeats
//! come. It ends with an error if a goal is missed.
//!
//! `cargo run --release -p towline --example snapshot -- [MIB] [DIR]`
#![allow(clippy::print_stdout, clippy::indexing_slicing)] // a program that talks to a person

#[path = "../wire/bare_tonic.rs"]
mod bare_tonic;
mod floor;
mod freezes;
mod late;
mod machine;
mod probe;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use towline::*;

use self::bare_tonic::Error;
use self::floor::{Floor, Round};
use self::freezes::Watches;
use self::late::Late;
use self::machine::Large;
use self::probe::{Heartbeats, Probed};

/// The groups whose snapshots move while the node is idle. The floors are measured before each, because the speed of a shared
/// disk varies by a factor of two.
const QUIET: [GroupId; 3] = [GroupId::new(6), GroupId::new(7), GroupId::new(8)];
/// The groups whose snapshots move, one after the other, while another group is busy. Four give enough heartbeats for a 99th
/// percentile.
const OTHERS: [GroupId; 4] = [GroupId::new(2), GroupId::new(3), GroupId::new(4), GroupId::new(5)];
/// The busy group. Its own snapshots are empty.
const BUSY: GroupId = GroupId::new(9);
/// Commands after which a group makes a snapshot.
const SNAPSHOT_ENTRIES: u64 = 5_000;
/// Concurrent commands of the busy group, and their size.
const WRITERS: usize = 512;
const COMMAND_BYTES: usize = 4 << 10;

/// The goals.
const RATIO_MIN: f64 = 0.6;
const MEMORY_MIB_MAX: u64 = 64;

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).init();
    let mib: u64 = std::env::args().nth(1).map_or(Ok(1024), |s| s.parse())?;
    let dir = match std::env::args().nth(2) {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let config =
        Config { snapshot_entries: SNAPSHOT_ENTRIES, snapshot_trailing_entries: 0, ..Config::default() };
    let (tick, interval) = (config.tick, config.heartbeat_interval);
    let peers = machine::members()?;
    let heartbeats = Heartbeats::default();
    let start = async |id: usize| {
        let (node, address): (NodeId, PeerAddr) = peers[id - 1].clone();
        let heard = if id == 3 { heartbeats.clone() } else { Heartbeats::default() };
        let transport = Probed(GrpcTransport::default(), heard);
        let node = Node::builder(node, ClusterId::new("snapshot")?)
            .config(config.clone())
            .storage(DataDir::open(&dir.path().join(id.to_string()))?)
            .transport(Arc::new(transport), address);
        Ok::<_, Error>(node.start().await?)
    };
    let group = async |node: &Node, id: GroupId, mib| {
        Ok::<_, Error>(node.group(id, Large(mib)).start(Start::Bootstrap(peers.clone())).await?)
    };

    // Two of three nodes run, and the first leads all groups. Each group has a snapshot and no log before it. The second
    // node's snapshots are empty: all files must fit into memory, or the disk's reads would be measured.
    let nodes = [start(1).await?, start(2).await?];
    let (mut founded, mut large, mut busy) = (Vec::new(), Vec::new(), None);
    for id in QUIET.into_iter().chain(OTHERS).chain([BUSY]) {
        let first = group(&nodes[0], id, if id == BUSY { 0 } else { mib }).await?;
        founded.push((id, first, group(&nodes[1], id, 0).await?));
    }
    for (id, first, second) in founded {
        // The first leaders wait four election timeouts for the third founder.
        while second.wait_leader(8 * config.election_timeout_max).await? != first.node() {
            let _ = second.transfer(first.node()).await;
            tokio::time::sleep(interval).await; // no event reports the end of the election
        }
        match id {
            BUSY => busy = Some(first),
            _ => large.push(first),
        }
    }
    let busy = busy.ok_or("no group")?;
    for group in &large {
        while group.status().await?.first_index < 3 {
            let commands: Vec<_> =
                (0..SNAPSHOT_ENTRIES / 10).map(|_| group.submit("x")).collect::<Result<_, _>>()?;
            for command in commands {
                command.await?;
            }
        }
    }
    let (quiet, others) = large.split_at(QUIET.len());

    let joined = start(3).await?;
    let mut floor = Floor::new(dir.path().into(), mib, config.snapshot_chunk_bytes.as_usize()).await?;
    let mut rounds = Vec::new();
    println!("{mib} MiB from the leader's file to the follower's, with all checks and syncs:");
    for (id, from) in QUIET.into_iter().zip(quiet) {
        let (disk, wire) = (floor.disk()?, floor.wire().await?);
        let memory = resident_mib()?;
        let moved = transfer(from, async || group(&joined, id, mib).await).await?;
        let Moved { took, processor, peak_mib, .. } = moved;
        let rate = mib as f64 / took.as_secs_f64();
        let round = Round { rate, disk, wire, processor, grown_mib: peak_mib.saturating_sub(memory) };
        println!("  {round}");
        rounds.push(round);
    }
    let median = Round::median(&rounds);
    println!("  medians: {median}");

    let stop = Arc::new(AtomicBool::new(false));
    let _follower = group(&joined, BUSY, 0).await?;
    let writers: Vec<_> = (0..WRITERS).map(|_| tokio::spawn(write(busy.clone(), stop.clone()))).collect();
    let (mut late, mut took, watches) = (Vec::new(), Duration::ZERO, Watches::start());
    for (id, other) in OTHERS.into_iter().zip(others) {
        let moved = transfer(other, async || group(&joined, id, mib).await).await?;
        late.extend(heartbeats.late(id, moved.began, interval));
        late.push(heartbeats.overdue(id, interval));
        took += moved.took;
    }
    let freezes = watches.end();
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
    let late = Late::new(&late, freezes);
    println!("  its heartbeats, every {interval:?}, came later than due (a tick is {tick:?})");
    println!("  {late}");
    for node in nodes.into_iter().chain([joined]) {
        node.shutdown(Duration::from_secs(5)).await;
    }
    judge(&median, &late, tick, (took.as_secs_f64() / interval.as_secs_f64()) as usize)
}

fn judge(median: &Round, late: &Late, tick: Duration, due: usize) -> Result<(), Error> {
    let ((late_ms, what), tick_ms) = (late.p99(), tick.as_secs_f64() * 1000.0);
    let goals = [
        (
            median.ratio() >= RATIO_MIN,
            format!("{:.2} of the slower floor, at least {RATIO_MIN}", median.ratio()),
        ),
        (
            median.grown_mib < MEMORY_MIB_MAX,
            format!("{} MiB of memory, less than {MEMORY_MIB_MAX}", median.grown_mib),
        ),
        (
            late_ms < tick_ms && late.heartbeats() >= due * 9 / 10,
            format!(
                "heartbeats {late_ms:.2} ms late at p99 {what}, less than {tick_ms}; {} of {due}",
                late.heartbeats()
            ),
        ),
    ];
    println!("goals:");
    for (held, goal) in &goals {
        println!("  {} {goal}", if *held { "held  " } else { "MISSED" });
    }
    match goals.iter().all(|(held, _)| *held) {
        true => Ok(()),
        false => Err("a goal was missed".into()),
    }
}

struct Moved {
    began: Instant,
    took: Duration,
    /// Processor time of this process, with both sides, in seconds.
    processor: f64,
    peak_mib: u64,
}

/// Lets a follower join, and measures until its transfer ends. Returns after the follower has restored the state.
async fn transfer(
    leader: &Group<Large>,
    join: impl AsyncFn() -> Result<Group<Large>, Error>,
) -> Result<Moved, Error> {
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
    let joined = join().await?;
    let (took, ended) = ended.await??;
    let processor = processor_seconds()? - before;
    if ended.outcome != AttemptOutcome::Finished {
        return Err(format!("a transfer ended as {:?}", ended.outcome).into());
    }
    // The next measurement must not overlap with the restore.
    let (index, mut state) = (leader.status().await?.snapshot_index, joined.watch());
    state.wait_for(|state| state.applied >= index || state.down.is_some()).await?;
    Ok(Moved { began, took, processor, peak_mib: peak.load(Ordering::Relaxed) })
}

async fn write(group: Group<Large>, stop: Arc<AtomicBool>) -> u64 {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) && group.propose(vec![7; COMMAND_BYTES]).await.is_ok() {
        written += 1;
    }
    written
}

/// Anonymous memory of this process, without the page cache.
fn resident_mib() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}

/// Processor time of this process. The kernel counts in hundredths of a second.
fn processor_seconds() -> Result<f64, Error> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().ok_or("no stat")?.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>()).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / 100.0)
}
