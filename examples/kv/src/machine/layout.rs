//! How the state lies in the store: one keyspace, so that one batch is one atom in journal and tables alike.
//!
//! | key | value |
//! | --- | --- |
//! | `m` | [`Meta`] |
//! | `d` generation (4, big endian) key | expiry in ms, 0 for never (8, big endian), then the value |
//! | `x` generation (4, big endian) expiry (8, big endian) key | nothing: finds what is due |
//!
//! A generation is what `FLUSHDB` and an installed snapshot replace: raising one number makes all old keys garbage,
//! which later batches sweep away in bounded steps.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use towline::{LogId, codec};
use twox_hash::XxHash3_128;

use super::StoreError;

pub(super) const META_KEY: &[u8] = b"m";
const META_BYTES_MAX: usize = 256;
const EXPIRY_BYTES: usize = 8;
const DATA_PREFIX_BYTES: usize = 5;
const DUE_PREFIX_BYTES: usize = 13;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) index: u64,
    pub(super) term: u64,
    /// The newest `now_ms` of any applied command: the time in the log. Never goes back.
    pub(super) clock_ms: u64,
    pub(super) generation: u32,
    /// Keys in the live generation, expired ones that were not removed yet among them.
    pub(super) keys: u64,
    /// The sum of [`checksum`] over those keys: what the store must hold, whatever files it has it from.
    pub(super) checksum: u128,
}

impl Meta {
    pub(super) fn applied(&self) -> LogId {
        LogId { index: self.index, term: self.term }
    }

    pub(super) fn encode(&self) -> Result<Bytes, StoreError> {
        Ok(codec::encode(self, META_BYTES_MAX)?)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        Ok(codec::decode(bytes, META_BYTES_MAX)?)
    }
}

pub(super) fn data_key(generation: u32, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(DATA_PREFIX_BYTES + key.len());
    out.push(b'd');
    out.extend_from_slice(&generation.to_be_bytes());
    out.extend_from_slice(key);
    out
}

pub(super) fn due_key(generation: u32, expiry_ms: u64, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(DUE_PREFIX_BYTES + key.len());
    out.push(b'x');
    out.extend_from_slice(&generation.to_be_bytes());
    out.extend_from_slice(&expiry_ms.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// The user's key in a [`data_key`].
pub(super) fn key_of_data(stored: &[u8]) -> &[u8] {
    stored.get(DATA_PREFIX_BYTES..).unwrap_or_default()
}

/// The user's key in a [`due_key`].
pub(super) fn key_of_due(stored: &[u8]) -> &[u8] {
    stored.get(DUE_PREFIX_BYTES..).unwrap_or_default()
}

/// The expiry in a [`due_key`]; zero, which is always due, if it is none.
pub(super) fn expiry_of_due(stored: &[u8]) -> u64 {
    let expiry = stored.get(DATA_PREFIX_BYTES..).and_then(|rest| rest.first_chunk::<EXPIRY_BYTES>());
    expiry.map_or(0, |ms| u64::from_be_bytes(*ms))
}

pub(super) fn record(expiry_ms: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(EXPIRY_BYTES + value.len());
    out.extend_from_slice(&expiry_ms.to_be_bytes());
    out.extend_from_slice(value);
    out
}

/// Expiry and value of a [`record`].
pub(super) fn split(record: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    let (expiry, value) = record.split_first_chunk::<EXPIRY_BYTES>().ok_or(StoreError::Corrupt("record"))?;
    Ok((u64::from_be_bytes(*expiry), value))
}

/// One record's part in the checksum of the state. The parts are added, so their order does not matter and each write
/// changes the sum by what it replaces and what it writes.
pub(super) fn checksum(key: &[u8], expiry_ms: u64, value: &[u8]) -> u128 {
    // The low half is enough of a seed.
    XxHash3_128::oneshot_with_seed(due_checksum(key, expiry_ms) as u64, value)
}

/// The same of a [`due_key`].
pub(super) fn due_checksum(key: &[u8], expiry_ms: u64) -> u128 {
    XxHash3_128::oneshot_with_seed(expiry_ms, key)
}

/// Whether something that expires at `expiry_ms` (0: never) is still there at `now_ms`.
pub(super) fn alive(expiry_ms: u64, now_ms: u64) -> bool {
    expiry_ms == 0 || expiry_ms > now_ms
}
