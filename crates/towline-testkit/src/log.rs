//! A log and an identity in memory, with a live and a durable image.

mod identity;
mod image;
mod store;

pub use identity::MemIdentity;
pub use store::{AppendFault, MemLog, SyncGate};
