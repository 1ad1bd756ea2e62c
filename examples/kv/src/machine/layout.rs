//! The layout of the state in the store. One keyspace holds it all, so one batch is atomic in journal and tables.
//!
//! | key | value |
//! | --- | --- |
//! | `m` | [`Meta`] |
//! | `d` generation (4, big endian) key | expiry in ms, 0 for never (8, big endian), then the value |
//! | `x` generation (4, big endian) expiry (8, big endian) key | empty: an index of the keys by expiry |
//!
//! `FLUSHDB` and a restored snapshot raise the generation. All keys of older generations are then dead, and later batches
//! remove them in bounded steps.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use towline::{LogId, codec};
use twox_hash::XxHash3_128;

use super::error::StoreError;

pub(super) const META_KEY: &[u8] = b"m";
const META_BYTES_MAX: usize = 256;
const EXPIRY_BYTES: usize = 8;
const DATA_PREFIX_BYTES: usize = 5;
const DUE_PREFIX_BYTES: usize = 13;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) index: u64,
    pub(super) term: u64,
    /// The time in the log: the newest `now_ms` of all applied commands. Never goes back.
    pub(super) clock_ms: u64,
    pub(super) generation: u32,
    /// Keys in the live generation, with the expired ones that are not removed yet.
    pub(super) keys: u64,
    /// The sum of [`checksum`] over those keys.
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
    [&b"d"[..], &generation.to_be_bytes(), key].concat()
}

pub(super) fn due_key(generation: u32, expiry_ms: u64, key: &[u8]) -> Vec<u8> {
    [&b"x"[..], &generation.to_be_bytes(), &expiry_ms.to_be_bytes(), key].concat()
}

/// The user's key in a [`data_key`].
pub(super) fn key_of_data(stored: &[u8]) -> &[u8] {
    stored.get(DATA_PREFIX_BYTES..).unwrap_or_default()
}

/// The user's key in a [`due_key`].
pub(super) fn key_of_due(stored: &[u8]) -> &[u8] {
    stored.get(DUE_PREFIX_BYTES..).unwrap_or_default()
}

/// The expiry in a [`due_key`]; zero, which is always due, in other keys.
pub(super) fn expiry_of_due(stored: &[u8]) -> u64 {
    let expiry = stored.get(DATA_PREFIX_BYTES..).and_then(|rest| rest.first_chunk::<EXPIRY_BYTES>());
    expiry.map_or(0, |ms| u64::from_be_bytes(*ms))
}

pub(super) fn record(expiry_ms: u64, value: &[u8]) -> Vec<u8> {
    [&expiry_ms.to_be_bytes()[..], value].concat()
}

/// Expiry and value of a [`record`].
pub(super) fn split(record: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    let (expiry, value) = record.split_first_chunk::<EXPIRY_BYTES>().ok_or(StoreError::Corrupt("record"))?;
    Ok((u64::from_be_bytes(*expiry), value))
}

/// The part of one record in the checksum of the state. The checksum is a sum, so each write subtracts the old part and
/// adds the new one.
pub(super) fn checksum(key: &[u8], expiry_ms: u64, value: &[u8]) -> u128 {
    XxHash3_128::oneshot_with_seed(due_checksum(key, expiry_ms) as u64, value)
}

/// The part of a [`due_key`] in the checksum of the expiry index.
pub(super) fn due_checksum(key: &[u8], expiry_ms: u64) -> u128 {
    XxHash3_128::oneshot_with_seed(expiry_ms, key)
}

/// Whether a key that expires at `expiry_ms` (0: never) is alive at `now_ms`.
pub(super) fn alive(expiry_ms: u64, now_ms: u64) -> bool {
    expiry_ms == 0 || expiry_ms > now_ms
}
