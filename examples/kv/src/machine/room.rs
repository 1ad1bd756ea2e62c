//! Room on the disk. The threads of fjall end at the first write that finds none, so the store waits before it writes.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

use super::error::StoreError;

const RETRY: Duration = Duration::from_millis(20);
/// What a write of the store may take beside its own bytes: fjall's memtables, its journal and its manifest.
pub(super) const MARGIN_BYTES: u64 = 48 << 20;
/// Bytes that a compaction writes between two looks at the disk.
const COMPACTED_BYTES: usize = 1 << 20;
/// Pauses of all stores of the process.
static WAITS: AtomicU64 = AtomicU64::new(0);

/// The number of pauses of [`RETRY`].
pub(crate) fn space_waits() -> u64 {
    WAITS.load(Ordering::Relaxed)
}

/// Tells how many bytes of the disk the store may write, and whether a store failed because they were too few.
#[derive(Clone)]
pub(crate) struct StoreRoom {
    /// `None`: not known, so nothing waits.
    free: Arc<dyn Fn() -> Option<u64> + Send + Sync>,
    closing: Arc<AtomicBool>,
    /// False while the store is opened: a write without room then fails.
    waits: bool,
    found: Arc<Found>,
}

/// What the stores found since [`StoreRoom::forget`].
#[derive(Default)]
struct Found {
    low: AtomicBool,
    failed: AtomicBool,
}

impl StoreRoom {
    pub(crate) fn new(free: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Self {
        Self { free: Arc::new(free), closing: Arc::default(), waits: true, found: Arc::default() }
    }

    /// Whether a store may write `bytes` now.
    pub(crate) fn has(&self, bytes: u64) -> bool {
        self.too_few(bytes.saturating_add(MARGIN_BYTES)).is_none()
    }

    /// Forgets what earlier stores found.
    pub(crate) fn forget(&self) {
        self.found.low.store(false, Ordering::Relaxed);
        self.found.failed.store(false, Ordering::Relaxed);
    }

    /// Whether a store has failed because the disk was full.
    pub(crate) fn has_failed(&self) -> bool {
        self.found.failed.load(Ordering::Relaxed)
    }

    /// Notes an error that ends a store. Threads of fjall keep their errors to themselves, so the room decides there.
    pub(super) fn note(&self, error: &StoreError) {
        let hides_its_cause =
            matches!(error, StoreError::Stopped | StoreError::Fjall(fjall::Error::Poisoned));
        if error.is_full_disk() || hides_its_cause && self.was_low() {
            self.found.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the disk is low, or any look found it low.
    pub(super) fn was_low(&self) -> bool {
        !self.has(0) || self.found.low.load(Ordering::Relaxed)
    }

    /// The free bytes, if they are fewer than `needed`.
    fn too_few(&self, needed: u64) -> Option<u64> {
        let free = (self.free)().filter(|free| *free < needed)?;
        self.found.low.store(true, Ordering::Relaxed);
        Some(free)
    }

    /// Waits until `bytes` and the margin of a write are free. `what` is for the log.
    ///
    /// # Errors
    /// [`StoreError::Closing`] if the store is closed meanwhile; [`StoreError::FullDisk`] while the store is opened.
    pub(super) fn wait(&self, bytes: u64, what: &'static str) -> Result<(), StoreError> {
        let needed = bytes.saturating_add(MARGIN_BYTES);
        let mut waits = false;
        while let Some(free) = self.too_few(needed) {
            if !self.waits {
                return Err(StoreError::FullDisk(format!(
                    "a {what} needs {needed} bytes, and {free} are free"
                )));
            }
            if self.closing.load(Ordering::Relaxed) {
                return Err(StoreError::Closing);
            }
            if !waits {
                waits = true;
                tracing::warn!(what, needed, free, "the key-value store waits for room on the disk");
            }
            WAITS.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(RETRY);
        }
        if waits {
            tracing::info!(what, "the key-value store has room on the disk again");
        }
        Ok(())
    }

    /// The same room for one opened store.
    pub(super) fn for_store(&self) -> Self {
        Self { closing: Arc::default(), ..self.clone() }
    }

    /// The same room, where nothing waits.
    pub(super) fn without_waits(&self) -> Self {
        Self { waits: false, ..self.clone() }
    }

    /// Its drop ends the waits of the store: fjall joins its threads.
    pub(super) fn closer(&self) -> Closer {
        Closer(Arc::clone(&self.closing))
    }

    /// A filter that keeps everything, and holds a compaction while the disk lacks room for it and a layer of `layer_bytes`.
    pub(super) fn filter(&self, layer_bytes: u64) -> Arc<dyn Factory> {
        let needed = layer_bytes.saturating_add(2 * COMPACTED_BYTES as u64);
        Arc::new(HeldCompactions { room: AssertUnwindSafe(self.clone()), needed })
    }
}

pub(super) struct Closer(Arc<AtomicBool>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct HeldCompactions {
    room: AssertUnwindSafe<StoreRoom>,
    needed: u64,
}

impl Factory for HeldCompactions {
    fn name(&self) -> &str {
        "room"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(HeldCompaction { room: self.room.clone(), needed: self.needed, bytes: COMPACTED_BYTES })
    }
}

struct HeldCompaction {
    room: StoreRoom,
    needed: u64,
    /// Bytes since the last look.
    bytes: usize,
}

impl CompactionFilter for HeldCompaction {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        // fjall calls this with no lock held, so readers and writers go on during the wait.
        if self.bytes >= COMPACTED_BYTES {
            self.bytes = 0;
            self.room.wait(self.needed, "compaction").map_err(io::Error::other)?;
        }
        self.bytes += item.key().len() + item.value()?.len();
        Ok(Verdict::Keep)
    }
}
