//! `cargo xtask bench`: durable SETs of a three-node release cluster in a closed loop.
//!
//! The same run measures the floor of the disk. On a noisy machine only the ratio of both counts.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Barrier;
use tokio::time::sleep;

use crate::Result;
use crate::cluster::{self, Cluster, NODES};
use crate::etcd::{self, Etcd};
use crate::process::interruptible;
use crate::resp::{Connection, Reply};

#[derive(clap::Args)]
pub(crate) struct BenchOptions {
    /// How long each number of connections is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Numbers of connections, one put in flight on each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 1024], value_parser = clap::value_parser!(u32).range(1..=16_384))]
    connections: Vec<u32>,
    /// Where the data directories go: the disk that is measured
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Run this towline-kv instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Leave etcd out although it is installed
    #[arg(long)]
    no_etcd: bool,
}

pub(crate) const VALUE_BYTES: usize = 256;
/// Not measured: connections open, caches and windows fill.
const WARM_UP: Duration = Duration::from_secs(1);
/// Longer latencies are recorded as this.
const LATENCY_MAX_US: u64 = 60_000_000;
/// Keys that one connection writes in turn.
const KEYS_PER_CONNECTION: u64 = 64;
const FLOOR_BATCHES: [usize; 3] = [1, 64, 1024];
const FLOOR_TIME: Duration = Duration::from_secs(2);

pub(crate) fn run(options: &BenchOptions) -> Result<()> {
    let binary = cluster::kv_binary(options.binary.as_deref())?;
    let mut directory = tempfile::Builder::new();
    directory.prefix("towline-bench-");
    let data = match &options.data {
        Some(at) => directory.tempdir_in(at)?,
        None => directory.tempdir()?,
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{NODES} nodes on loopback, {VALUE_BYTES} B values, {} s each after {} s of warm-up, {cores} cores, data in {}",
        options.seconds,
        WARM_UP.as_secs(),
        data.path().display()
    );

    println!("\nfloor of this disk: one write and fdatasync per batch of {VALUE_BYTES} B records");
    println!("{:>12} {:>10} {:>10} {:>12}", "records", "p50 us", "p99 us", "records/s");
    for records in FLOOR_BATCHES {
        let floor = floor(data.path(), records)?;
        let per_second = records as f64 * 1e6 / floor.mean();
        let (p50, p99) = (floor.value_at_quantile(0.5), floor.value_at_quantile(0.99));
        println!("{records:>12} {p50:>10} {p99:>10} {per_second:>12.0}");
    }

    interruptible(towline(binary, data.path(), options))?;
    match (options.no_etcd, etcd::installed()) {
        (true, _) => println!("\netcd: left out (--no-etcd)"),
        (false, None) => println!("\netcd: skipped, it is not on PATH"),
        (false, Some(version)) => interruptible(compare_etcd(&version, data.path(), options))?,
    }
    Ok(())
}

/// Measures one write and fdatasync after the other on a growing file, in microseconds.
fn floor(directory: &Path, records: usize) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)?;
    let path = directory.join("floor");
    let mut file = File::create(&path)?;
    let batch = vec![0xA5_u8; records * VALUE_BYTES];
    let begun = Instant::now();
    while begun.elapsed() < FLOOR_TIME {
        let started = Instant::now();
        file.write_all(&batch)?;
        file.sync_data()?;
        histogram.saturating_record(microseconds(started.elapsed()));
    }
    drop(file);
    std::fs::remove_file(path)?;
    Ok(histogram)
}

async fn towline(binary: PathBuf, data: &Path, options: &BenchOptions) -> Result<()> {
    let mut cluster = Cluster::start(binary, data)?;
    cluster.wait_leader().await?;
    print_head("towline-kv, SET over the Redis protocol");
    for connections in &options.connections {
        let leader = cluster.wait_leader().await?;
        let address = *cluster.redis_addresses().get(leader).ok_or("no leader's address")?;
        let measured = closed_loop(Target::Redis(address), *connections, options.seconds).await?;
        print_row(*connections, &measured, &cluster.resident_bytes());
    }
    Ok(())
}

async fn compare_etcd(version: &str, data: &Path, options: &BenchOptions) -> Result<()> {
    let etcd = Etcd::start(data)?;
    let address = etcd.wait_leader().await?;
    // The gateway parses JSON and base64 and calls gRPC, so a native client is faster.
    print_head(&format!("{version}, put over its JSON gateway (slower than its own gRPC clients)"));
    for connections in &options.connections {
        let measured = closed_loop(Target::Etcd(address), *connections, options.seconds).await?;
        print_row(*connections, &measured, &etcd.resident_bytes());
    }
    Ok(())
}

/// Where the puts go.
#[derive(Clone, Copy)]
enum Target {
    Redis(SocketAddr),
    Etcd(SocketAddr),
}

enum Putter {
    Redis(Connection),
    Etcd(etcd::Gateway),
}

impl Putter {
    async fn open(target: Target) -> Result<Self> {
        Ok(match target {
            Target::Redis(address) => Self::Redis(Connection::open(address).await?),
            Target::Etcd(address) => Self::Etcd(etcd::Gateway::open(address).await?),
        })
    }

    async fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        match self {
            Self::Redis(connection) => match connection.ask(&[b"SET", key.as_bytes(), value]).await? {
                Reply::Simple(ok) if ok == "OK" => Ok(()),
                other => Err(format!("SET answered {other:?}").into()),
            },
            Self::Etcd(client) => client.put(key.as_bytes(), value).await,
        }
    }
}

struct Measured {
    latency_us: Histogram<u64>,
    took: Duration,
    errors: u64,
    /// The first error.
    error: Option<String>,
}

/// Keeps one put in flight per connection. Measuring starts when all connections are open and warm.
async fn closed_loop(target: Target, connections: u32, seconds: u64) -> Result<Measured> {
    let count = usize::try_from(connections)?;
    let measuring = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let all_open = Arc::new(Barrier::new(count + 1));
    let mut workers = Vec::with_capacity(count);
    for worker in 0..count {
        // Opened in turn: a burst would overflow the listener's backlog.
        let client = Putter::open(target).await?;
        let (measuring, stop, all_open) = (Arc::clone(&measuring), Arc::clone(&stop), Arc::clone(&all_open));
        workers.push(tokio::spawn(async move {
            all_open.wait().await;
            put_until_stopped(client, worker, &measuring, &stop).await
        }));
    }
    all_open.wait().await;
    sleep(WARM_UP).await;
    measuring.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    sleep(Duration::from_secs(seconds)).await;
    measuring.store(false, Ordering::Relaxed);
    let took = begun.elapsed();
    stop.store(true, Ordering::Relaxed);

    let mut measured = Measured {
        latency_us: Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)?,
        took,
        errors: 0,
        error: None,
    };
    for worker in workers {
        let (latencies, error) = worker.await?;
        for latency in latencies {
            measured.latency_us.saturating_record(latency);
        }
        measured.errors += u64::from(error.is_some());
        measured.error = measured.error.or(error);
    }
    Ok(measured)
}

/// Returns latencies in microseconds, and the error that ended this connection early.
async fn put_until_stopped(
    mut client: Putter,
    worker: usize,
    measuring: &AtomicBool,
    stop: &AtomicBool,
) -> (Vec<u64>, Option<String>) {
    let value = [b'v'; VALUE_BYTES];
    let mut latencies = Vec::new();
    for put in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("bench:{worker}:{}", put % KEYS_PER_CONNECTION);
        let started = Instant::now();
        if let Err(error) = client.put(&key, &value).await {
            return (latencies, Some(error.to_string()));
        }
        if measuring.load(Ordering::Relaxed) {
            latencies.push(microseconds(started.elapsed()));
        }
    }
    (latencies, None)
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn print_head(what: &str) {
    println!("\n{what}");
    println!(
        "{:>12} {:>10} {:>10} {:>10}   resident MB per node",
        "connections", "put/s", "p50 us", "p99 us"
    );
}

fn print_row(connections: u32, measured: &Measured, resident: &[Option<u64>]) {
    let rate = measured.latency_us.len() as f64 / measured.took.as_secs_f64();
    let (p50, p99) =
        (measured.latency_us.value_at_quantile(0.5), measured.latency_us.value_at_quantile(0.99));
    let resident: Vec<String> = resident
        .iter()
        .map(|bytes| bytes.map_or("?".to_owned(), |bytes| (bytes / 1_000_000).to_string()))
        .collect();
    println!("{connections:>12} {rate:>10.0} {p50:>10} {p99:>10}   {}", resident.join(" / "));
    if let Some(error) = &measured.error {
        println!("{:>12} {} connections ended early, the first with: {error}", "", measured.errors);
    }
}
