//! Replies and their encodings in RESP2 and RESP3.

use std::borrow::Cow;

use bytes::{BufMut as _, Bytes, BytesMut};
use redis_protocol::resp2::{encode::extend_encode_borrowed, types::BorrowedFrame};
use towline::ReadError;

use crate::machine::Answer;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Status(&'static str),
    Error(Cow<'static, str>),
    Integer(i64),
    Bulk(Bytes),
    Nil,
    Array(Vec<Reply>),
    /// An array in RESP2.
    Set(Vec<Reply>),
    /// An array of twice the length in RESP2.
    Map(Vec<(Reply, Reply)>),
}

pub(super) const OK: Reply = Reply::Status("OK");

impl Reply {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Bulk(Bytes::from(text.into()))
    }

    pub(super) fn error(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Error(text.into())
    }

    pub(super) fn integer(number: impl TryInto<i64>) -> Self {
        Self::Integer(number.try_into().unwrap_or(i64::MAX))
    }

    pub(super) fn of_answer(answer: Answer) -> Self {
        match answer {
            Answer::Done => OK,
            Answer::Skipped | Answer::Value(None) => Self::Nil,
            Answer::Integer(number) => Self::Integer(number),
            Answer::Value(Some(bytes)) => Self::Bulk(bytes),
            Answer::NotAnInteger => not_an_integer(),
            Answer::Overflow => Self::error("ERR increment or decrement would overflow"),
            Answer::Omitted => Self::error(
                "ERR the command was applied, but its old value is left out: too many were asked for at once",
            ),
            Answer::TooLong => Self::error("ERR key or string exceeds maximum allowed size"),
        }
    }

    pub(super) fn of_read_error(error: &ReadError) -> Self {
        match error {
            ReadError::NoLeader => Self::error("CLUSTERDOWN no leader is known"),
            ReadError::Busy => Self::error("TRYAGAIN too many reads are under way"),
            ReadError::DiskFull => Self::error(format!("DISKFULL {error}")),
            ReadError::Timeout => Self::error(format!("CLUSTERDOWN {error}")),
            ReadError::Stopped { cause } => {
                Self::error(format!("ERR this node is stopped: {}", one_line(cause)))
            }
            _ => Self::error(format!("ERR {}", one_line(error))),
        }
    }

    /// Bytes of the value in the reply; zero for other replies.
    pub(super) fn bulk_bytes(&self) -> usize {
        if let Self::Bulk(value) = self { value.len() } else { 0 }
    }

    /// About the memory of the reply.
    pub(super) fn size(&self) -> usize {
        let inside = match self {
            Self::Status(_) | Self::Integer(_) | Self::Nil => 0,
            Self::Error(text) => text.len(),
            Self::Bulk(bytes) => bytes.len(),
            Self::Array(items) | Self::Set(items) => items.iter().map(Self::size).sum(),
            Self::Map(pairs) => pairs.iter().map(|(key, value)| key.size() + value.size()).sum(),
        };
        size_of::<Self>() + inside
    }

    pub(super) fn encode(&self, resp3: bool, out: &mut BytesMut) {
        let frame = match self {
            Self::Status(text) => BorrowedFrame::SimpleString(text.as_bytes()),
            Self::Error(text) => BorrowedFrame::Error(text),
            Self::Integer(number) => BorrowedFrame::Integer(*number),
            Self::Bulk(bytes) => BorrowedFrame::BulkString(bytes),
            Self::Nil if resp3 => return out.put_slice(b"_\r\n"),
            Self::Nil => BorrowedFrame::Null,
            Self::Array(items) | Self::Set(items) => {
                let kind = if resp3 && matches!(self, Self::Set(_)) { '~' } else { '*' };
                out.put_slice(format!("{kind}{}\r\n", items.len()).as_bytes());
                return items.iter().for_each(|item| item.encode(resp3, out));
            }
            Self::Map(pairs) => {
                let header =
                    if resp3 { format!("%{}\r\n", pairs.len()) } else { format!("*{}\r\n", 2 * pairs.len()) };
                out.put_slice(header.as_bytes());
                return pairs.iter().for_each(|(key, value)| {
                    key.encode(resp3, out);
                    value.encode(resp3, out);
                });
            }
        };
        // The only error is a buffer that is too small, and this call grows the buffer.
        let _ = extend_encode_borrowed(out, &frame, false);
    }
}

/// Replaces line breaks, because an error reply ends at the first one.
pub(super) fn one_line(text: impl ToString) -> String {
    text.to_string().replace(['\r', '\n'], " ")
}

/// The most bytes of a name or argument in an error, as in Redis.
pub(super) const QUOTED_BYTES_MAX: usize = 128;

pub(super) fn quoted(bytes: &[u8]) -> String {
    one_line(String::from_utf8_lossy(bytes.get(..QUOTED_BYTES_MAX).unwrap_or(bytes)))
}

pub(super) fn unknown_subcommand(command: &str, name: &str) -> Reply {
    Reply::error(format!("ERR unknown subcommand '{}'. Try {command} HELP.", quoted(name.as_bytes())))
}

pub(super) fn wrong_arity(name: &str) -> Reply {
    Reply::error(format!("ERR wrong number of arguments for '{name}' command"))
}

pub(super) fn not_an_integer() -> Reply {
    Reply::error("ERR value is not an integer or out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(reply: &Reply) -> [String; 2] {
        [false, true].map(|resp3| {
            let mut out = BytesMut::new();
            reply.encode(resp3, &mut out);
            String::from_utf8(out.to_vec()).unwrap()
        })
    }

    #[test]
    fn replies_have_the_bytes_of_their_protocol() {
        assert_eq!(both(&OK), ["+OK\r\n", "+OK\r\n"]);
        assert_eq!(both(&Reply::Nil), ["$-1\r\n", "_\r\n"]);
        assert_eq!(both(&Reply::Integer(-5)), [":-5\r\n", ":-5\r\n"]);
        assert_eq!(both(&Reply::text("ab")), ["$2\r\nab\r\n", "$2\r\nab\r\n"]);
        assert_eq!(both(&Reply::error("ERR x")), ["-ERR x\r\n", "-ERR x\r\n"]);
        let map = Reply::Map(vec![(Reply::text("k"), Reply::Array(vec![Reply::Nil]))]);
        let set = Reply::Set(vec![Reply::Integer(1)]);
        assert_eq!(both(&set), ["*1\r\n:1\r\n", "~1\r\n:1\r\n"]);
        assert_eq!(both(&map), ["*2\r\n$1\r\nk\r\n*1\r\n$-1\r\n", "%1\r\n$1\r\nk\r\n*1\r\n_\r\n"]);
    }
}
