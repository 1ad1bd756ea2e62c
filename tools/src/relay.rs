//! Relays on loopback between each two nodes. They delay what one node sends to another, or hold it back.
//!
//! A way is what one node sends to another, whichever of them made the connection. A cut way holds the bytes of TCP, as
//! a link whose packets are sent again, and drops datagrams.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::Result;
use crate::cluster::Transport;

/// Far above what two nodes open, replaced connections included.
const CONNECTIONS_MAX: usize = 64;
/// Each restart of a node makes one caller; the oldest is forgotten.
const CALLERS_MAX: usize = 4;
const CHUNK_BYTES: usize = 64 << 10;
/// The longest datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
/// Chunks that one connection delays at a time; more wait in the sockets.
const CHUNKS_MAX: usize = 64;
/// Datagrams that one caller delays at a time; more are dropped.
const DATAGRAMS_MAX: usize = 4_096;

/// The state of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Way {
    #[default]
    Open,
    Slow(Duration),
    Cut,
}

type Ways = BTreeMap<(usize, usize), watch::Sender<Way>>;

/// Its drop closes all connections.
pub(crate) struct Relays {
    addresses: BTreeMap<(usize, usize), SocketAddr>,
    ways: Ways,
    _running: JoinSet<()>,
}

impl Relays {
    /// Must be called on a tokio runtime.
    pub(crate) fn start(targets: Vec<(SocketAddr, Transport)>) -> Result<Self> {
        let nodes = 0..targets.len();
        let pairs = nodes.clone().flat_map(|from| nodes.clone().map(move |to| (from, to)));
        let ways: Ways =
            pairs.filter(|(from, to)| from != to).map(|pair| (pair, watch::Sender::default())).collect();
        let (mut addresses, mut running) = (BTreeMap::new(), JoinSet::new());
        for (&(from, to), there) in &ways {
            let back = ways.get(&(to, from)).ok_or("no way back")?.subscribe();
            let there = there.subscribe();
            let &(target, transport) = targets.get(to).ok_or("no target")?;
            let address = match transport {
                Transport::Grpc => {
                    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
                    listener.set_nonblocking(true)?;
                    let address = listener.local_addr()?;
                    running.spawn(relay_connections(TcpListener::from_std(listener)?, target, there, back));
                    address
                }
                Transport::Quic => {
                    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
                    socket.set_nonblocking(true)?;
                    let address = socket.local_addr()?;
                    running.spawn(relay_datagrams(UdpSocket::from_std(socket)?, target, there, back));
                    address
                }
            };
            addresses.insert((from, to), address);
        }
        Ok(Self { addresses, ways, _running: running })
    }

    /// Where `from` calls `to`; `None` for a node itself.
    pub(crate) fn address(&self, from: usize, to: usize) -> Option<SocketAddr> {
        self.addresses.get(&(from, to)).copied()
    }

    /// Changes ways until the returned value is dropped. A pair is a sender and a receiver.
    pub(crate) fn change(&self, pairs: &[(usize, usize)], way: Way) -> ChangedWays {
        let ways: Vec<_> = pairs.iter().filter_map(|pair| self.ways.get(pair)).cloned().collect();
        for one in &ways {
            one.send_replace(way);
        }
        ChangedWays(ways)
    }
}

/// Ways that are slow or cut. Its drop opens them.
pub(crate) struct ChangedWays(Vec<watch::Sender<Way>>);

impl Drop for ChangedWays {
    fn drop(&mut self) {
        for way in &self.0 {
            way.send_replace(Way::Open);
        }
    }
}

/// When bytes that arrive now are passed on.
fn due(way: &watch::Receiver<Way>) -> Instant {
    match *way.borrow() {
        Way::Slow(delay) => Instant::now() + delay,
        Way::Open | Way::Cut => Instant::now(),
    }
}

async fn relay_connections(
    listener: TcpListener,
    target: SocketAddr,
    there: watch::Receiver<Way>,
    back: watch::Receiver<Way>,
) {
    // Its drop ends all connections.
    let mut open = JoinSet::new();
    loop {
        let caller = tokio::select! {
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        // Above the bound the caller sees the end of its connection, as when the node is down.
        if let Ok((caller, _)) = caller
            && open.len() < CONNECTIONS_MAX
        {
            let (there, back) = (there.clone(), back.clone());
            open.spawn(async move { drop(relay_connection(caller, target, there, back).await) });
        }
    }
}

async fn relay_connection(
    caller: TcpStream,
    target: SocketAddr,
    there: watch::Receiver<Way>,
    back: watch::Receiver<Way>,
) -> io::Result<()> {
    let called = TcpStream::connect(target).await?;
    caller.set_nodelay(true)?;
    called.set_nodelay(true)?;
    let ((from_caller, to_caller), (from_called, to_called)) = (caller.into_split(), called.into_split());
    tokio::join!(carry(from_caller, to_called, there), carry(from_called, to_caller, back));
    Ok(())
}

/// Carries bytes until `from` ends, and then the end. A cut way holds both.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let (sender, mut delayed) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let arriving = way.clone();
    let read = async move {
        let mut bytes = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let chunk = bytes.get(..count).unwrap_or_default().to_vec();
            if sender.send((due(&arriving), chunk)).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((at, chunk)) = delayed.recv().await {
            if at > Instant::now() {
                sleep_until(at).await;
            }
            if way.wait_for(|way| *way != Way::Cut).await.is_err() || to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        if way.wait_for(|way| *way != Way::Cut).await.is_ok() {
            let _ = to.shutdown().await;
        }
    };
    tokio::join!(read, write);
}

/// A caller of a node over QUIC. Its drop ends what carries its datagrams.
struct Caller {
    address: SocketAddr,
    there: mpsc::Sender<(Instant, Vec<u8>)>,
    carrying: [JoinHandle<()>; 3],
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.carrying.iter().for_each(JoinHandle::abort);
    }
}

async fn relay_datagrams(
    socket: UdpSocket,
    target: SocketAddr,
    there: watch::Receiver<Way>,
    back: watch::Receiver<Way>,
) {
    let (socket, mut callers, mut bytes) =
        (Arc::new(socket), VecDeque::<Caller>::new(), vec![0; DATAGRAM_BYTES]);
    loop {
        // A caller that is down makes receiving fail once.
        let Ok((count, from)) = socket.recv_from(&mut bytes).await else { continue };
        if !callers.iter().any(|caller| caller.address == from) {
            let Ok(caller) = Caller::new(from, Arc::clone(&socket), target, &there, &back).await else {
                continue;
            };
            callers.push_back(caller);
            if callers.len() > CALLERS_MAX {
                callers.pop_front();
            }
        }
        if let Some(caller) = callers.iter().find(|caller| caller.address == from) {
            let datagram = bytes.get(..count).unwrap_or_default().to_vec();
            let _ = caller.there.try_send((due(&there), datagram));
        }
    }
}

impl Caller {
    async fn new(
        address: SocketAddr,
        socket: Arc<UdpSocket>,
        target: SocketAddr,
        there: &watch::Receiver<Way>,
        back: &watch::Receiver<Way>,
    ) -> io::Result<Self> {
        let called = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        called.connect(target).await?;
        let (sender, to_called) = mpsc::channel(DATAGRAMS_MAX);
        let (answers, to_caller) = mpsc::channel(DATAGRAMS_MAX);
        let (receiving, arriving) = (Arc::clone(&called), back.clone());
        let receive = tokio::spawn(async move {
            let mut bytes = vec![0; DATAGRAM_BYTES];
            loop {
                // A node that is down makes receiving fail once.
                let Ok(count) = receiving.recv(&mut bytes).await else { continue };
                let answer = bytes.get(..count).unwrap_or_default().to_vec();
                let _ = answers.try_send((due(&arriving), answer));
            }
        });
        let ask = tokio::spawn(pass_on(called, target, to_called, there.clone()));
        let answer = tokio::spawn(pass_on(socket, address, to_caller, back.clone()));
        Ok(Self { address, there: sender, carrying: [receive, ask, answer] })
    }
}

/// Sends datagrams when they are due, and drops them while the way is cut.
async fn pass_on(
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    mut delayed: mpsc::Receiver<(Instant, Vec<u8>)>,
    way: watch::Receiver<Way>,
) {
    // A connected socket knows its address.
    let connected = socket.peer_addr().is_ok();
    while let Some((at, datagram)) = delayed.recv().await {
        if at > Instant::now() {
            sleep_until(at).await;
        }
        if *way.borrow() != Way::Cut {
            let _ =
                if connected { socket.send(&datagram).await } else { socket.send_to(&datagram, to).await };
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);
    const DELAY: Duration = Duration::from_millis(100);
    const CUT: Duration = Duration::from_millis(100);

    async fn read(stream: &mut TcpStream) -> u8 {
        timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_cut_way_holds_the_bytes_of_one_direction() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let relays = Relays::start(vec![(target, Transport::Grpc); 2]).unwrap();
        let mut caller = TcpStream::connect(relays.address(0, 1).unwrap()).await.unwrap();
        let (mut called, _) = listener.accept().await.unwrap();
        let cut = relays.change(&[(0, 1)], Way::Cut);
        caller.write_u8(1).await.unwrap();
        called.write_u8(2).await.unwrap();
        assert_eq!(read(&mut caller).await, 2);
        assert!(timeout(CUT, called.read_u8()).await.is_err(), "the other direction is cut");
        drop(cut);
        assert_eq!(read(&mut called).await, 1);
        drop(caller);
        assert_eq!(timeout(PATIENCE, called.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_cut_way_drops_the_datagrams_of_one_direction() {
        let called = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let target = called.local_addr().unwrap();
        let relays = Relays::start(vec![(target, Transport::Quic); 2]).unwrap();
        let caller = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        caller.connect(relays.address(0, 1).unwrap()).await.unwrap();
        let mut byte = [0; 1];
        caller.send(&[1]).await.unwrap();
        let (_, relay) = timeout(PATIENCE, called.recv_from(&mut byte)).await.unwrap().unwrap();
        let cut = relays.change(&[(1, 0)], Way::Cut);
        called.send_to(&[2], relay).await.unwrap();
        assert!(timeout(CUT, caller.recv(&mut byte)).await.is_err(), "the way back is cut");
        drop(cut);
        called.send_to(&[3], relay).await.unwrap();
        timeout(PATIENCE, caller.recv(&mut byte)).await.unwrap().unwrap();
        assert_eq!(byte, [3]);
    }

    #[tokio::test]
    async fn a_slow_way_delays_each_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relays = Relays::start(vec![(listener.local_addr().unwrap(), Transport::Grpc); 2]).unwrap();
        let mut caller = TcpStream::connect(relays.address(0, 1).unwrap()).await.unwrap();
        let (mut called, _) = listener.accept().await.unwrap();
        let _slow = relays.change(&[(0, 1)], Way::Slow(DELAY));
        let sent = Instant::now();
        caller.write_u8(1).await.unwrap();
        read(&mut called).await;
        assert!(sent.elapsed() >= DELAY);
    }
}
