//! Which members answer at their Redis port: what `CLUSTER NODES` says of them.
//!
//! Raft knows a peer's health on the leader only, and clients ask any node. So each node asks every other `PING`, as
//! the nodes of a Redis Cluster do.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::cluster::Member;

#[derive(Debug, Clone, Copy)]
struct Pace {
    /// From one answer to the next `PING`, and from an error to the next attempt.
    interval: Duration,
    /// A member that has not answered for this long is called failed.
    fail_after: Duration,
}

const PACE: Pace = Pace { interval: Duration::from_millis(500), fail_after: Duration::from_secs(2) };

/// What this node knows of the others. A member counts as healthy until it has not answered for a while.
#[derive(Debug)]
pub(crate) struct Health {
    failed: BTreeMap<u64, AtomicBool>,
}

impl Health {
    pub(super) fn new(members: &[Member]) -> Self {
        Self { failed: members.iter().map(|member| (member.id, AtomicBool::new(false))).collect() }
    }

    pub(super) fn has_failed(&self, id: u64) -> bool {
        self.failed.get(&id).is_some_and(|failed| failed.load(Ordering::Relaxed))
    }

    fn set(&self, id: u64, failed: bool) {
        if let Some(flag) = self.failed.get(&id) {
            flag.store(failed, Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(super) fn fail(&self, id: u64) {
        self.set(id, true);
    }
}

/// Asks all `peers` again and again. Never ends; dropping it stops the tasks it started.
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
        // The cause does not matter: only the time of the last answer does.
        let _ = ask(&health, &peer, pace, &mut answered).await;
        if answered.elapsed() >= pace.fail_after {
            health.set(peer.id, true);
        }
        sleep(pace.interval).await;
    }
}

/// Asks over one connection until it fails.
async fn ask(health: &Health, peer: &Member, pace: Pace, answered: &mut Instant) -> io::Result<()> {
    // Waits until the member counts as failed, and no longer.
    let left = |answered: &Instant| pace.fail_after.saturating_sub(answered.elapsed()).max(pace.interval);
    let connected = TcpStream::connect((peer.host.as_str(), peer.port));
    let mut stream = timeout(left(answered), connected).await??;
    let mut answer = [0; 64];
    loop {
        stream.write_all(b"PING\r\n").await?;
        // Any answer will do, even one that says that there are too many clients.
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
            while health.has_failed(7) != failed {
                sleep(Duration::from_millis(5)).await; // not synchronisation: poll interval under a deadline
            }
        };
        timeout(Duration::from_secs(30), seen).await.unwrap_or_else(|_| panic!("never failed: {failed}"));
    }

    #[tokio::test]
    async fn a_member_has_failed_while_it_does_not_answer() {
        let pace = Pace { interval: Duration::from_millis(10), fail_after: Duration::from_millis(200) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Member { id: 7, host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let health = Arc::new(Health::new(std::slice::from_ref(&peer)));
        let watching = tokio::spawn(watch_one(Arc::clone(&health), peer, pace));
        // It accepts, as the kernel does for a process that is stopped, and says nothing.
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
