//! The replicated state: keys, values and expiries, first in memory and then in fjall.
//!
//! The Raft log is the write-ahead log. So applying a command changes memory only, and the store may lag behind: after a
//! crash the node applies the missing entries again. Data and applied index reach the store in one atomic, synced step.

mod clock;
mod command;
mod config;
mod cut;
mod error;
mod fnv;
mod layout;
mod opened;
mod overlay;
mod patience;
mod room;
mod snapshot;
mod state_machine;
mod view;
mod writeback;

pub(crate) use command::{
    Answer, Blob, Command, Condition, Expiry, KEY_BYTES_MAX, Op, PACK_BYTES, VALUE_BYTES_MAX, pack,
};
pub(crate) use config::{FILES_MIN, JOURNAL_BYTES_MIN, StoreConfig};
pub(crate) use error::StoreError;
pub(crate) use overlay::parse_integer;
pub(crate) use patience::descriptor_waits;
pub(crate) use room::{StoreRoom, space_waits};
pub(crate) use state_machine::KvMachine;
pub(crate) use view::{Gathered, Stored, View};
pub(crate) use writeback::WAITING_TABLES_MAX;
