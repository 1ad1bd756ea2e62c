//! A TCP proxy.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use towline_engine::ids::PeerAddr;

use super::{Direction, Flow};
use crate::suites::transport::Path;

/// Connections through one proxy at once; the next one waits in the kernel.
const CONNECTIONS_MAX: usize = 512;

/// Bytes read at once.
const BLOCK_BYTES: usize = 16 << 10;

/// Bytes that pass at once where there is a rate: another connection gets its turn after it.
const TURN_BYTES: usize = 4 << 10;

/// What the kernel may hold in a socket of the proxy, as asked for; it takes twice as much. As much as a slow link's own
/// queue, or the proxy would swallow what its sender is to keep back.
const SOCKET_BYTES: u32 = 32 << 10;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Blocks of one direction that wait for their time.
const BLOCKS_MAX: usize = 64;

/// A proxy for TCP connections. Dropping it breaks them.
#[derive(Debug)]
pub struct TcpProxy {
    at: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    flows: watch::Sender<[Flow; 2]>,
    /// Changes with every cut.
    cuts: watch::Sender<u64>,
    /// Whether new connections are closed at once.
    refuse: watch::Sender<bool>,
    bytes: [AtomicU64; 2],
    /// When the next turn of each direction begins, where there is a rate.
    free_at: [Mutex<Option<Instant>>; 2],
    connections: watch::Sender<usize>,
}

impl TcpProxy {
    /// A proxy at a port of its own on loopback, to `target`.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn to(target: SocketAddr) -> io::Result<Self> {
        let socket = small_socket()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener = socket.listen(BACKLOG)?;
        let at = listener.local_addr()?;
        let shared = Arc::new(Shared {
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

    /// What happens to bytes one way from now on, on open connections too.
    pub fn set(&self, direction: Direction, flow: Flow) {
        self.shared.flows.send_modify(|[forth, back]| match direction {
            Direction::Forth => *forth = flow,
            Direction::Back => *back = flow,
        });
    }

    /// Nothing happens to bytes any more.
    pub fn clear(&self) {
        self.shared.flows.send_replace(Default::default());
    }

    /// Breaks every connection now. New ones may come.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.send_replace(refuse);
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// How many bytes have been passed on one way.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.bytes_of(direction).load(Ordering::Relaxed)
    }

    /// This proxy as a [`Path`] of the transport suite, with addresses of that scheme.
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
        for direction in Direction::ALL {
            self.proxy.set(direction, Flow { black_hole: true, ..Flow::default() });
        }
    }

    fn slow_down(&self, bytes_per_s: u64) -> bool {
        for direction in Direction::ALL {
            self.proxy.set(direction, Flow { bytes_per_s: Some(bytes_per_s), ..Flow::default() });
        }
        true
    }

    fn carried(&self) -> Option<u64> {
        Some(self.proxy.bytes(Direction::Forth))
    }
}

impl Shared {
    fn bytes_of(&self, direction: Direction) -> &AtomicU64 {
        let [forth, back] = &self.bytes;
        match direction {
            Direction::Forth => forth,
            Direction::Back => back,
        }
    }

    /// Waits until `bytes` have passed at that rate, after what others pass before.
    async fn pass(&self, direction: Direction, bytes: usize, rate: u64) {
        let [forth, back] = &self.free_at;
        let free_at = match direction {
            Direction::Forth => forth,
            Direction::Back => back,
        };
        let passed = {
            let mut free_at = free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let begins = free_at.map_or(now, |free_at| free_at.max(now));
            let passed = begins + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            *free_at = Some(passed);
            passed
        };
        sleep_until(passed).await;
    }

    fn flow(&self, direction: Direction) -> Flow {
        let [forth, back] = *self.flows.borrow();
        match direction {
            Direction::Forth => forth,
            Direction::Back => back,
        }
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(permit) = room.clone().acquire_owned().await {
        // A failed accept concerns one connection that is gone already.
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

async fn connection(near: TcpStream, target: SocketAddr, shared: &Arc<Shared>) {
    let Ok(far) = dial(target).await else { return };
    for stream in [&near, &far] {
        // Without them the proxy is slower, or ends a connection more politely; it works.
        let _ = (stream.set_nodelay(true), stream.set_zero_linger());
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let forth = pump(near_in, far_out, shared, Direction::Forth);
    let back = pump(far_in, near_out, shared, Direction::Back);
    // Either breaks both; an ordinary end of one leaves the other.
    let _ = tokio::try_join!(forth, back);
}

/// A connection that is to be broken, whatever the reason.
struct Break;

impl From<io::Error> for Break {
    fn from(_: io::Error) -> Self {
        Self
    }
}

async fn pump(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    shared: &Arc<Shared>,
    direction: Direction,
) -> Result<(), Break> {
    let (sender, receiver) = mpsc::channel(BLOCKS_MAX);
    tokio::try_join!(read(from, sender, shared, direction), write(to, receiver, shared, direction))?;
    Ok(())
}

async fn read(
    mut from: OwnedReadHalf,
    blocks: mpsc::Sender<(Instant, Vec<u8>)>,
    shared: &Arc<Shared>,
    direction: Direction,
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
            read = limited.read_buf(&mut block) => if read? == 0 { return Ok(()) },
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
    shared: &Arc<Shared>,
    direction: Direction,
) -> Result<(), Break> {
    while let Some((due, block)) = blocks.recv().await {
        sleep_until(due).await;
        to.write_all(&block).await?;
        shared.bytes_of(direction).fetch_add(block.len() as u64, Ordering::Relaxed);
    }
    to.shutdown().await?;
    Ok(())
}
