//! The whole state at one moment, in order of keys: the store, and over it the layers in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Keyspace, Readable as _};

use super::error::StoreError;
use super::layout::{Meta, data_key, key_of_data, split};
use super::overlay::{Layer, Overlay, Value};

pub(super) struct Cut {
    pub(super) meta: Meta,
    snapshot: fjall::Snapshot,
    store: Keyspace,
    sealed: Option<Arc<Layer>>,
    /// A copy of the newest layer, which goes on changing. The bytes of keys and values are shared.
    newest: Vec<(Bytes, Option<Value>)>,
}

impl Cut {
    pub(super) fn new(overlay: &Overlay, snapshot: fjall::Snapshot, store: Keyspace) -> Self {
        let newest = &overlay.newest_layer().slots;
        Self {
            meta: overlay.meta,
            snapshot,
            store,
            sealed: overlay.sealed_layer().cloned(),
            newest: newest.iter().map(|(key, slot)| (key.clone(), slot.now.clone())).collect(),
        }
    }

    /// Calls `visit` with key, expiry and value of each key, also of expired ones.
    pub(super) fn for_each<E: From<StoreError>>(
        self,
        mut visit: impl FnMut(&[u8], u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let sealed = self.sealed.iter().flat_map(|layer| &layer.slots);
        let mut recent: BTreeMap<Bytes, Option<Value>> =
            sealed.map(|(key, slot)| (key.clone(), slot.now.clone())).collect();
        recent.extend(self.newest);
        let mut recent = recent.into_iter().peekable();
        for item in self.snapshot.prefix(&self.store, data_key(self.meta.generation, b"")) {
            let (stored, record) = item.into_inner().map_err(StoreError::from)?;
            let key = key_of_data(&stored);
            while let Some((before, value)) = recent.next_if(|(recent, _)| recent[..] < *key) {
                visit_recent(&mut visit, &before, value)?;
            }
            match recent.next_if(|(recent, _)| recent[..] == *key) {
                Some((_, value)) => visit_recent(&mut visit, key, value)?,
                None => {
                    let (expiry_ms, value) = split(&record)?;
                    visit(key, expiry_ms, value)?;
                }
            }
        }
        recent.try_for_each(|(key, value)| visit_recent(&mut visit, &key, value))
    }
}

fn visit_recent<E>(
    visit: &mut impl FnMut(&[u8], u64, &[u8]) -> Result<(), E>,
    key: &[u8],
    value: Option<Value>,
) -> Result<(), E> {
    value.map_or(Ok(()), |value| visit(key, value.expiry_ms, &value.bytes))
}
