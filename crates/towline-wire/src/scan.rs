//! Counts the elements of a frame before it is decoded, to bound what the decoder allocates.
//!
//! An empty envelope takes two bytes on the wire and hundreds of bytes in memory. A limit on the length of a frame
//! therefore does not bound memory. The scan reads tags and lengths, but no payloads.

use crate::error::WireError;
use crate::limits::{ENTRIES_MAX, ENVELOPES_MAX, MEMBERS_MAX, NACKS_MAX};

/// Refuses a frame that is malformed, down to its messages, or that holds more elements than a limit.
pub(crate) fn check(frame: &[u8]) -> Result<(), WireError> {
    let mut counts = Counts::default();
    walk(frame, |number, value| match (number, value) {
        (4, Value::Bytes(batch)) => counts.batch(batch),
        (5, Value::Bytes(nacks)) => counts.nacks(nacks),
        (6, Value::Bytes(offer)) => counts.offer(offer),
        _ => Ok(()),
    })
}

#[derive(Default)]
struct Counts {
    envelopes: usize,
    entries: usize,
    members: usize,
    nacks: usize,
}

impl Counts {
    fn batch(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        walk(bytes, |number, value| match (number, value) {
            (1, Value::Bytes(envelope)) => {
                add(&mut self.envelopes, 1, "envelopes", ENVELOPES_MAX)?;
                walk(envelope, |number, value| match (number, value) {
                    (2, Value::Bytes(message)) => self.message(message),
                    _ => Ok(()),
                })
            }
            _ => Ok(()),
        })
    }

    fn message(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        walk(bytes, |number, value| match (number, value) {
            (7, Value::Bytes(_)) => add(&mut self.entries, 1, "entries", ENTRIES_MAX),
            (9, Value::Bytes(snapshot)) => walk(snapshot, |number, value| match (number, value) {
                (2, Value::Bytes(metadata)) => walk(metadata, |number, value| match (number, value) {
                    (1, Value::Bytes(conf_state)) => self.members(conf_state),
                    _ => Ok(()),
                }),
                _ => Ok(()),
            }),
            _ => Ok(()),
        })
    }

    fn offer(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        walk(bytes, |number, value| match (number, value) {
            (1, Value::Bytes(message)) => self.message(message),
            (2, Value::Bytes(head)) => walk(head, |number, value| match (number, value) {
                (4, Value::Bytes(conf_state)) => self.members(conf_state),
                (5, Value::Bytes(_)) => add(&mut self.members, 1, "members", MEMBERS_MAX),
                _ => Ok(()),
            }),
            _ => Ok(()),
        })
    }

    fn members(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        walk(bytes, |number, value| match (number, value) {
            // Packed: a varint ends at each byte without its high bit.
            (1..=4, Value::Bytes(ids)) => {
                let count = ids.iter().filter(|b| **b < 0x80).count();
                add(&mut self.members, count, "members", MEMBERS_MAX)
            }
            (1..=4, Value::Number) => add(&mut self.members, 1, "members", MEMBERS_MAX),
            _ => Ok(()),
        })
    }

    fn nacks(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        walk(bytes, |number, value| match (number, value) {
            (1, Value::Bytes(_)) => add(&mut self.nacks, 1, "nacks", NACKS_MAX),
            _ => Ok(()),
        })
    }
}

fn add(count: &mut usize, more: usize, what: &'static str, count_max: usize) -> Result<(), WireError> {
    *count = count.saturating_add(more);
    if *count > count_max { Err(WireError::TooMany { what, count_max }) } else { Ok(()) }
}

enum Value<'a> {
    Number,
    Bytes(&'a [u8]),
}

fn walk(
    mut bytes: &[u8],
    mut field: impl FnMut(u64, Value<'_>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => {
                varint(&mut bytes)?;
                Value::Number
            }
            1 => {
                take(&mut bytes, 8)?;
                Value::Number
            }
            2 => {
                let length = varint(&mut bytes)?;
                Value::Bytes(take(&mut bytes, usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => {
                take(&mut bytes, 4)?;
                Value::Number
            }
            // proto3 has no groups.
            other => return Err(malformed(format!("wire type {other}"))),
        };
        field(key >> 3, value)?;
    }
    Ok(())
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], WireError> {
    let (head, tail) = bytes
        .split_at_checked(length)
        .ok_or_else(|| malformed(format!("{length} bytes of a field are cut")))?;
    *bytes = tail;
    Ok(head)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, WireError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = bytes.split_first().ok_or_else(|| malformed("a number is cut".into()))?;
        *bytes = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(malformed("a number of more than ten bytes".into()))
}

fn malformed(detail: String) -> WireError {
    WireError::Malformed { detail }
}
