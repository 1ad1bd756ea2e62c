//! A UDP proxy.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::{PerDirection, ProxyDirection};
use crate::sync::lock;

/// Diallers of one proxy. Beyond it the proxy forgets all, like a restarted router.
const DIALLERS_MAX: usize = 256;

/// Bytes of the largest datagram.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// Delayed datagrams of one direction; the next one is lost.
const DATAGRAMS_MAX: usize = 4096;

/// The queue under a rate: this part of the bytes of a second, and at least `QUEUE_BYTES_MIN`.
const QUEUE_SHARE: u64 = 5;
const QUEUE_BYTES_MIN: u64 = 16 << 10;

/// The faults of one direction of a [`UdpProxy`]; none by default. A chance is from 0.0 (never) to 1.0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DatagramFlow {
    /// Datagrams arrive later by this time.
    pub delay: Duration,
    /// Each datagram arrives later by up to this time, which changes their order.
    pub jitter: Duration,
    /// The most bytes per second. A queue holds 200 ms of them; the rest is lost.
    pub bytes_per_s: Option<u64>,
    /// Datagrams wait until the fault ends.
    pub stall: bool,
    /// All datagrams are lost.
    pub black_hole: bool,
    /// The chance that a datagram is lost.
    pub lose: f64,
    /// The chance that it arrives twice.
    pub duplicate: f64,
    /// The chance that it arrives after the next one.
    pub reorder: f64,
    /// The chance that one of its bits is flipped.
    pub corrupt: f64,
}

/// A proxy for datagrams. Each dialler has its own port on the far side, as behind a router.
#[derive(Debug)]
pub struct UdpProxy {
    at: SocketAddr,
    shared: Arc<UdpProxyShared>,
    receiving: AbortHandle,
}

#[derive(Debug)]
struct UdpProxyShared {
    near: UdpSocket,
    target: SocketAddr,
    flows: watch::Sender<PerDirection<DatagramFlow>>,
    random: Mutex<Rng>,
    passed: PerDirection<AtomicU64>,
    bytes: PerDirection<AtomicU64>,
    lost: AtomicU64,
    diallers: Mutex<HashMap<SocketAddr, Dialler>>,
}

/// The queue and the tasks of a dialler.
#[derive(Debug)]
struct Dialler {
    forth: mpsc::Sender<Vec<u8>>,
    tasks: [AbortHandle; 3],
}

impl Drop for Dialler {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl UdpProxy {
    /// Starts a proxy on a free loopback port, to `target`. Every chance comes from the seed.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn to(target: SocketAddr, seed: u64) -> io::Result<Self> {
        let near = UdpSocket::bind("127.0.0.1:0").await?;
        let at = near.local_addr()?;
        let shared = Arc::new(UdpProxyShared {
            near,
            target,
            flows: watch::Sender::default(),
            random: Mutex::new(Rng::with_seed(seed)),
            passed: Default::default(),
            bytes: Default::default(),
            lost: AtomicU64::new(0),
            diallers: Mutex::default(),
        });
        let receiving = tokio::spawn(receive(shared.clone())).abort_handle();
        Ok(Self { at, shared, receiving })
    }

    /// Where to dial.
    pub fn local_addr(&self) -> SocketAddr {
        self.at
    }

    /// Sets the faults of a direction.
    pub fn set(&self, direction: ProxyDirection, flow: DatagramFlow) {
        self.shared.flows.send_modify(|flows| *flows.get_mut(direction) = flow);
    }

    /// Clears all faults.
    pub fn clear(&self) {
        self.shared.flows.send_replace(Default::default());
    }

    /// Forgets all diallers, like a restarted router: their next datagrams come from other ports, and answers to the old
    /// ports are lost.
    pub fn cut(&self) {
        self.shared.diallers().clear();
    }

    /// The number of datagrams that passed in a direction.
    pub fn passed(&self, direction: ProxyDirection) -> u64 {
        self.shared.passed.get(direction).load(Ordering::Relaxed)
    }

    /// The number of bytes that passed in a direction.
    pub fn bytes(&self, direction: ProxyDirection) -> u64 {
        self.shared.bytes.get(direction).load(Ordering::Relaxed)
    }

    /// The number of datagrams lost by a chance or a full queue.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for UdpProxy {
    fn drop(&mut self) {
        self.receiving.abort();
        self.cut();
    }
}

impl UdpProxyShared {
    fn diallers(&self) -> MutexGuard<'_, HashMap<SocketAddr, Dialler>> {
        lock(&self.diallers)
    }

    fn flow(&self, direction: ProxyDirection) -> DatagramFlow {
        *self.flows.borrow().get(direction)
    }

    fn count(&self, direction: ProxyDirection, length: usize) {
        self.passed.get(direction).fetch_add(1, Ordering::Relaxed);
        self.bytes.get(direction).fetch_add(length as u64, Ordering::Relaxed);
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut lock(&self.random))
    }

    fn chance(&self, chance: f64) -> bool {
        chance > 0.0 && self.draw(|random| random.f64() < chance)
    }

    fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

/// Receives from diallers.
async fn receive(shared: Arc<UdpProxyShared>) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error here concerns an earlier datagram that no socket took.
        let Ok((length, from)) = shared.near.recv_from(&mut buffer).await else { continue };
        let datagram = buffer.get(..length).unwrap_or_default().to_vec();
        let known = shared.diallers().get(&from).map(|dialler| dialler.forth.clone());
        let forth = match known {
            Some(forth) => forth,
            None => match dialler(&shared, from).await {
                Ok(forth) => forth,
                Err(_) => continue,
            },
        };
        if forth.try_send(datagram).is_err() {
            shared.lose();
        }
    }
}

/// Opens a port on the far side for a new dialler.
async fn dialler(shared: &Arc<UdpProxyShared>, from: SocketAddr) -> io::Result<mpsc::Sender<Vec<u8>>> {
    let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    far.connect(shared.target).await?;
    let (forth, forth_queue) = mpsc::channel(DATAGRAMS_MAX);
    let (back, back_queue) = mpsc::channel(DATAGRAMS_MAX);
    let answers = (far.clone(), shared.clone());
    let answering = tokio::spawn(async move {
        let (far, shared) = answers;
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            match far.recv(&mut buffer).await {
                Ok(length) => {
                    if back.try_send(buffer.get(..length).unwrap_or_default().to_vec()).is_err() {
                        shared.lose();
                    }
                }
                // No socket is bound there at the moment.
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        }
    });
    let queue = DatagramQueue { shared: shared.clone(), direction: ProxyDirection::Forth };
    let forward = tokio::spawn(queue.run(forth_queue, move |datagram: Vec<u8>| {
        let far = far.clone();
        async move { far.send(&datagram).await.is_ok() }
    }));
    let (queue, near) =
        (DatagramQueue { shared: shared.clone(), direction: ProxyDirection::Back }, shared.clone());
    let backward = tokio::spawn(queue.run(back_queue, move |datagram: Vec<u8>| {
        let near = near.clone();
        async move { near.near.send_to(&datagram, from).await.is_ok() }
    }));
    let tasks = [answering.abort_handle(), forward.abort_handle(), backward.abort_handle()];
    let mut diallers = shared.diallers();
    if diallers.len() >= DIALLERS_MAX {
        diallers.clear();
    }
    diallers.insert(from, Dialler { forth: forth.clone(), tasks });
    Ok(forth)
}

/// One direction of one dialler.
struct DatagramQueue {
    shared: Arc<UdpProxyShared>,
    direction: ProxyDirection,
}

impl DatagramQueue {
    async fn run<F: Future<Output = bool>>(
        self,
        mut queue: mpsc::Receiver<Vec<u8>>,
        send: impl Fn(Vec<u8>) -> F,
    ) {
        let mut flows = self.shared.flows.subscribe();
        // Sorted by time.
        let mut waiting: Vec<(Instant, Vec<u8>)> = Vec::new();
        let mut held: Option<Vec<u8>> = None;
        let mut free_at = Instant::now();
        loop {
            flows.borrow_and_update();
            let flow = self.shared.flow(self.direction);
            if flow.stall {
                if flows.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let next = waiting.first().map(|(due, _)| *due);
            tokio::select! {
                biased;
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    let (_, datagram) = waiting.remove(0);
                    let length = datagram.len();
                    match send(datagram).await {
                        true => self.shared.count(self.direction, length),
                        false => self.shared.lose(),
                    }
                }
                _ = flows.changed() => {}
                datagram = queue.recv() => {
                    let Some(datagram) = datagram else { return };
                    self.take(datagram, &flow, &mut held, &mut free_at, &mut waiting);
                }
            }
        }
    }

    /// Applies the faults to a datagram.
    fn take(
        &self,
        mut datagram: Vec<u8>,
        flow: &DatagramFlow,
        held: &mut Option<Vec<u8>>,
        free_at: &mut Instant,
        waiting: &mut Vec<(Instant, Vec<u8>)>,
    ) {
        if flow.black_hole || self.shared.chance(flow.lose) {
            return self.shared.lose();
        }
        if self.shared.chance(flow.corrupt) {
            let bit = self.shared.draw(|random| random.usize(..datagram.len().max(1) * 8));
            if let Some(byte) = datagram.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
        let mut out = Vec::with_capacity(3);
        if self.shared.chance(flow.duplicate) {
            out.push(datagram.clone());
        }
        match held.take() {
            Some(behind) => out.extend([datagram, behind]),
            None if self.shared.chance(flow.reorder) => *held = Some(datagram),
            None => out.push(datagram),
        }
        for datagram in out {
            if waiting.len() >= DATAGRAMS_MAX {
                self.shared.lose();
                continue;
            }
            let now = Instant::now();
            let mut due = now;
            if let Some(rate) = flow.bytes_per_s {
                let rate = rate.max(1);
                let begins = (*free_at).max(now);
                let queued = (begins - now).as_secs_f64() * rate as f64;
                if queued > (rate / QUEUE_SHARE).max(QUEUE_BYTES_MIN) as f64 {
                    self.shared.lose();
                    continue;
                }
                due = begins + Duration::from_secs_f64(datagram.len() as f64 / rate as f64);
                *free_at = due;
            }
            let jitter = self.shared.draw(|random| flow.jitter.mul_f64(random.f64()));
            let due = due + flow.delay + jitter;
            let place = waiting.partition_point(|(other, _)| *other <= due);
            waiting.insert(place, (due, datagram));
        }
    }
}
