//! The applied changes that are not in the store yet.
//!
//! Commands change memory only. Changes gather in the newest layer. A large layer is sealed and written to the store as one
//! sorted table, while the next one fills (`writeback.rs`). A reader looks into the newest layer, the sealed one and the
//! store, in this order. After a crash the node applies lost changes again from the Raft log.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use fjall::Keyspace;

use super::command::{Answer, Blob, Command, Condition, Expiry, KEY_BYTES_MAX, Op, VALUE_BYTES_MAX};
use super::error::StoreError;
use super::layout::{Meta, alive, checksum, data_key, due_key, expiry_of_due, key_of_due, split};
use super::patience::patiently;

/// The longest number: `-9223372036854775808`.
const INTEGER_BYTES_MAX: usize = 20;
/// The most expired keys that one batch removes from memory, and from the store.
pub(super) const SWEEP_KEYS_MAX: usize = 512;
/// About the memory of a slot beside the bytes of key and value.
const SLOT_BYTES: usize = 176;

pub(super) struct Overlay {
    store: Keyspace,
    pub(super) meta: Meta,
    newest: Layer,
    /// A thread writes it to the store in one atomic step. Readers see no difference.
    sealed: Option<Arc<Layer>>,
    /// The keys of each layer that expire, by expiry.
    newest_due: BTreeSet<(u64, Bytes)>,
    sealed_due: BTreeSet<(u64, Bytes)>,
    /// How far the last sweep of the store came.
    swept: Vec<u8>,
    /// The earliest expiry in the store behind `swept`; until then batches sweep memory only. Zero: not known.
    store_due_ms: u64,
}

/// Changes of one generation, on top of what lies below.
#[derive(Default)]
pub(super) struct Layer {
    pub(super) generation: u32,
    pub(super) slots: HashMap<Bytes, Slot>,
    bytes: usize,
}

pub(super) struct Slot {
    /// The expiry of the key below this layer, if the key is there.
    pub(super) below: Option<u64>,
    /// The value; `None` if the key was removed.
    pub(super) now: Option<Value>,
    /// The checksum of that record, which the next write of the key subtracts.
    checksum: u128,
}

#[derive(Clone)]
pub(super) struct Value {
    pub(super) bytes: Bytes,
    pub(super) expiry_ms: u64,
}

impl Value {
    fn new(bytes: &[u8], expiry_ms: u64) -> Self {
        Self { bytes: Bytes::copy_from_slice(bytes), expiry_ms }
    }

    pub(super) fn of_record(record: &[u8]) -> Result<Self, StoreError> {
        let (expiry_ms, bytes) = split(record)?;
        Ok(Self::new(bytes, expiry_ms))
    }
}

/// The part of a record in the totals of the state.
struct Share {
    expiry_ms: u64,
    checksum: u128,
}

impl Share {
    fn new(key: &[u8], value: &Value) -> Self {
        Self { expiry_ms: value.expiry_ms, checksum: checksum(key, value.expiry_ms, &value.bytes) }
    }

    fn of_slot(value: Option<&Value>, checksum: u128) -> Option<Self> {
        value.map(|value| Self { expiry_ms: value.expiry_ms, checksum })
    }

    fn of_record(key: &[u8], record: &[u8]) -> Result<Self, StoreError> {
        let (expiry_ms, value) = split(record)?;
        Ok(Self { expiry_ms, checksum: checksum(key, expiry_ms, value) })
    }
}

impl Layer {
    fn new(generation: u32) -> Self {
        Self { generation, ..Self::default() }
    }

    /// About its memory, and the most that its table takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Overlay {
    /// An empty overlay on a store with `meta`.
    pub(super) fn new(store: Keyspace, meta: Meta) -> Self {
        Self {
            store,
            meta,
            newest: Layer::new(meta.generation),
            sealed: None,
            newest_due: BTreeSet::new(),
            sealed_due: BTreeSet::new(),
            swept: Vec::new(),
            store_due_ms: if meta.keys == 0 { u64::MAX } else { 0 },
        }
    }

    /// About the memory of the newest layer.
    pub(super) fn bytes(&self) -> usize {
        self.newest.bytes
    }

    /// The newest slot of a key in memory, expired or not. `None`: ask the store.
    pub(super) fn recent(&self, key: &[u8]) -> Option<&Slot> {
        self.newest.slots.get(key).or_else(|| self.sealed_layer()?.slots.get(key))
    }

    /// The sealed layer, unless `FLUSHDB` came after it.
    pub(super) fn sealed_layer(&self) -> Option<&Arc<Layer>> {
        self.sealed.as_ref().filter(|layer| layer.generation == self.meta.generation)
    }

    pub(super) fn newest_layer(&self) -> &Layer {
        &self.newest
    }

    /// Starts a new layer. The caller writes the sealed one, then calls [`written`](Self::written).
    pub(super) fn seal(&mut self) -> Arc<Layer> {
        let layer = std::mem::replace(&mut self.newest, Layer::new(self.meta.generation));
        let layer = Arc::new(layer);
        self.sealed = Some(Arc::clone(&layer));
        self.sealed_due = std::mem::take(&mut self.newest_due);
        layer
    }

    /// Notes that the sealed layer is in the store. Returns it for a drop without the lock, because that takes long.
    pub(super) fn written(&mut self) -> impl Sized + use<> {
        // Some of the written keys may be due already.
        (self.swept, self.store_due_ms) = (Vec::new(), 0);
        (self.sealed.take(), std::mem::take(&mut self.sealed_due))
    }

    pub(super) fn apply(&mut self, command: &Command<'_>) -> Result<Answer, StoreError> {
        self.meta.clock_ms = self.meta.clock_ms.max(command.now_ms);
        match &command.op {
            Op::Set { key, value, expiry, condition, answer_old } => {
                self.set(*key, *value, *expiry, *condition, *answer_old)
            }
            Op::Delete { keys } => self.delete(keys),
            Op::Add { key, delta } => self.add(*key, *delta),
            Op::Append { key, value } => self.append(*key, *value),
            Op::SetMany { pairs } => self.set_many(pairs),
            Op::Flush => {
                let generation =
                    self.meta.generation.checked_add(1).ok_or(StoreError::Corrupt("generation"))?;
                self.meta = Meta { generation, keys: 0, checksum: 0, ..self.meta };
                self.newest = Layer::new(generation);
                self.newest_due.clear();
                self.sealed_due.clear();
                (self.swept, self.store_due_ms) = (Vec::new(), 0);
                Ok(Answer::Done)
            }
        }
    }

    fn set(
        &mut self,
        key: Blob<'_>,
        value: Blob<'_>,
        expiry: Expiry,
        condition: Condition,
        answer_old: bool,
    ) -> Result<Answer, StoreError> {
        if too_long(key, value.0.len()) {
            return Ok(Answer::TooLong);
        }
        // Most writes need no look at the old value.
        let looks = condition != Condition::Always || expiry == Expiry::Keep || answer_old;
        let old = if looks { self.value(key.0)? } else { None };
        let met = match condition {
            Condition::Always => true,
            Condition::IfAbsent => old.is_none(),
            Condition::IfPresent => old.is_some(),
        };
        if met {
            let expiry_ms = match expiry {
                Expiry::Never => 0,
                Expiry::Keep => old.as_ref().map_or(0, |v| v.expiry_ms),
                Expiry::After { ttl_ms } => self.meta.clock_ms.saturating_add(ttl_ms),
            };
            self.put(key.0, Some(Value::new(value.0, expiry_ms)))?;
        }
        Ok(match (answer_old, met) {
            (true, _) => Answer::Value(old.map(|v| v.bytes)),
            (false, true) => Answer::Done,
            (false, false) => Answer::Skipped,
        })
    }

    fn delete(&mut self, keys: &[Blob<'_>]) -> Result<Answer, StoreError> {
        let mut deleted = 0;
        for key in keys {
            if key.0.len() <= KEY_BYTES_MAX && self.value(key.0)?.is_some() {
                self.put(key.0, None)?;
                deleted += 1;
            }
        }
        Ok(Answer::Integer(deleted))
    }

    fn add(&mut self, key: Blob<'_>, delta: i64) -> Result<Answer, StoreError> {
        if too_long(key, 0) {
            return Ok(Answer::TooLong);
        }
        let (old, expiry_ms) = match self.value(key.0)? {
            None => (0, 0),
            Some(value) => match parse_integer(&value.bytes) {
                Some(old) => (old, value.expiry_ms),
                None => return Ok(Answer::NotAnInteger),
            },
        };
        let Some(sum) = old.checked_add(delta) else { return Ok(Answer::Overflow) };
        self.put(key.0, Some(Value::new(sum.to_string().as_bytes(), expiry_ms)))?;
        Ok(Answer::Integer(sum))
    }

    fn append(&mut self, key: Blob<'_>, tail: Blob<'_>) -> Result<Answer, StoreError> {
        if too_long(key, 0) {
            return Ok(Answer::TooLong);
        }
        let (old, expiry_ms) =
            self.value(key.0)?.map_or((Bytes::new(), 0), |value| (value.bytes, value.expiry_ms));
        let length = old.len().saturating_add(tail.0.len());
        if length > VALUE_BYTES_MAX {
            return Ok(Answer::TooLong);
        }
        self.put(key.0, Some(Value { bytes: [&old, tail.0].concat().into(), expiry_ms }))?;
        Ok(Answer::Integer(i64::try_from(length).unwrap_or(i64::MAX)))
    }

    fn set_many(&mut self, pairs: &[(Blob<'_>, Blob<'_>)]) -> Result<Answer, StoreError> {
        if pairs.iter().any(|(key, value)| too_long(*key, value.0.len())) {
            return Ok(Answer::TooLong);
        }
        for (key, value) in pairs {
            self.put(key.0, Some(Value::new(value.0, 0)))?;
        }
        Ok(Answer::Done)
    }

    fn stored(&self, key: &[u8]) -> Result<Option<fjall::UserValue>, StoreError> {
        let key = data_key(self.meta.generation, key);
        patiently(|| Ok(self.store.get(&key)?))
    }

    /// The value of a key, unless it has expired.
    fn value(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        let value = match self.recent(key) {
            Some(slot) => slot.now.clone(),
            None => match self.stored(key)? {
                Some(record) => Some(Value::of_record(&record)?),
                None => None,
            },
        };
        Ok(value.filter(|value| alive(value.expiry_ms, self.meta.clock_ms)))
    }

    fn put(&mut self, key: &[u8], value: Option<Value>) -> Result<(), StoreError> {
        let length = |value: &Option<Value>| value.as_ref().map_or(0, |v| v.bytes.len());
        let due_ms = value.as_ref().map_or(0, |v| v.expiry_ms);
        let after = value.as_ref().map(|value| Share::new(key, value));
        let checksum = after.as_ref().map_or(0, |after| after.checksum);
        self.newest.bytes += length(&value);
        let before = match self.newest.slots.get_mut(key) {
            Some(slot) => {
                let before = std::mem::replace(&mut slot.now, value);
                self.newest.bytes = self.newest.bytes.saturating_sub(length(&before));
                Share::of_slot(before.as_ref(), std::mem::replace(&mut slot.checksum, checksum))
            }
            None => {
                let below = self.below(key)?;
                let slot = Slot { below: below.as_ref().map(|v| v.expiry_ms), now: value, checksum };
                self.newest.bytes += SLOT_BYTES + key.len();
                self.newest.slots.insert(Bytes::copy_from_slice(key), slot);
                below
            }
        };
        self.count(before.as_ref(), after.as_ref());
        if let Some(before) = before.filter(|before| before.expiry_ms != 0) {
            let due = (before.expiry_ms, Bytes::copy_from_slice(key));
            self.newest_due.remove(&due);
            self.sealed_due.remove(&due);
        }
        if due_ms != 0 {
            self.newest_due.insert((due_ms, Bytes::copy_from_slice(key)));
        }
        Ok(())
    }

    /// Replaces one record by another in the totals.
    fn count(&mut self, before: Option<&Share>, after: Option<&Share>) {
        let meta = &mut self.meta;
        if let Some(before) = before {
            meta.keys = meta.keys.saturating_sub(1);
            meta.checksum = meta.checksum.wrapping_sub(before.checksum);
        }
        if let Some(after) = after {
            meta.keys = meta.keys.saturating_add(1);
            meta.checksum = meta.checksum.wrapping_add(after.checksum);
        }
    }

    /// The record of a key below the newest layer.
    fn below(&self, key: &[u8]) -> Result<Option<Share>, StoreError> {
        if let Some(slot) = self.sealed_layer().and_then(|layer| layer.slots.get(key)) {
            return Ok(Share::of_slot(slot.now.as_ref(), slot.checksum));
        }
        let record = self.stored(key)?;
        record.map(|record| Share::of_record(key, &record)).transpose()
    }

    /// When the next key is due; zero if only a sweep can tell; `None` if no key expires.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        let first = |due: &BTreeSet<(u64, Bytes)>| due.first().map_or(u64::MAX, |(due_ms, _)| *due_ms);
        let next = first(&self.newest_due).min(first(&self.sealed_due)).min(self.store_due_ms);
        (next != u64::MAX).then_some(next)
    }

    /// Removes expired keys. Their number depends on the batches, which differ between nodes, so no answer and no digest may
    /// depend on it.
    pub(super) fn sweep(&mut self) -> Result<(), StoreError> {
        for _ in 0..SWEEP_KEYS_MAX {
            let is_due = |entry: &&(u64, Bytes)| !alive(entry.0, self.meta.clock_ms);
            let due = self.newest_due.first().filter(is_due).or(self.sealed_due.first().filter(is_due));
            let Some((_, key)) = due.cloned() else { break };
            self.put(&key, None)?;
        }
        if self.meta.clock_ms >= self.store_due_ms { self.sweep_store() } else { Ok(()) }
    }

    fn sweep_store(&mut self) -> Result<(), StoreError> {
        let generation = self.meta.generation;
        let first = due_key(generation, 0, b"").max(std::mem::take(&mut self.swept));
        let end = due_key(generation, self.meta.clock_ms.saturating_add(1), b"");
        let due = patiently(|| {
            let due = self.store.range(first.clone()..end.clone()).take(SWEEP_KEYS_MAX);
            Ok(due.map(|item| item.key()).collect::<Result<Vec<_>, _>>()?)
        })?;
        for due in &due {
            let key = key_of_due(due);
            // A slot in memory is newer and was swept there.
            if self.recent(key).is_none() {
                let record = self.stored(key)?.ok_or(StoreError::Corrupt("expiry"))?;
                let before = Share::of_record(key, &record)?;
                if before.expiry_ms != expiry_of_due(due) {
                    return Err(StoreError::Corrupt("expiry"));
                }
                self.newest.bytes += SLOT_BYTES + key.len();
                let removed = Slot { below: Some(before.expiry_ms), now: None, checksum: 0 };
                self.newest.slots.insert(Bytes::copy_from_slice(key), removed);
                self.count(Some(&before), None);
            }
        }
        match due.last() {
            Some(last) if due.len() == SWEEP_KEYS_MAX => {
                self.swept = [&last[..], &[0]].concat();
                self.store_due_ms = 0;
            }
            _ => {
                self.store_due_ms = patiently(|| {
                    let next = self.store.range(end.clone()..due_key(generation, u64::MAX, b"")).next();
                    Ok(next.map_or(Ok(u64::MAX), |item| item.key().map(|k| expiry_of_due(&k)))?)
                })?;
                self.swept = end;
            }
        }
        Ok(())
    }
}

fn too_long(key: Blob<'_>, value_bytes: usize) -> bool {
    key.0.len() > KEY_BYTES_MAX || value_bytes > VALUE_BYTES_MAX
}

/// Parses a number as Redis does: decimal, no plus sign, no leading zeros, no spaces.
pub(crate) fn parse_integer(bytes: &[u8]) -> Option<i64> {
    if bytes.len() > INTEGER_BYTES_MAX {
        return None;
    }
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let canonical = match digits {
        [b'0'] => bytes.len() == 1,
        [b'1'..=b'9', ..] => true,
        _ => false,
    };
    if canonical { std::str::from_utf8(bytes).ok()?.parse().ok() } else { None }
}
