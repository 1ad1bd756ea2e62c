//! Expiry of keys while wall clocks jump. libfaketime steps the wall clock of each node, not the monotonic clock.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, NODES, RIGHT_CLOCK, Setup};
use crate::process::run_in_directory;
use crate::resp::{Connection, Reply};
use crate::{Missing, Result};

const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The README of the example promises a tenth of a second and a commit; the rest allows for a busy machine.
const LATE_MAX: Duration = Duration::from_secs(3);
const TTL: Duration = Duration::from_secs(3);
/// Longer than an election.
const LONG_TTL: Duration = Duration::from_secs(5);
/// Clock steps in the form that libfaketime reads.
const STEPS: &[&str] = &["+3600", "-3600"];

/// libfaketime, where distributions put it.
pub(crate) fn library() -> Option<PathBuf> {
    let below = |parent: &str| std::fs::read_dir(parent).into_iter().flatten().flatten();
    let multiarch = below("/usr/lib").map(|entry| entry.path());
    let directories = multiarch.chain(["/usr/lib".into(), "/usr/lib64".into()]);
    directories.map(|directory| directory.join("faketime/libfaketimeMT.so.1")).find(|file| file.exists())
}

pub(crate) fn run(binary: &Path) -> Result<()> {
    let library =
        library().ok_or_else(|| Missing("libfaketime is not installed (package libfaketime)".to_owned()))?;
    run_in_directory("clock", async |data| measure(binary, library, data).await)
}

async fn measure(binary: &Path, library: PathBuf, data: &Path) -> Result<()> {
    let setup = Setup { clock_library: Some(library), ..Setup::default() };
    let mut cluster = Cluster::start_with(binary.to_path_buf(), data, setup)?;
    let leader = cluster.wait_leader().await?;
    let mut client = ExpiryClient::open(&cluster, leader).await?;

    let early = client.set("early", TTL).await?;
    for position in 0..NODES {
        for step in STEPS {
            cluster.set_clock(position, step)?;
            client.write().await?;
            if early.elapsed() < TTL && !client.has("early").await? && early.elapsed() < TTL {
                return Err(format!("a step of {step} s at node {} ended a key early", position + 1).into());
            }
            cluster.set_clock(position, RIGHT_CLOCK)?;
            client.write().await?;
        }
    }
    let lived = client.lives("early", early, TTL).await?;
    println!("a key with TTL 3 s lived {lived:.3} s while every clock jumped an hour ahead and back");
    let late = client.set("late", TTL).await?;
    let lived = client.lives("late", late, TTL).await?;
    println!("a key with TTL 3 s lived {lived:.3} s after all clocks were right again");

    cluster.set_clock(leader, "+3600")?;
    client.write().await?;
    let handed = client.set("handed over", LONG_TTL).await?;
    cluster.kill(leader)?;
    let next = cluster.wait_leader().await?;
    let mut client = ExpiryClient::open(&cluster, next).await?;
    let lived = client.lives("handed over", handed, LONG_TTL).await?;
    println!(
        "a key with TTL 5 s lived {lived:.3} s while leadership moved from a clock an hour ahead to a right one"
    );
    Ok(())
}

struct ExpiryClient {
    connection: Connection,
}

impl ExpiryClient {
    async fn open(cluster: &Cluster, position: usize) -> Result<Self> {
        let address: SocketAddr = *cluster.redis_addresses().get(position).ok_or("no such node")?;
        Ok(Self { connection: Connection::open(address).await? })
    }

    async fn ask(&mut self, words: &[&str]) -> Result<Reply> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        match timeout(ANSWER_DEADLINE, self.connection.ask(&words)).await?? {
            Reply::Error(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }

    /// Writes, so that the leader stamps an entry with its time.
    async fn write(&mut self) -> Result<()> {
        self.ask(&["INCR", "writes"]).await.map(drop)
    }

    /// Returns the time before the call, the earliest start of the key's life.
    async fn set(&mut self, key: &str, ttl: Duration) -> Result<Instant> {
        let before = Instant::now();
        self.ask(&["SET", key, "v", "PX", &ttl.as_millis().to_string()]).await?;
        Ok(before)
    }

    async fn has(&mut self, key: &str) -> Result<bool> {
        Ok(self.ask(&["GET", key]).await? != Reply::Bulk(None))
    }

    /// Waits until the key expires and returns its life in seconds. Too short or too long a life is an error.
    async fn lives(&mut self, key: &str, since: Instant, ttl: Duration) -> Result<f64> {
        while self.has(key).await? {
            if since.elapsed() > ttl + LATE_MAX {
                return Err(format!("`{key}` exists after {:?}, its TTL is {ttl:?}", since.elapsed()).into());
            }
            sleep(POLL_INTERVAL).await;
        }
        let lived = since.elapsed();
        if lived < ttl {
            return Err(format!("`{key}` was gone after {lived:?}, its TTL is {ttl:?}").into());
        }
        Ok(lived.as_secs_f64())
    }
}
