//! Finds out which members answer at their Redis port, for `CLUSTER NODES`.
//!
//! Only the leader's Raft knows the health of peers, and clients ask any node. So each node sends `PING` to every other, as
//! in a Redis Cluster.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use towline::NodeId;

/// One node of the cluster, at the address for clients.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) id: NodeId,
    pub(crate) host: String,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    /// From one answer to the next `PING`, and from an error to the next attempt.
    interval: Duration,
    /// A member that has not answered for this long has failed.
    fail_after: Duration,
}

const PACE: Pace = Pace { interval: Duration::from_millis(500), fail_after: Duration::from_secs(2) };

/// Which members have failed. A member counts as healthy at first.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failed: Mutex<BTreeSet<NodeId>>,
}

impl Health {
    pub(super) fn has_failed(&self, id: NodeId) -> bool {
        self.failed().contains(&id)
    }

    pub(super) fn set(&self, id: NodeId, failed: bool) {
        if failed {
            self.failed().insert(id)
        } else {
            self.failed().remove(&id)
        };
    }

    fn failed(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends `PING` to all `peers` again and again. Never ends; its drop stops the tasks that it started.
pub(super) async fn watch(health: Arc<Health>, peers: Vec<Member>) {
    let mut tasks = JoinSet::new();
    for peer in peers {
        tasks.spawn(watch_one(Arc::clone(&health), peer, PACE));
    }
    while tasks.join_next().await.is_some() {}
    std::future::pending().await
}

async fn watch_one(health: Arc<Health>, peer: Member, pace: Pace) {
    let mut answered = Instant::now();
    loop {
        // The cause does not matter, only the time of the last answer.
        let _ = ask(&health, &peer, pace, &mut answered).await;
        if answered.elapsed() >= pace.fail_after {
            health.set(peer.id, true);
        }
        sleep(pace.interval).await;
    }
}

/// Sends `PING` over one connection until it fails.
async fn ask(health: &Health, peer: &Member, pace: Pace, answered: &mut Instant) -> io::Result<()> {
    // The time until the member counts as failed.
    let left = |answered: &Instant| pace.fail_after.saturating_sub(answered.elapsed()).max(pace.interval);
    let connected = TcpStream::connect((peer.host.as_str(), peer.port));
    let mut stream = timeout(left(answered), connected).await??;
    let mut answer = [0; 64];
    loop {
        stream.write_all(b"PING\r\n").await?;
        // Any answer counts, even an error about too many clients.
        if timeout(left(answered), stream.read(&mut answer)).await?? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *answered = Instant::now();
        health.set(peer.id, false);
        sleep(pace.interval).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn wait(health: &Health, failed: bool) {
        let seen = async {
            while health.has_failed(NodeId::new(7).unwrap()) != failed {
                sleep(Duration::from_millis(5)).await; // not synchronisation: poll interval under a deadline
            }
        };
        timeout(Duration::from_secs(30), seen).await.unwrap_or_else(|_| panic!("never failed: {failed}"));
    }

    #[tokio::test]
    async fn a_member_has_failed_while_it_does_not_answer() {
        let pace = Pace { interval: Duration::from_millis(10), fail_after: Duration::from_millis(200) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let id = NodeId::new(7).unwrap();
        let peer = Member { id, host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let health = Arc::<Health>::default();
        let watching = tokio::spawn(watch_one(Arc::clone(&health), peer, pace));
        // Accepts and stays silent, as the kernel does for a stopped process.
        let (mut silent, _) = listener.accept().await.unwrap();
        wait(&health, true).await;
        silent.write_all(b"+PONG\r\n").await.ok();
        drop(silent);
        let answers = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                while stream.read(&mut [0; 64]).await.is_ok_and(|bytes| bytes > 0)
                    && stream.write_all(b"-ERR max number of clients reached\r\n").await.is_ok()
                {
                }
            }
        };
        tokio::select! {
            () = answers => {}
            () = wait(&health, false) => {}
        }
        drop(listener);
        wait(&health, true).await;
        watching.abort();
    }
}
