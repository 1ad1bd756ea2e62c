//! A snapshot store in memory, and a wrapper of any store that fails on request.

mod faulty;
mod mem;

pub use faulty::{FaultySnapshots, SnapshotGate, SnapshotOp};
pub use mem::MemSnapshots;
