//! A TCP proxy on loopback in front of one node. It can stop one connection while the others go on.
//!
//! The proxy reads HTTP/2 frame headers, so it can pass pings alone: a transfer then stalls on a live connection. It
//! drops all other bytes of a stopped connection, and does not pass on the end of either side.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::Result;

/// Far above what three nodes open, replaced connections included.
const CONNECTIONS_MAX: usize = 64;
/// The HTTP/2 preface of a client.
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
/// Twice the frame limit of the nodes.
const FRAME_BYTES_MAX: usize = 1 << 20;
const PING: u8 = 6;

/// What a stopped connection drops, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Everything,
    AllButPings,
}

#[derive(Default)]
struct ProxiedConnection {
    /// Bytes in both directions, dropped ones included.
    carried: AtomicU64,
    stop: Mutex<Option<Stop>>,
}

impl ProxiedConnection {
    fn stop(&self) -> Option<Stop> {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn passes(&self, kind: u8) -> bool {
        match self.stop() {
            None => true,
            Some(Stop::AllButPings) => kind == PING,
            Some(Stop::Everything) => false,
        }
    }
}

type Connections = Mutex<BTreeMap<u64, Arc<ProxiedConnection>>>;

/// Its drop closes all connections.
pub(crate) struct Proxy {
    address: SocketAddr,
    connections: Arc<Connections>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Must be called on a tokio runtime.
    pub(crate) fn start(target: SocketAddr) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let connections = Arc::default();
        let accepting =
            tokio::spawn(accept(TcpListener::from_std(listener)?, target, Arc::clone(&connections)));
        Ok(Self { address, connections, accepting })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the connection that carried most bytes. Returns its bytes, and those of the next busiest.
    pub(crate) fn stop_the_busiest(&self, stop: Stop) -> Result<(u64, u64)> {
        let connections = lock(&self.connections);
        let mut open: Vec<_> =
            connections.values().filter(|connection| connection.stop().is_none()).collect();
        open.sort_by_key(|connection| std::cmp::Reverse(connection.carried.load(Ordering::Relaxed)));
        let busiest = open.first().ok_or("the proxy has no open connection")?;
        *busiest.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop);
        let carried =
            |at: usize| open.get(at).map_or(0, |connection| connection.carried.load(Ordering::Relaxed));
        Ok((carried(0), carried(1)))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock(connections: &Connections) -> MutexGuard<'_, BTreeMap<u64, Arc<ProxiedConnection>>> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, target: SocketAddr, connections: Arc<Connections>) {
    // Its drop ends all connections.
    let mut carried = JoinSet::new();
    for number in 0_u64.. {
        let client = loop {
            tokio::select! {
                Some(_) = carried.join_next() => {}
                Ok((client, _)) = listener.accept() => break client,
            }
        };
        if carried.len() < CONNECTIONS_MAX {
            let connection = Arc::new(ProxiedConnection::default());
            lock(&connections).insert(number, Arc::clone(&connection));
            let connections = Arc::clone(&connections);
            carried.spawn(async move {
                // If the node is down or either side closes, the client sees the end of its connection.
                let _ = connect(client, target, &connection).await;
                lock(&connections).remove(&number);
            });
        }
    }
}

async fn connect(client: TcpStream, target: SocketAddr, connection: &ProxiedConnection) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // Keep both halves until both end: a dropped half would close its side.
    let _halves = tokio::join!(
        carry(from_client, to_server, PREFACE_BYTES, connection),
        carry(from_server, to_client, 0, connection),
    );
    Ok(())
}

/// Carries frames until `from` ends, and then shuts `to` down unless the connection is stopped.
async fn carry(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    preface: usize,
    connection: &ProxiedConnection,
) -> (OwnedReadHalf, OwnedWriteHalf) {
    let mut from = BufReader::with_capacity(64 << 10, from);
    let _ = frames(&mut from, &mut to, preface, connection).await;
    if connection.stop().is_none() {
        let _ = to.shutdown().await;
    }
    (from.into_inner(), to)
}

async fn frames(
    from: &mut BufReader<OwnedReadHalf>,
    to: &mut OwnedWriteHalf,
    preface: usize,
    connection: &ProxiedConnection,
) -> io::Result<()> {
    let mut bytes = vec![0; preface];
    from.read_exact(&mut bytes).await?;
    to.write_all(&bytes).await?;
    loop {
        let mut head = [0; FRAME_HEAD_BYTES];
        from.read_exact(&mut head).await?;
        let [a, b, c, kind, ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "frame longer than an HTTP/2 peer of ours sends",
            ));
        }
        bytes.clear();
        bytes.extend_from_slice(&head);
        bytes.resize(FRAME_HEAD_BYTES + length, 0);
        from.read_exact(bytes.split_at_mut(FRAME_HEAD_BYTES).1).await?;
        connection.carried.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if connection.passes(kind) {
            to.write_all(&bytes).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const DATA: u8 = 0;
    const PATIENCE: Duration = Duration::from_secs(10);

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], body].concat()
    }

    /// A connection through the proxy: its client, and its server.
    async fn connected(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(&[7; PREFACE_BYTES]).await.unwrap();
        expect(&mut server, &[7; PREFACE_BYTES]).await;
        (client, server)
    }

    async fn expect(stream: &mut TcpStream, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        timeout(PATIENCE, stream.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!(got, bytes);
    }

    async fn pass(from: &mut TcpStream, to: &mut TcpStream, sent: &[u8], received: &[u8]) {
        from.write_all(sent).await.unwrap();
        expect(to, received).await;
    }

    #[tokio::test]
    async fn the_busiest_connection_stops_and_the_other_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        let (mut idle, mut idle_server) = connected(&proxy, &listener).await;
        let (mut busy, mut busy_server) = connected(&proxy, &listener).await;
        let (large, small, ping) = (frame(DATA, &[1; 10_000]), frame(DATA, &[2; 10]), frame(PING, &[3; 8]));
        busy.write_all(&large).await.unwrap();
        expect(&mut busy_server, &large).await;
        idle.write_all(&small).await.unwrap();
        expect(&mut idle_server, &small).await;

        let (most, next) = proxy.stop_the_busiest(Stop::AllButPings).unwrap();
        assert_eq!((most, next), (large.len() as u64, small.len() as u64));
        // Only the ping arrives, in both directions.
        let both = [small, ping.clone()].concat();
        pass(&mut busy, &mut busy_server, &both, &ping).await;
        pass(&mut busy_server, &mut busy, &both, &ping).await;
        pass(&mut idle, &mut idle_server, &both, &both).await;
        pass(&mut idle_server, &mut idle, &both, &both).await;
    }

    #[tokio::test]
    async fn the_end_of_one_side_reaches_the_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        let (client, mut server) = connected(&proxy, &listener).await;
        drop(client);
        assert_eq!(timeout(PATIENCE, server.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    }
}
