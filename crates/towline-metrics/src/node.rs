//! Metrics of a node, and the tables of handles for its peers and groups.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, NoopRecorder, Recorder};

use crate::group::GroupMetrics;
use crate::handles::{PerLabel, Registrar, float, handles};
use crate::labels::{self, OTHER, RejectCause, Table};
use crate::names;
use crate::peer::PeerMetrics;

/// Bound on cached handles per (peer, transport) of one node. Each costs about 110 series. Beyond it
/// [`NodeMetrics::peer`] answers with [`NodeMetrics::other_peers`] and counts that.
pub const PEERS_MAX: usize = 256;

/// Bound on cached handles per group of one node. Each costs about 20 series, five of them histograms.
/// Beyond it [`NodeMetrics::group`] answers with one shared handle, whose gauges do nothing, and counts that.
pub const GROUPS_MAX: usize = 4096;

/// A recorder that several nodes, and the program around them, may share.
pub type SharedRecorder = Arc<dyn Recorder + Send + Sync>;

/// The metrics of one node. Cloning shares them.
#[derive(Clone)]
pub struct NodeMetrics {
    inner: Arc<Inner>,
}

struct Inner {
    node: u64,
    source: Source,
    handles: NodeHandles,
    peers: Mutex<HashMap<(u64, &'static str), PeerMetrics>>,
    groups: Mutex<HashMap<u64, GroupMetrics>>,
    other_peers: OnceLock<PeerMetrics>,
    other_groups: OnceLock<GroupMetrics>,
}

/// Where handles are made.
enum Source {
    Given(SharedRecorder),
    /// The recorder that `metrics` has installed when a handle is made.
    Ambient,
}

handles! {
    struct NodeHandles {
        only rejects: PerLabel<RejectCause, Counter> = INBOUND_REJECTS;
        only log_writes: Counter = LOG_WRITES;
        only log_write_seconds: Histogram = LOG_WRITE_SECONDS;
        only log_write_bytes: Histogram = LOG_WRITE_BYTES;
        only log_write_batches: Histogram = LOG_WRITE_BATCHES;
        only log_poisoned: Counter = LOG_POISONED;
        only disk_free_bytes: Gauge = DISK_FREE_BYTES;
        only disk_low: Gauge = DISK_LOW;
        only disk_looks_failed: Counter = DISK_LOOKS_FAILED;
        only shard_turns: Counter = SHARD_TURNS;
        only shard_turn_seconds: Histogram = SHARD_TURN_SECONDS;
        only ticks_skipped: Counter = TICKS_SKIPPED;
        only reports_after_close: Counter = REPORTS_AFTER_CLOSE;
        only overflow: PerLabel<Table, Counter> = METRICS_OVERFLOW;
    }
}

impl NodeMetrics {
    /// Makes the handles of node `node` and describes every metric to the recorder.
    ///
    /// With `Some`, everything goes to that recorder. With `None`, it goes to the recorder that the
    /// `metrics` crate has installed *when the handle is made*: now for the node's own handles, at the
    /// first call of [`peer`](Self::peer) or [`group`](Self::group) for theirs. If none is installed at
    /// that moment, the handle is a no-op for ever, also after one is installed.
    #[must_use]
    pub fn new(node: u64, recorder: Option<SharedRecorder>) -> Self {
        let source = recorder.map_or(Source::Ambient, Source::Given);
        let handles = source.with(|recorder| {
            names::describe(recorder);
            NodeHandles::register(&node_labels(recorder, node))
        });
        let inner = Inner {
            node,
            source,
            handles,
            peers: Mutex::default(),
            groups: Mutex::default(),
            other_peers: OnceLock::new(),
            other_groups: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Metrics that go nowhere.
    #[must_use]
    pub fn noop() -> Self {
        Self::new(0, Some(Arc::new(NoopRecorder)))
    }

    /// The node's id, as given.
    #[must_use]
    pub fn node(&self) -> u64 {
        self.inner.node
    }

    /// The handles of one peer over one transport, made on first use. Takes a lock: call it when a peer
    /// becomes known and keep the result.
    ///
    /// Past [`PEERS_MAX`] distinct pairs, every further one shares [`other_peers`](Self::other_peers).
    #[must_use]
    pub fn peer(&self, peer: u64, transport: &'static str) -> PeerMetrics {
        self.cached(&self.inner.peers, (peer, transport), PEERS_MAX, |node| {
            PeerMetrics::register(node, &peer.to_string(), transport)
        })
        .unwrap_or_else(|| {
            self.inner.handles.overflow.add(Table::Peers, 1);
            self.other_peers().clone()
        })
    }

    /// The handles for peers that are unknown or beyond [`PEERS_MAX`]. The labels of peer and transport read
    /// `other`, and the gauges do nothing.
    #[must_use]
    pub fn other_peers(&self) -> &PeerMetrics {
        self.inner
            .other_peers
            .get_or_init(|| self.register(|node| PeerMetrics::register(&node.without_gauges(), OTHER, OTHER)))
    }

    /// The handles of one group, made on first use. Takes a lock: call it when the group starts and keep
    /// the result.
    ///
    /// Past [`GROUPS_MAX`] distinct groups, every further one shares a handle whose group reads `other`
    /// and whose gauges do nothing.
    #[must_use]
    pub fn group(&self, group: u64) -> GroupMetrics {
        self.cached(&self.inner.groups, group, GROUPS_MAX, |node| {
            GroupMetrics::register(node, &group.to_string())
        })
        .unwrap_or_else(|| {
            self.inner.handles.overflow.add(Table::Groups, 1);
            let register = || self.register(|node| GroupMetrics::register(&node.without_gauges(), OTHER));
            self.inner.other_groups.get_or_init(register).clone()
        })
    }

    /// Counts one refused message, hello or connection from the network.
    pub fn rejected(&self, cause: RejectCause) {
        self.inner.handles.rejects.add(cause, 1);
    }

    /// Counts one durable log write: its time, its bytes, and how many group batches it merged.
    pub fn log_write(&self, elapsed: Duration, bytes: u64, batches: u64) {
        let handles = &self.inner.handles;
        handles.log_writes.increment(1);
        handles.log_write_seconds.record(elapsed.as_secs_f64());
        handles.log_write_bytes.record(float(bytes));
        handles.log_write_batches.record(float(batches));
    }

    /// Counts one failed log write that poisoned the log.
    pub fn log_poisoned(&self) {
        self.inner.handles.log_poisoned.increment(1);
    }

    /// Shows the free space of the disk that holds the log, and whether that is low.
    pub fn disk(&self, free: u64, low: bool) {
        self.inner.handles.disk_free_bytes.set(float(free));
        self.inner.handles.disk_low.set(f64::from(low));
    }

    /// Counts one failed read of that free space.
    pub fn disk_look_failed(&self) {
        self.inner.handles.disk_looks_failed.increment(1);
    }

    /// Counts one turn of the shard loop and records its time, waiting excluded.
    pub fn shard_turn(&self, elapsed: Duration) {
        self.inner.handles.shard_turns.increment(1);
        self.inner.handles.shard_turn_seconds.record(elapsed.as_secs_f64());
    }

    /// Adds skipped ticks.
    pub fn ticks_skipped(&self, n: u64) {
        self.inner.handles.ticks_skipped.increment(n);
    }

    /// Counts reports posted after the mailbox was closed.
    pub fn reports_after_close(&self, n: u64) {
        self.inner.handles.reports_after_close.increment(n);
    }

    /// The cached handle of `key`, or a new one; `None` when the table is full.
    fn cached<K: Copy + Eq + std::hash::Hash, H: Clone>(
        &self,
        table: &Mutex<HashMap<K, H>>,
        key: K,
        entries_max: usize,
        make: impl FnOnce(&Registrar<'_>) -> H,
    ) -> Option<H> {
        {
            let table = lock(table);
            if let Some(found) = table.get(&key) {
                return Some(found.clone());
            }
            if table.len() >= entries_max {
                return None;
            }
        }
        // The recorder is foreign code, so it runs without the lock. Two threads may both register one key; the recorder
        // gives both the same series, and the first handle stays.
        let made = self.register(|node| make(&node));
        let mut table = lock(table);
        if table.len() >= entries_max && !table.contains_key(&key) {
            return None;
        }
        Some(table.entry(key).or_insert(made).clone())
    }

    fn register<H>(&self, make: impl FnOnce(Registrar<'_>) -> H) -> H {
        self.inner.source.with(|recorder| make(node_labels(recorder, self.inner.node)))
    }
}

impl fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeMetrics").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl Source {
    fn with<T>(&self, f: impl FnOnce(&dyn Recorder) -> T) -> T {
        match self {
            Self::Given(recorder) => f(recorder.as_ref()),
            Self::Ambient => metrics::with_recorder(f),
        }
    }
}

fn node_labels(recorder: &dyn Recorder, node: u64) -> Registrar<'_> {
    Registrar::new(recorder).with(labels::NODE, node.to_string())
}

/// A panic in a recorder leaves the map intact, so a poisoned lock is still usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
