//! Snapshots in memory, with a live and a durable image, and a double around any store that fails on request.

mod faulty;
mod mem;

pub use faulty::{FaultySnapshots, SnapshotFault, SnapshotGate, SnapshotOp};
pub use mem::MemSnapshots;
