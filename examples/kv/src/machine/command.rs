//! What goes into the log, and what comes out of applying it.

use bytes::Bytes;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use towline::codec::{self, CodecError};

use super::StoreError;

/// The longest key. The store itself ends at 65,535 bytes, of which the layout takes some.
pub(crate) const KEY_BYTES_MAX: usize = 32 << 10;

/// The longest value, however it came about (`APPEND` can grow one past a single command).
pub(crate) const VALUE_BYTES_MAX: usize = 16 << 20;
/// Bytes of old values that the answers of one batch hold. A replica that catches up applies many commands at once, and
/// makes the answers that no client waits for as well.
pub(super) const ANSWERS_BYTES_MAX: usize = 64 << 20;

/// One write. Variants and fields are only ever added at the end of [`Op`]: old logs hold the old ones.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command<'a> {
    /// The time of the leader that proposed it (`clock.rs`). Logs of the first versions hold its clock of the day, in
    /// milliseconds since 1970; the time goes on from there.
    pub(crate) now_ms: u64,
    #[serde(borrow)]
    pub(crate) op: Op<'a>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
pub(crate) enum Op<'a> {
    Set { key: Blob<'a>, value: Blob<'a>, expiry: Expiry, condition: Condition, answer_old: bool },
    Delete { keys: Vec<Blob<'a>> },
    Add { key: Blob<'a>, delta: i64 },
    Append { key: Blob<'a>, value: Blob<'a> },
    SetMany { pairs: Vec<(Blob<'a>, Blob<'a>)> },
    Flush,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Expiry {
    /// None, and one that the key has is dropped.
    Never,
    /// As the key has it.
    Keep,
    /// So long after the machine's clock.
    After { ttl_ms: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Condition {
    Always,
    IfAbsent,
    IfPresent,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// The condition did not hold.
    Skipped,
    Integer(i64),
    /// The old value, if that was asked for.
    Value(Option<Bytes>),
    /// The command took effect, but its old value is left out: [`ANSWERS_BYTES_MAX`].
    Omitted,
    NotAnInteger,
    Overflow,
    TooLong,
}

impl Command<'_> {
    /// Moves the time, and changes nothing else. Every version can apply it.
    pub(super) fn tick(now_ms: u64) -> Option<Bytes> {
        Command { now_ms, op: Op::Delete { keys: Vec::new() } }.encode(TICK_BYTES_MAX).ok()
    }

    pub(crate) fn encode(&self, bytes_max: usize) -> Result<Bytes, CodecError> {
        codec::encode(self, bytes_max)
    }
}

/// More than a tick takes.
const TICK_BYTES_MAX: usize = 32;

/// What a command takes in an entry of the log beside its own bytes.
pub(crate) const PACK_BYTES: usize = 4;

/// Adds an encoded command to an entry: its length (4, big endian), then its bytes.
pub(crate) fn pack(entry: &mut Vec<u8>, command: &[u8]) {
    entry.extend_from_slice(&u32::try_from(command.len()).unwrap_or(u32::MAX).to_be_bytes());
    entry.extend_from_slice(command);
}

/// The encoded commands of an entry. Nothing comes after an error.
pub(super) fn unpack(mut entry: &[u8]) -> impl Iterator<Item = Result<&[u8], StoreError>> {
    std::iter::from_fn(move || {
        if entry.is_empty() {
            return None;
        }
        let command = entry.split_first_chunk::<PACK_BYTES>().and_then(|(length, rest)| {
            let (command, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            entry = rest;
            Some(command)
        });
        if command.is_none() {
            entry = &[];
        }
        Some(command.ok_or(StoreError::Corrupt("entry")))
    })
}

/// Bytes that serde treats as bytes, borrowed from the log entry when read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blob<'a>(pub(crate) &'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Blob<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = &'de [u8];

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("borrowed bytes")
            }

            fn visit_borrowed_bytes<E: serde::de::Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(bytes)
            }

            fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Self::Value, E> {
                Err(E::custom("bytes must be borrowed"))
            }
        }
        let bytes = deserializer.deserialize_bytes(Borrow)?;
        // A longer key would be refused by the store, on every replica, long after it was accepted.
        if bytes.len() > VALUE_BYTES_MAX { Err(D::Error::custom("too long")) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_an_entry_never_change() {
        let mut entry = Vec::new();
        for command in [&b"ab"[..], b"", b"c"] {
            pack(&mut entry, command);
        }
        assert_eq!(entry, [0, 0, 0, 2, b'a', b'b', 0, 0, 0, 0, 0, 0, 0, 1, b'c']);
        let unpacked: Vec<_> = unpack(&entry).map(Result::unwrap).collect();
        assert_eq!(unpacked, [&b"ab"[..], b"", b"c"]);
        let cut: Vec<_> = unpack(&entry[..entry.len() - 1]).map(|command| command.is_ok()).collect();
        assert_eq!(cut, [true, true, false]);
    }

    #[test]
    fn the_bytes_of_a_command_never_change() {
        let set = Command {
            now_ms: 5,
            op: Op::Set {
                key: Blob(b"k"),
                value: Blob(b"vv"),
                expiry: Expiry::After { ttl_ms: 9 },
                condition: Condition::IfPresent,
                answer_old: true,
            },
        };
        let golden: [(Command<'_>, &[u8]); 6] = [
            (set, &[5, 0, 1, b'k', 2, b'v', b'v', 2, 9, 2, 1]),
            (Command { now_ms: 0, op: Op::Delete { keys: vec![Blob(b"k")] } }, &[0, 1, 1, 1, b'k']),
            (Command { now_ms: 0, op: Op::Add { key: Blob(b"k"), delta: -1 } }, &[0, 2, 1, b'k', 1]),
            (
                Command { now_ms: 0, op: Op::Append { key: Blob(b"k"), value: Blob(b"") } },
                &[0, 3, 1, b'k', 0],
            ),
            (
                Command { now_ms: 0, op: Op::SetMany { pairs: vec![(Blob(b"k"), Blob(b"v"))] } },
                &[0, 4, 1, 1, b'k', 1, b'v'],
            ),
            (Command { now_ms: 0, op: Op::Flush }, &[0, 5]),
        ];
        for (command, bytes) in golden {
            assert_eq!(&command.encode(100).unwrap()[..], bytes);
            assert_eq!(codec::decode::<Command<'_>>(bytes, 100).unwrap(), command);
        }
    }
}
