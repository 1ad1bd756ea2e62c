//! A TCP proxy.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use towline_engine::ids::PeerAddr;

use super::{Flow, PerDirection, ProxyDirection};
use crate::suites::transport::Path;
use crate::sync::lock;

/// Open connections of one proxy; the next one waits in the kernel.
const CONNECTIONS_MAX: usize = 512;

/// Bytes of one read.
const BLOCK_BYTES: usize = 16 << 10;

/// Bytes of one read under a rate. Then another connection gets its turn.
const TURN_BYTES: usize = 4 << 10;

/// The buffers of the proxy's sockets, which the kernel doubles. About the queue of a slow link: larger buffers would
/// hide flow control from the sender.
const SOCKET_BYTES: u32 = 32 << 10;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Delayed blocks of one direction.
const BLOCKS_MAX: usize = 64;

/// A proxy for TCP connections. Dropping it breaks them.
#[derive(Debug)]
pub struct TcpProxy {
    at: SocketAddr,
    shared: Arc<TcpProxyShared>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct TcpProxyShared {
    flows: watch::Sender<PerDirection<Flow>>,
    /// The number of cuts.
    cuts: watch::Sender<u64>,
    /// Whether new connections are closed at once.
    refuse: watch::Sender<bool>,
    bytes: PerDirection<AtomicU64>,
    /// Under a rate: when the next turn begins.
    free_at: PerDirection<Mutex<Option<Instant>>>,
    connections: watch::Sender<usize>,
}

impl TcpProxy {
    /// Starts a proxy on a free loopback port, to `target`.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn to(target: SocketAddr) -> io::Result<Self> {
        let socket = small_socket()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener = socket.listen(BACKLOG)?;
        let at = listener.local_addr()?;
        let shared = Arc::new(TcpProxyShared {
            flows: watch::Sender::default(),
            cuts: watch::Sender::default(),
            refuse: watch::Sender::default(),
            bytes: Default::default(),
            free_at: Default::default(),
            connections: watch::Sender::default(),
        });
        let accepting = tokio::spawn(accept(listener, target, shared.clone())).abort_handle();
        Ok(Self { at, shared, accepting })
    }

    /// Where to dial.
    pub fn local_addr(&self) -> SocketAddr {
        self.at
    }

    /// Sets the faults of a direction, also for open connections.
    pub fn set(&self, direction: ProxyDirection, flow: Flow) {
        self.shared.flows.send_modify(|flows| *flows.get_mut(direction) = flow);
    }

    /// Clears all faults.
    pub fn clear(&self) {
        self.shared.flows.send_replace(Default::default());
    }

    /// Breaks all open connections.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Sets whether new connections are closed at once.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.send_replace(refuse);
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// The number of bytes that arrived in a direction.
    pub fn bytes(&self, direction: ProxyDirection) -> u64 {
        self.shared.bytes.get(direction).load(Ordering::Relaxed)
    }

    /// This proxy as a [`Path`] of the transport suite, with addresses of `scheme`.
    pub fn into_path(self, scheme: &'static str) -> Box<dyn Path> {
        Box::new(ProxyPath { proxy: self, scheme })
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Accepted sockets have the same buffers.
fn small_socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    Ok(socket)
}

async fn dial(target: SocketAddr) -> io::Result<TcpStream> {
    match target {
        SocketAddr::V4(_) => small_socket()?.connect(target).await,
        SocketAddr::V6(_) => TcpStream::connect(target).await,
    }
}

struct ProxyPath {
    proxy: TcpProxy,
    scheme: &'static str,
}

impl Path for ProxyPath {
    fn address(&self) -> PeerAddr {
        let text = format!("{}://{}", self.scheme, self.proxy.local_addr());
        #[allow(clippy::expect_used)] // a socket's address has a host and a port
        PeerAddr::new(&text).expect("an address")
    }

    fn cut(&self) {
        self.proxy.cut();
    }

    fn black_hole(&self) {
        for direction in ProxyDirection::ALL {
            self.proxy.set(direction, Flow { black_hole: true, ..Flow::default() });
        }
    }

    fn slow_down(&self, bytes_per_s: u64) -> bool {
        for direction in ProxyDirection::ALL {
            self.proxy.set(direction, Flow { bytes_per_s: Some(bytes_per_s), ..Flow::default() });
        }
        true
    }

    fn carried(&self) -> Option<u64> {
        Some(self.proxy.bytes(ProxyDirection::Forth))
    }
}

impl TcpProxyShared {
    /// Waits for the turn of `bytes` at a rate.
    async fn pass(&self, direction: ProxyDirection, bytes: usize, rate: u64) {
        let passed = {
            let mut free_at = lock(self.free_at.get(direction));
            let now = Instant::now();
            let begins = free_at.map_or(now, |free_at| free_at.max(now));
            let passed = begins + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            *free_at = Some(passed);
            passed
        };
        sleep_until(passed).await;
    }

    fn flow(&self, direction: ProxyDirection) -> Flow {
        *self.flows.borrow().get(direction)
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, shared: Arc<TcpProxyShared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(permit) = room.clone().acquire_owned().await {
        // A failed accept concerns one connection, which is gone.
        let Ok((near, _)) = listener.accept().await else { continue };
        if *shared.refuse.borrow() {
            continue;
        }
        let shared = shared.clone();
        // Subscribed before the task runs, so that no cut is missed.
        let mut cuts = shared.cuts.subscribe();
        tokio::spawn(async move {
            let _permit = permit;
            shared.connections.send_modify(|count| *count += 1);
            tokio::select! {
                _ = cuts.changed() => {}
                () = connection(near, target, &shared) => {}
            }
            shared.connections.send_modify(|count| *count -= 1);
        });
    }
}

async fn connection(near: TcpStream, target: SocketAddr, shared: &Arc<TcpProxyShared>) {
    let Ok(far) = dial(target).await else { return };
    for stream in [&near, &far] {
        // The proxy works without these options.
        let _ = (stream.set_nodelay(true), stream.set_zero_linger());
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let forth = pump(near_in, far_out, shared, ProxyDirection::Forth);
    let back = pump(far_in, near_out, shared, ProxyDirection::Back);
    // A break of one direction breaks both; an ordinary end does not.
    let _ = tokio::try_join!(forth, back);
}

/// The connection has to break.
struct Break;

impl From<io::Error> for Break {
    fn from(_: io::Error) -> Self {
        Self
    }
}

async fn pump(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    shared: &Arc<TcpProxyShared>,
    direction: ProxyDirection,
) -> Result<(), Break> {
    let (sender, receiver) = mpsc::channel(BLOCKS_MAX);
    tokio::try_join!(read(from, sender, shared, direction), write(to, receiver, shared, direction))?;
    Ok(())
}

async fn read(
    mut from: OwnedReadHalf,
    blocks: mpsc::Sender<(Instant, Vec<u8>)>,
    shared: &Arc<TcpProxyShared>,
    direction: ProxyDirection,
) -> Result<(), Break> {
    let mut flows = shared.flows.subscribe();
    let (mut number, mut swallowed) = (0_u64, false);
    loop {
        flows.borrow_and_update();
        let flow = shared.flow(direction);
        if swallowed && !flow.black_hole {
            return Err(Break);
        }
        if flow.stall {
            flows.changed().await.map_err(|_| Break)?;
            continue;
        }
        let most = if flow.bytes_per_s.is_some() { TURN_BYTES } else { BLOCK_BYTES };
        let room = flow.cut_after.map_or(most as u64, |after| after.saturating_sub(number));
        if room == 0 {
            return Err(Break);
        }
        let mut block = Vec::with_capacity(most.min(usize::try_from(room).unwrap_or(most)));
        let mut limited = (&mut from).take(room.min(most as u64));
        tokio::select! {
            biased;
            _ = flows.changed() => continue,
            read = limited.read_buf(&mut block) => match read {
                // The other end must not hear of it.
                Ok(0) | Err(_) if flow.black_hole => {
                    flows.wait_for(|flows| !flows.get(direction).black_hole).await.map_err(|_| Break)?;
                    return Err(Break);
                }
                read => if read? == 0 { return Ok(()) },
            },
        }
        if flow.black_hole {
            swallowed = true;
            continue;
        }
        for byte in &mut block {
            number += 1;
            if flow.corrupt_every.is_some_and(|every| number % every.max(1) == 0) {
                *byte ^= 0x10;
            }
        }
        if let Some(rate) = flow.bytes_per_s {
            shared.pass(direction, block.len(), rate).await;
        }
        blocks.send((Instant::now() + flow.delay, block)).await.map_err(|_| Break)?;
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    mut blocks: mpsc::Receiver<(Instant, Vec<u8>)>,
    shared: &Arc<TcpProxyShared>,
    direction: ProxyDirection,
) -> Result<(), Break> {
    while let Some((due, block)) = blocks.recv().await {
        sleep_until(due).await;
        to.write_all(&block).await?;
        shared.bytes.get(direction).fetch_add(block.len() as u64, Ordering::Relaxed);
    }
    to.shutdown().await?;
    Ok(())
}
