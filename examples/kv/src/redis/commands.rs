//! Commands on keys: turns arguments into proposals and reads.

use bytes::Bytes;

use crate::machine::{
    Blob, Command, Condition, Expiry, Gathered, KEY_BYTES_MAX, Op, StoreError, Stored, View, parse_integer,
};

use super::reply::{QUOTED_BYTES_MAX, Reply, not_an_integer, quoted, wrong_arity};
use super::table::{Spec, TABLE};

/// Finds the command of these arguments. The errors are those of Redis.
pub(super) fn find(args: &[Bytes]) -> Result<&'static Spec, Reply> {
    let (name, rest) = args.split_first().map_or((&b""[..], args), |(name, rest)| (&name[..], rest));
    let Some(spec) = TABLE.iter().find(|spec| name.eq_ignore_ascii_case(spec.name.as_bytes())) else {
        return Err(unknown_command(name, rest));
    };
    if spec.takes(args.len()) { Ok(spec) } else { Err(wrong_arity(spec.name)) }
}

fn unknown_command(name: &[u8], args: &[Bytes]) -> Reply {
    let mut text = format!("ERR unknown command '{}', with args beginning with: ", quoted(name));
    let start = text.len();
    for arg in args {
        if text.len() - start >= QUOTED_BYTES_MAX {
            break;
        }
        text.push_str(&format!("'{}' ", quoted(arg)));
    }
    Reply::error(text)
}

fn syntax() -> Reply {
    Reply::error("ERR syntax error")
}

/// A read. A view answers it.
#[derive(Debug)]
pub(super) enum Read {
    Get(Bytes),
    Strlen(Bytes),
    Ttl(Bytes),
    Exists(Vec<Bytes>),
    Mget(Vec<Bytes>),
    Dbsize,
}

#[derive(Debug)]
pub(super) enum Keyed {
    Write {
        key: Bytes,
        command: Bytes,
    },
    /// A write with an expiry, at a node that has no time to stamp it with.
    Untimed {
        key: Bytes,
    },
    Read {
        key: Option<Bytes>,
        read: Read,
    },
}

/// Parses a command on keys; `None` for other commands. Only writes call `now_ms`.
pub(super) fn keyed(
    spec: &Spec,
    args: &[Bytes],
    now_ms: impl FnOnce() -> Option<u64>,
    command_bytes_max: usize,
) -> Result<Option<Keyed>, Reply> {
    let key = args.get(1).cloned().unwrap_or_default();
    let rest = args.get(1..).unwrap_or_default();
    if let Some(read) = read(spec.name, &key, rest) {
        let key = (spec.keys != [0, 0, 0]).then_some(key);
        return Ok(Some(Keyed::Read { key, read }));
    }
    let Some(op) = write(spec.name, &key, rest)? else { return Ok(None) };
    if key.len() > KEY_BYTES_MAX {
        return Err(Reply::error("ERR key exceeds maximum allowed size"));
    }
    let now_ms = match (now_ms(), &op) {
        (Some(now_ms), _) => now_ms,
        (None, Op::Set { expiry: Expiry::After { .. }, .. }) => return Ok(Some(Keyed::Untimed { key })),
        (None, _) => 0, // does not move the time in the log
    };
    let command = Command { now_ms, op }.encode(command_bytes_max);
    let command = command.map_err(|error| Reply::error(format!("ERR the command is {error}")))?;
    Ok(Some(Keyed::Write { key, command }))
}

fn read(name: &str, key: &Bytes, rest: &[Bytes]) -> Option<Read> {
    Some(match name {
        "get" => Read::Get(key.clone()),
        "strlen" => Read::Strlen(key.clone()),
        "ttl" => Read::Ttl(key.clone()),
        "exists" => Read::Exists(rest.to_vec()),
        "mget" => Read::Mget(rest.to_vec()),
        "dbsize" => Read::Dbsize,
        _ => return None,
    })
}

fn write<'a>(name: &str, key: &'a Bytes, rest: &'a [Bytes]) -> Result<Option<Op<'a>>, Reply> {
    let argument = |at: usize| rest.get(at).map(|bytes| Blob(bytes)).unwrap_or(Blob(b""));
    Ok(Some(match name {
        "set" => set(rest)?,
        "del" => Op::Delete { keys: rest.iter().map(|key| Blob(key)).collect() },
        "incr" => Op::Add { key: Blob(key), delta: 1 },
        "decr" => Op::Add { key: Blob(key), delta: -1 },
        "incrby" => {
            Op::Add { key: Blob(key), delta: parse_integer(argument(1).0).ok_or_else(not_an_integer)? }
        }
        "decrby" => {
            let amount = parse_integer(argument(1).0).ok_or_else(not_an_integer)?;
            let delta = amount.checked_neg().ok_or_else(|| Reply::error("ERR decrement would overflow"))?;
            Op::Add { key: Blob(key), delta }
        }
        "append" => Op::Append { key: Blob(key), value: argument(1) },
        "mset" => {
            let (pairs, odd) = rest.as_chunks::<2>();
            if !odd.is_empty() {
                return Err(wrong_arity("mset"));
            }
            Op::SetMany { pairs: pairs.iter().map(|[key, value]| (Blob(key), Blob(value))).collect() }
        }
        "flushdb" => match rest {
            [] => Op::Flush,
            [mode] if mode.eq_ignore_ascii_case(b"sync") || mode.eq_ignore_ascii_case(b"async") => Op::Flush,
            _ => return Err(syntax()),
        },
        _ => return Ok(None),
    }))
}

fn set(args: &[Bytes]) -> Result<Op<'_>, Reply> {
    let [key, value, options @ ..] = args else { return Err(wrong_arity("set")) };
    let (mut expiry, mut condition, mut answer_old) = (Expiry::Never, Condition::Always, false);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let unit_ms = match option.to_ascii_lowercase().as_slice() {
            b"nx" if condition != Condition::IfPresent => {
                condition = Condition::IfAbsent;
                continue;
            }
            b"xx" if condition != Condition::IfAbsent => {
                condition = Condition::IfPresent;
                continue;
            }
            b"get" => {
                answer_old = true;
                continue;
            }
            b"keepttl" if expiry == Expiry::Never => {
                expiry = Expiry::Keep;
                continue;
            }
            b"ex" => 1_000,
            b"px" => 1,
            _ => return Err(syntax()),
        };
        let amount = options.next().ok_or_else(syntax)?;
        if expiry != Expiry::Never {
            return Err(syntax());
        }
        let amount = parse_integer(amount).ok_or_else(not_an_integer)?;
        let ttl_ms = amount.checked_mul(unit_ms).filter(|ttl| *ttl > 0 && *ttl < i64::MAX / 2);
        let ttl_ms = ttl_ms.and_then(|ttl| u64::try_from(ttl).ok());
        let ttl_ms = ttl_ms.ok_or_else(|| Reply::error("ERR invalid expire time in 'set' command"))?;
        expiry = Expiry::After { ttl_ms };
    }
    Ok(Op::Set { key: Blob(key), value: Blob(value), expiry, condition, answer_old })
}

/// The answer to a read.
pub(super) enum ReadAnswer {
    Reply(Reply),
    /// A reply that needs the values of many keys.
    Many(Many),
}

/// Keys whose values are read one by one while the server sends the reply.
pub(super) struct Many {
    pub(super) gathered: Gathered,
    /// The number of existing keys so far, if the command only counts them.
    pub(super) count: Option<u64>,
}

impl Read {
    pub(super) fn answer(&self, view: &View) -> ReadAnswer {
        self.try_answer(view).unwrap_or_else(|error| ReadAnswer::Reply(failed(&error)))
    }

    fn try_answer(&self, view: &View) -> Result<ReadAnswer, StoreError> {
        let now_ms = view.now_ms();
        let one = |key: &Bytes| if key.len() > KEY_BYTES_MAX { Ok(None) } else { view.one(key, now_ms) };
        // Keys over the limit do not exist, and the store refuses to look for them.
        let many = |keys: &[Bytes], with_values| {
            let keys = keys.iter().map(|key| key.get(..=KEY_BYTES_MAX).unwrap_or(key));
            view.gather(keys, now_ms, with_values)
        };
        Ok(ReadAnswer::Reply(match self {
            Self::Get(key) => value(one(key)?),
            Self::Strlen(key) => Reply::integer(one(key)?.map_or(0, |stored| stored.value.len())),
            Self::Ttl(key) => Reply::Integer(match one(key)? {
                None => -2,
                Some(Stored { expiry_ms: 0, .. }) => -1,
                Some(stored) => {
                    let left_ms = stored.expiry_ms.saturating_sub(view.local_ms());
                    i64::try_from(left_ms.saturating_add(500) / 1_000).unwrap_or(i64::MAX)
                }
            }),
            Self::Exists(keys) => {
                return Ok(ReadAnswer::Many(Many { gathered: many(keys, false), count: Some(0) }));
            }
            Self::Mget(keys) => {
                return Ok(ReadAnswer::Many(Many { gathered: many(keys, true), count: None }));
            }
            Self::Dbsize => Reply::integer(view.keys()),
        }))
    }
}

pub(super) fn value(stored: Option<Stored>) -> Reply {
    stored.map_or(Reply::Nil, |stored| Reply::Bulk(stored.value))
}

pub(super) fn failed(error: &StoreError) -> Reply {
    tracing::error!(%error, "a read failed");
    Reply::error(format!("ERR {error}"))
}
