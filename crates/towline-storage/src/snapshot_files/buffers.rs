//! Reusable memory for the parts of a body. Allocating and zeroing new memory costs about as much as reading a file into it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::sync::lock;

/// Free buffers that are kept: more than a sender reads ahead. A reader whose parts are held longer gets new memory.
const BUFFERS_MAX: usize = 8;

type Free = Arc<Mutex<Vec<Vec<u8>>>>;

#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Free,
}

/// A buffer to fill and then share.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    free: Free,
}

impl Buffers {
    /// Returns a buffer of `length` bytes with any content.
    pub(super) fn take(&self, length: usize) -> Buffer {
        let mut bytes = lock(&self.free).pop().unwrap_or_default();
        if bytes.is_empty() {
            bytes = vec![0; length];
        } else if bytes.len() < length {
            bytes.resize(length, 0);
        }
        Buffer { bytes, length, free: self.free.clone() }
    }
}

impl Buffer {
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }

    /// Returns the first `length` bytes. The buffer is free again when their last clone is dropped.
    pub(super) fn share(mut self, length: usize) -> Bytes {
        self.length = self.length.min(length);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = lock(&self.free);
        if free.len() < BUFFERS_MAX {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_reused_after_the_drop_of_its_last_part_up_to_the_bound() {
        let buffers = Buffers::default();
        let mut first = buffers.take(100);
        first.as_mut().fill(7);
        let whole = first.share(60);
        let part = whole.slice(10..20);
        drop(whole);
        assert!(buffers.free.lock().unwrap().is_empty(), "a part of it is held");
        assert_eq!(part[..], [7; 10]);
        drop(part);
        assert_eq!(buffers.free.lock().unwrap().len(), 1);
        assert_eq!(buffers.take(300).as_ref().len(), 300);
        assert_eq!(buffers.take(50).as_ref().len(), 50);
        let held: Vec<_> = (0..2 * BUFFERS_MAX).map(|_| buffers.take(10)).collect();
        drop(held);
        assert_eq!(buffers.free.lock().unwrap().len(), BUFFERS_MAX);
    }
}
