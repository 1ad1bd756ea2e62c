//! The commands in the log, and the answers to them.

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use towline::codec::{self, CodecError};

use super::error::StoreError;

/// The longest key. The store allows 65,535 bytes, and the layout takes some.
pub(crate) const KEY_BYTES_MAX: usize = 32 << 10;
/// The longest value. `APPEND` can make a value longer than one command.
pub(crate) const VALUE_BYTES_MAX: usize = 16 << 20;
/// Bytes of old values that the answers of one batch hold. A replica that catches up applies many commands at once, also
/// ones without a waiting client.
pub(super) const ANSWERS_BYTES_MAX: usize = 64 << 20;

/// One write. Old logs hold old variants, so add new ones only at the end of [`Op`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command<'a> {
    /// The cluster's time, as the leader stamped it (`clock.rs`). Logs of the first versions hold milliseconds since 1970;
    /// the time goes on from there.
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
    /// The key never expires, and loses an expiry that it has.
    Never,
    /// The key keeps the expiry that it has.
    Keep,
    /// The key expires this long after the time in the log.
    After { ttl_ms: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Condition {
    Always,
    IfAbsent,
    IfPresent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// The condition did not hold.
    Skipped,
    Integer(i64),
    /// The old value, if the command asked for it.
    Value(Option<Bytes>),
    /// The command took effect. Its old value is left out because of [`ANSWERS_BYTES_MAX`].
    Omitted,
    NotAnInteger,
    Overflow,
    TooLong,
}

impl Command<'_> {
    /// A command that moves the time and changes nothing else. Every version can apply it.
    pub(super) fn tick(now_ms: u64) -> Option<Bytes> {
        Command { now_ms, op: Op::Delete { keys: Vec::new() } }.encode(TICK_BYTES_MAX).ok()
    }

    pub(crate) fn encode(&self, bytes_max: usize) -> Result<Bytes, CodecError> {
        codec::encode(self, bytes_max)
    }
}

/// More than a tick takes.
const TICK_BYTES_MAX: usize = 32;
/// Bytes that an entry of the log takes for each command, beside the command itself.
pub(crate) const PACK_BYTES: usize = 4;

/// Adds an encoded command to an entry: its length (4, big endian), then its bytes.
pub(crate) fn pack(entry: &mut Vec<u8>, command: &[u8]) {
    entry.extend_from_slice(&u32::try_from(command.len()).unwrap_or(u32::MAX).to_be_bytes());
    entry.extend_from_slice(command);
}

/// The encoded commands of an entry. An error ends the iteration.
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

/// Bytes borrowed from the log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Blob<'a>(#[serde(borrow)] pub(crate) &'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
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
