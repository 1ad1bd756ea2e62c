//! The effect of one batch before it is written: later commands of a batch see what earlier ones did.

use std::collections::HashMap;

use bytes::Bytes;
use fjall::{Keyspace, OwnedWriteBatch};

use super::StoreError;
use super::command::{Answer, Blob, Command, Condition, Expiry, KEY_BYTES_MAX, Op, VALUE_BYTES_MAX};
use super::layout::{Meta, alive, data_key, due_key, record, split};

/// The most that `INCR` parses: `-9223372036854775808`.
const INTEGER_BYTES_MAX: usize = 20;

pub(super) struct Overlay<'a> {
    store: &'a Keyspace,
    slots: HashMap<Vec<u8>, Slot>,
    pub(super) meta: Meta,
}

struct Slot {
    /// The expiry that lies in the store, if the key does.
    stored: Option<u64>,
    /// `None`: removed.
    now: Option<Value>,
    changed: bool,
}

struct Value {
    bytes: Vec<u8>,
    expiry_ms: u64,
}

impl<'a> Overlay<'a> {
    pub(super) fn new(store: &'a Keyspace, meta: Meta) -> Self {
        Self { store, slots: HashMap::new(), meta }
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
                self.slots.clear();
                self.meta.generation =
                    self.meta.generation.checked_add(1).ok_or(StoreError::Corrupt("generation"))?;
                self.meta.keys = 0;
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
        let clock_ms = self.meta.clock_ms;
        let slot = self.slot(key)?;
        let met = match condition {
            Condition::Always => true,
            Condition::IfAbsent => slot.now.is_none(),
            Condition::IfPresent => slot.now.is_some(),
        };
        let old = if answer_old { slot.now.as_ref().map(|v| Bytes::copy_from_slice(&v.bytes)) } else { None };
        if met {
            let expiry_ms = match expiry {
                Expiry::Never => 0,
                Expiry::Keep => slot.now.as_ref().map_or(0, |v| v.expiry_ms),
                Expiry::After { ttl_ms } => clock_ms.saturating_add(ttl_ms),
            };
            self.put(key, Some(Value { bytes: value.0.to_vec(), expiry_ms }))?;
        }
        Ok(match (answer_old, met) {
            (true, _) => Answer::Value(old),
            (false, true) => Answer::Done,
            (false, false) => Answer::Skipped,
        })
    }

    fn delete(&mut self, keys: &[Blob<'_>]) -> Result<Answer, StoreError> {
        let mut deleted = 0;
        for key in keys {
            if key.0.len() <= KEY_BYTES_MAX && self.slot(*key)?.now.is_some() {
                self.put(*key, None)?;
                deleted += 1;
            }
        }
        Ok(Answer::Integer(deleted))
    }

    fn add(&mut self, key: Blob<'_>, delta: i64) -> Result<Answer, StoreError> {
        if too_long(key, 0) {
            return Ok(Answer::TooLong);
        }
        let (old, expiry_ms) = match &self.slot(key)?.now {
            None => (0, 0),
            Some(value) => match parse_integer(&value.bytes) {
                Some(old) => (old, value.expiry_ms),
                None => return Ok(Answer::NotAnInteger),
            },
        };
        let Some(sum) = old.checked_add(delta) else { return Ok(Answer::Overflow) };
        self.put(key, Some(Value { bytes: sum.to_string().into_bytes(), expiry_ms }))?;
        Ok(Answer::Integer(sum))
    }

    fn append(&mut self, key: Blob<'_>, tail: Blob<'_>) -> Result<Answer, StoreError> {
        if too_long(key, 0) {
            return Ok(Answer::TooLong);
        }
        let now = &self.slot(key)?.now;
        let length = now.as_ref().map_or(0, |v| v.bytes.len()).saturating_add(tail.0.len());
        if length > VALUE_BYTES_MAX {
            return Ok(Answer::TooLong);
        }
        let slot = self.slot(key)?;
        let value = slot.now.get_or_insert(Value { bytes: Vec::new(), expiry_ms: 0 });
        value.bytes.extend_from_slice(tail.0);
        slot.changed = true;
        Ok(Answer::Integer(i64::try_from(length).unwrap_or(i64::MAX)))
    }

    fn set_many(&mut self, pairs: &[(Blob<'_>, Blob<'_>)]) -> Result<Answer, StoreError> {
        // All or nothing.
        if pairs.iter().any(|(key, value)| too_long(*key, value.0.len())) {
            return Ok(Answer::TooLong);
        }
        for (key, value) in pairs {
            self.put(*key, Some(Value { bytes: value.0.to_vec(), expiry_ms: 0 }))?;
        }
        Ok(Answer::Done)
    }

    /// The key as the commands so far have left it. What has expired by now is absent.
    fn slot(&mut self, key: Blob<'_>) -> Result<&mut Slot, StoreError> {
        let Meta { clock_ms, generation, .. } = self.meta;
        if !self.slots.contains_key(key.0) {
            let slot = match self.store.get(data_key(generation, key.0))? {
                None => Slot { stored: None, now: None, changed: false },
                Some(stored) => {
                    let (expiry_ms, bytes) = split(&stored)?;
                    let now = Some(Value { bytes: bytes.to_vec(), expiry_ms });
                    Slot { stored: Some(expiry_ms), now, changed: false }
                }
            };
            self.slots.insert(key.0.to_vec(), slot);
        }
        let slot = self.slots.get_mut(key.0).ok_or(StoreError::Corrupt("overlay"))?;
        if slot.now.as_ref().is_some_and(|value| !alive(value.expiry_ms, clock_ms)) {
            slot.now = None;
        }
        Ok(slot)
    }

    fn put(&mut self, key: Blob<'_>, value: Option<Value>) -> Result<(), StoreError> {
        let slot = self.slot(key)?;
        slot.now = value;
        slot.changed = true;
        Ok(())
    }

    pub(super) fn has_changed(&self, key: &[u8]) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.changed)
    }

    /// The earliest expiry among the changes; `u64::MAX` if nothing expires.
    pub(super) fn earliest_expiry(&self) -> u64 {
        let expiries =
            self.slots.values().filter(|s| s.changed).filter_map(|s| s.now.as_ref()).map(|v| v.expiry_ms);
        expiries.filter(|ms| *ms != 0).min().unwrap_or(u64::MAX)
    }

    /// Puts every change into `write`, and the count of keys into the returned [`Meta`].
    pub(super) fn write(self, write: &mut OwnedWriteBatch) -> Meta {
        let mut meta = self.meta;
        for (key, slot) in self.slots.into_iter().filter(|(_, slot)| slot.changed) {
            let expiry_ms = slot.now.as_ref().map_or(0, |value| value.expiry_ms);
            let stored_ms = slot.stored.unwrap_or(0);
            if stored_ms != 0 && stored_ms != expiry_ms {
                write.remove(self.store, due_key(meta.generation, stored_ms, &key));
            }
            if expiry_ms != 0 && stored_ms != expiry_ms {
                write.insert(self.store, due_key(meta.generation, expiry_ms, &key), &b""[..]);
            }
            match (&slot.now, slot.stored) {
                (Some(_), None) => meta.keys = meta.keys.saturating_add(1),
                (None, Some(_)) => meta.keys = meta.keys.saturating_sub(1),
                _ => {}
            }
            match slot.now {
                Some(value) => write.insert(
                    self.store,
                    data_key(meta.generation, &key),
                    record(value.expiry_ms, &value.bytes),
                ),
                None if slot.stored.is_some() => write.remove(self.store, data_key(meta.generation, &key)),
                None => {}
            }
        }
        meta
    }
}

fn too_long(key: Blob<'_>, value_bytes: usize) -> bool {
    key.0.len() > KEY_BYTES_MAX || value_bytes > VALUE_BYTES_MAX
}

/// As Redis does: decimal, no plus sign, no leading zeros, no spaces.
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
