//! Commands on keys: from arguments to what is proposed or read.

use bytes::Bytes;

use crate::machine::{
    Blob, Command, Condition, Expiry, Gathered, KEY_BYTES_MAX, Op, StoreError, Stored, View, parse_integer,
};

use super::reply::Reply;
use super::table::{Spec, TABLE};

/// The command of that name, if the number of arguments fits; otherwise Redis's error.
pub(super) fn find(args: &[Bytes]) -> Result<&'static Spec, Reply> {
    let (name, rest) = args.split_first().map_or((&b""[..], args), |(name, rest)| (&name[..], rest));
    let Some(spec) = TABLE.iter().find(|spec| name.eq_ignore_ascii_case(spec.name.as_bytes())) else {
        return Err(unknown_command(name, rest));
    };
    if spec.takes(args.len()) { Ok(spec) } else { Err(wrong_arity(spec.name)) }
}

/// Names and arguments in an error are cut here, as in Redis.
const QUOTED_BYTES_MAX: usize = 128;

pub(super) fn quoted(bytes: &[u8]) -> String {
    let cut = bytes.get(..QUOTED_BYTES_MAX).unwrap_or(bytes);
    super::reply::one_line(&String::from_utf8_lossy(cut))
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

pub(super) fn unknown_subcommand(command: &str, name: &str) -> Reply {
    Reply::error(format!("ERR unknown subcommand '{}'. Try {command} HELP.", quoted(name.as_bytes())))
}

pub(super) fn wrong_arity(name: &str) -> Reply {
    Reply::error(format!("ERR wrong number of arguments for '{name}' command"))
}

fn syntax() -> Reply {
    Reply::error("ERR syntax error")
}

fn not_an_integer() -> Reply {
    Reply::error("ERR value is not an integer or out of range")
}

/// A read, to be answered from a view.
#[derive(Debug)]
pub(super) enum Read {
    Get(Bytes),
    Strlen(Bytes),
    Ttl(Bytes),
    Exists(Vec<Bytes>),
    Mget(Vec<Bytes>),
    Dbsize,
}

/// Something on keys.
#[derive(Debug)]
pub(super) enum Keyed {
    Write {
        key: Bytes,
        command: Bytes,
    },
    /// A write that sets an expiry, which has no start yet.
    Untimed {
        key: Bytes,
    },
    Read {
        key: Option<Bytes>,
        read: Read,
    },
}

/// `None` if the command is not about keys. `now_ms` is asked for by writes only.
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
        // The time in the log stays as it is.
        (None, _) => 0,
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

/// What answers a read.
pub(super) enum Found {
    Reply(Reply),
    /// A reply made of many values, or of a look at many.
    Many(Many),
}

/// Keys whose values are read one by one while the reply goes out.
pub(super) struct Many {
    pub(super) gathered: Gathered,
    /// Present if only those that are there are counted.
    pub(super) count: Option<u64>,
}

impl Read {
    pub(super) fn answer(&self, view: &View) -> Found {
        self.try_answer(view).unwrap_or_else(|error| Found::Reply(failed(&error)))
    }

    fn try_answer(&self, view: &View) -> Result<Found, StoreError> {
        let now_ms = view.now_ms();
        let one = |key: &Bytes| if key.len() > KEY_BYTES_MAX { Ok(None) } else { view.one(key, now_ms) };
        // Longer keys than may be written are nowhere; the store would refuse to look.
        let many = |keys: &[Bytes], with_values| {
            let keys = keys.iter().map(|key| key.get(..=KEY_BYTES_MAX).unwrap_or(key));
            view.gather(keys, now_ms, with_values)
        };
        Ok(Found::Reply(match self {
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
                return Ok(Found::Many(Many { gathered: many(keys, false), count: Some(0) }));
            }
            Self::Mget(keys) => return Ok(Found::Many(Many { gathered: many(keys, true), count: None })),
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
