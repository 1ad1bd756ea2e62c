//! A UDP proxy.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::Direction;

/// Diallers that one proxy remembers; at the bound all are forgotten, as by a router that starts again.
const DIALLERS_MAX: usize = 256;

/// Bytes of the largest datagram.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;

/// Datagrams of one way that wait for their time; the next one is lost.
const DATAGRAMS_MAX: usize = 4096;

/// What may wait where there is a rate, as a part of a second's bytes, and never fewer than these.
const QUEUE_SHARE: u64 = 5;
const QUEUE_BYTES_MIN: u64 = 16 << 10;

/// What happens to datagrams on their way. The default changes nothing. A chance is from 0.0 (never) to 1.0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DatagramFlow {
    /// They arrive this much later.
    pub delay: Duration,
    /// And up to this much later still, each by its own chance: enough of it puts them out of order.
    pub jitter: Duration,
    /// No more than this many bytes in a second. What comes sooner waits in a queue of 200 ms; what does not fit is lost.
    pub bytes_per_s: Option<u64>,
    /// Those that come wait until it is over.
    pub stall: bool,
    /// None arrives.
    pub black_hole: bool,
    /// The chance to be lost.
    pub lose: f64,
    /// The chance to arrive twice.
    pub duplicate: f64,
    /// The chance to arrive behind the next one.
    pub reorder: f64,
    /// The chance that one bit is flipped.
    pub corrupt: f64,
}

/// A proxy for datagrams. A dialler keeps its own port on the far side, as behind a router.
#[derive(Debug)]
pub struct UdpProxy {
    at: SocketAddr,
    shared: Arc<Shared>,
    receiving: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    near: UdpSocket,
    target: SocketAddr,
    flows: watch::Sender<[DatagramFlow; 2]>,
    random: Mutex<Rng>,
    passed: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    lost: AtomicU64,
    diallers: Mutex<HashMap<SocketAddr, Dialler>>,
}

/// A dialler's port on the far side, and the way there.
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
    /// A proxy at a port of its own on loopback, to `target`. Every chance comes from the seed.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn to(target: SocketAddr, seed: u64) -> io::Result<Self> {
        let near = UdpSocket::bind("127.0.0.1:0").await?;
        let at = near.local_addr()?;
        let shared = Arc::new(Shared {
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

    /// What happens to datagrams one way from now on.
    pub fn set(&self, direction: Direction, flow: DatagramFlow) {
        self.shared.flows.send_modify(|[forth, back]| match direction {
            Direction::Forth => *forth = flow,
            Direction::Back => *back = flow,
        });
    }

    /// Nothing happens to datagrams any more.
    pub fn clear(&self) {
        self.shared.flows.send_replace(Default::default());
    }

    /// Forgets every dialler and what waits for it: its next datagram comes from another port, as when a router starts
    /// again; answers to the old one are lost.
    pub fn cut(&self) {
        self.shared.diallers().clear();
    }

    /// How many datagrams have been passed on one way.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.passed_of(direction).load(Ordering::Relaxed)
    }

    /// How many bytes they had.
    pub fn bytes(&self, direction: Direction) -> u64 {
        let [forth, back] = &self.shared.bytes;
        match direction {
            Direction::Forth => forth,
            Direction::Back => back,
        }
        .load(Ordering::Relaxed)
    }

    /// How many datagrams did not arrive, by a chance or because too many waited.
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

impl Shared {
    fn diallers(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Dialler>> {
        self.diallers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flow(&self, direction: Direction) -> DatagramFlow {
        let [forth, back] = *self.flows.borrow();
        match direction {
            Direction::Forth => forth,
            Direction::Back => back,
        }
    }

    fn passed_of(&self, direction: Direction) -> &AtomicU64 {
        let [forth, back] = &self.passed;
        match direction {
            Direction::Forth => forth,
            Direction::Back => back,
        }
    }

    fn count(&self, direction: Direction, length: usize) {
        self.passed_of(direction).fetch_add(1, Ordering::Relaxed);
        let [forth, back] = &self.bytes;
        let bytes = match direction {
            Direction::Forth => forth,
            Direction::Back => back,
        };
        bytes.fetch_add(length as u64, Ordering::Relaxed);
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn chance(&self, chance: f64) -> bool {
        chance > 0.0 && self.draw(|random| random.f64() < chance)
    }

    fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

/// Takes what diallers send.
async fn receive(shared: Arc<Shared>) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error here is about an earlier datagram of ours that nobody wanted.
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

/// A new dialler's port on the far side.
async fn dialler(shared: &Arc<Shared>, from: SocketAddr) -> io::Result<mpsc::Sender<Vec<u8>>> {
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
                // Nobody listens there at the moment; spare the processor.
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        }
    });
    let way = Way { shared: shared.clone(), direction: Direction::Forth };
    let forward = tokio::spawn(way.run(forth_queue, move |datagram: Vec<u8>| {
        let far = far.clone();
        async move { far.send(&datagram).await.is_ok() }
    }));
    let (way, near) = (Way { shared: shared.clone(), direction: Direction::Back }, shared.clone());
    let backward = tokio::spawn(way.run(back_queue, move |datagram: Vec<u8>| {
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

/// One way of one dialler.
struct Way {
    shared: Arc<Shared>,
    direction: Direction,
}

impl Way {
    async fn run<F: Future<Output = bool>>(
        self,
        mut queue: mpsc::Receiver<Vec<u8>>,
        send: impl Fn(Vec<u8>) -> F,
    ) {
        let mut flows = self.shared.flows.subscribe();
        // Those that wait for their time, the earliest first.
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

    /// Decides what becomes of a datagram that came.
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
