//! Whether every node serves again: a write through it, or through the leader that it names, and a linearizable read.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Result;
use crate::resp::{Connection, Reply, moved_to};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// How long each node took until it served, from now on; `None` for nodes that did not within the deadline.
pub(super) async fn all_serve(redis: &[SocketAddr], deadline: Duration) -> Result<Vec<Option<Duration>>> {
    let begun = Instant::now();
    let mut asking = JoinSet::new();
    for (position, address) in redis.iter().copied().enumerate() {
        asking.spawn(async move {
            let mut attempt = 0_u64;
            let serves = async {
                while !serves(address, &format!("chaos:serves:{position}"), attempt).await {
                    attempt += 1;
                    sleep(RETRY_PAUSE).await;
                }
            };
            (position, timeout(deadline, serves).await.ok().map(|()| begun.elapsed()))
        });
    }
    let mut took = vec![None; redis.len()];
    while let Some(asked) = asking.join_next().await {
        let (position, served) = asked?;
        if let Some(place) = took.get_mut(position) {
            *place = served;
        }
    }
    Ok(took)
}

/// `None` if a node did not serve.
pub(super) fn slowest(took: &[Option<Duration>]) -> Option<Duration> {
    took.iter().try_fold(Duration::ZERO, |most, one| Some(most.max((*one)?)))
}

/// Writes a value and reads it back through the node.
async fn serves(node: SocketAddr, key: &str, attempt: u64) -> bool {
    let value = format!("{attempt}:{}", fastrand::u64(..));
    let (set, get): ([&[u8]; 3], [&[u8]; 2]) =
        ([b"SET", key.as_bytes(), value.as_bytes()], [b"GET", key.as_bytes()]);
    let Some(mut own) = open(node).await else { return false };
    match ask(&mut own, &set).await {
        Some(Reply::Simple(_)) => {}
        Some(Reply::Error(error)) => {
            let Some(leader) = moved_to(&error) else { return false };
            let Some(mut connection) = open(leader).await else { return false };
            if !matches!(ask(&mut connection, &set).await, Some(Reply::Simple(_))) {
                return false;
            }
        }
        _ => return false,
    }
    // An uncertain write of an earlier attempt may have replaced the value.
    ask(&mut own, &[b"READONLY"]).await.is_some()
        && ask(&mut own, &get).await == Some(Reply::Bulk(Some(value.into_bytes())))
}

async fn open(address: SocketAddr) -> Option<Connection> {
    timeout(CONNECT_TIMEOUT, Connection::open(address)).await.ok()?.ok()
}

async fn ask(connection: &mut Connection, words: &[&[u8]]) -> Option<Reply> {
    timeout(ANSWER_TIMEOUT, connection.ask(words)).await.ok()?.ok()
}
