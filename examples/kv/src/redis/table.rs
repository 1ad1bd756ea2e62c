//! The table of all commands, and the replies of `COMMAND` in the form of Redis 7.4.

use bytes::Bytes;

use super::reply::{Reply, unknown_subcommand, wrong_arity};

/// One command, as `COMMAND` describes it.
pub(super) struct Spec {
    pub(super) name: &'static str,
    /// The number of arguments with the name; negative: at least this many.
    pub(super) arity: i64,
    /// The first flag: `write` or `readonly` for commands on data.
    pub(super) flag: &'static str,
    /// The other flags, separated by spaces.
    flags: &'static str,
    /// First key, last key (negative: from the end) and step; zeros for none.
    pub(super) keys: [i64; 3],
    /// What the command does to its keys, in Redis's terms.
    access: &'static str,
    /// Categories of access control that do not follow from the flags.
    categories: &'static str,
    /// Hints for clients that split a command over shards.
    tips: &'static str,
    summary: &'static str,
    subcommands: &'static [Spec],
}

/// Names in one `COMMAND INFO` or `COMMAND DOCS`. The reply is much longer than the names.
const NAMES_MAX: usize = 256;

const NONE: [i64; 3] = [0, 0, 0];
const ONE: [i64; 3] = [1, 1, 1];
const ALL: [i64; 3] = [1, -1, 1];
const PAIRS: [i64; 3] = [1, -1, 2];

const SHARDS_SUM: &str = "request_policy:all_shards response_policy:agg_sum";
const SHARDS_SUCCEED: &str = "request_policy:all_shards response_policy:all_succeeded";
const KEYS_SUM: &str = "request_policy:multi_shard response_policy:agg_sum";
const KEYS_SUCCEED: &str = "request_policy:multi_shard response_policy:all_succeeded";

const fn data(
    name: &'static str,
    arity: i64,
    flags: [&'static str; 2],
    keys: [i64; 3],
    access: &'static str,
    [categories, tips]: [&'static str; 2],
    summary: &'static str,
) -> Spec {
    let [flag, flags] = flags;
    Spec { name, arity, flag, flags, keys, access, categories, tips, summary, subcommands: &[] }
}

const fn other(
    name: &'static str,
    arity: i64,
    flags: [&'static str; 2],
    [categories, tips]: [&'static str; 2],
    summary: &'static str,
    subcommands: &'static [Spec],
) -> Spec {
    let [flag, flags] = flags;
    Spec { name, arity, flag, flags, keys: NONE, access: "", categories, tips, summary, subcommands }
}

const WRITE: [&str; 2] = ["write", "denyoom"];
const WRITE_FAST: [&str; 2] = ["write", "denyoom fast"];
const READ_FAST: [&str; 2] = ["readonly", "fast"];
const ANY_TIME: [&str; 2] = ["loading", "stale"];
const ANY_TIME_FAST: [&str; 2] = ["loading", "stale fast"];
const ADMIN: [&str; 2] = ["admin", "noscript loading stale"];
const GREETING: [&str; 2] = ["noscript", "loading stale fast no_auth allow_busy"];
const STRING: [&str; 2] = ["@string", ""];
const STRINGS: [&str; 2] = ["@string", "request_policy:multi_shard"];
const KEY_TIME: [&str; 2] = ["@keyspace", NONDETERMINISTIC];
const ALL_KEYS: [&str; 2] = ["@keyspace @dangerous", SHARDS_SUCCEED];
const COMMAND_LIST: [&str; 2] = ["@connection", "nondeterministic_output_order"];
const SERVER: [&str; 2] =
    ["@dangerous", "nondeterministic_output request_policy:all_shards response_policy:special"];
const CONNECTION: [&str; 2] = ["@connection", ""];

pub(super) const TABLE: &[Spec] = &[
    data("get", 2, READ_FAST, ONE, "RO access", STRING, "The value of a key."),
    data("set", -3, WRITE, ONE, "RW access update variable_flags", STRING, "Gives a key a value."),
    data("incr", 2, WRITE_FAST, ONE, "RW access update", STRING, "Adds one to the number in a key."),
    data("mset", -3, WRITE, PAIRS, "OW update", ["@string", KEYS_SUCCEED], "Gives many keys values at once."),
    data("mget", -2, READ_FAST, ALL, "RO access", STRINGS, "The values of many keys."),
    data("del", -2, ["write", ""], ALL, "RM delete", ["@keyspace", KEYS_SUM], "Removes keys."),
    data("exists", -2, READ_FAST, ALL, "RO", ["@keyspace", KEYS_SUM], "The number of the keys that exist."),
    data("decr", 2, WRITE_FAST, ONE, "RW access update", STRING, "Takes one from the number in a key."),
    data("decrby", 3, WRITE_FAST, ONE, "RW access update", STRING, "Takes from the number in a key."),
    data("incrby", 3, WRITE_FAST, ONE, "RW access update", STRING, "Adds to the number in a key."),
    data("append", 3, WRITE_FAST, ONE, "RW insert", STRING, "Adds to the end of a value."),
    data("strlen", 2, READ_FAST, ONE, "RO", STRING, "Bytes of a value."),
    data("ttl", 2, READ_FAST, ONE, "RO access", KEY_TIME, "Seconds until a key expires."),
    data("dbsize", 1, READ_FAST, NONE, "", ["@keyspace", SHARDS_SUM], "The number of keys."),
    data("flushdb", -1, ["write", ""], NONE, "", ALL_KEYS, "Removes all keys."),
    other("ping", -1, ["fast", ""], ["@connection", SHARDS_SUCCEED], "Answers PONG, or its argument.", &[]),
    other("echo", 2, ANY_TIME_FAST, CONNECTION, "Answers its argument.", &[]),
    other("info", -1, ANY_TIME, SERVER, "The role of this node in the cluster.", &[]),
    other("config", -2, ["", ""], ["", ""], "Settings, for clients that ask for them.", CONFIG),
    other("command", -1, ANY_TIME, COMMAND_LIST, "The commands of this server.", COMMAND),
    other("hello", -1, GREETING, CONNECTION, "Chooses the protocol of a connection.", &[]),
    other("client", -2, ["", ""], ["", ""], "About this connection.", CLIENT),
    other("select", 2, ANY_TIME_FAST, CONNECTION, "Chooses database 0, the only one.", &[]),
    other("cluster", -2, ["", ""], ["", ""], "The state of the cluster.", CLUSTER),
    other("readonly", 1, ANY_TIME_FAST, CONNECTION, "Allows reads at this node if it follows.", &[]),
    other("readwrite", 1, ANY_TIME_FAST, CONNECTION, "Ends READONLY.", &[]),
    other("reset", 1, GREETING, CONNECTION, "Resets a connection to its first state.", &[]),
    other("quit", -1, GREETING, CONNECTION, "Closes a connection.", &[]),
];

const CONFIG: &[Spec] =
    &[other("config|get", -3, ADMIN, ["@dangerous", ""], "The values of settings, by name.", &[])];

const COMMAND: &[Spec] = &[
    other("command|count", 2, ANY_TIME, CONNECTION, "The number of commands.", &[]),
    other("command|docs", -2, ANY_TIME, CONNECTION, "The documentation of commands.", &[]),
    other("command|getkeys", -3, ANY_TIME, CONNECTION, "The keys in a command.", &[]),
    other("command|info", -2, ANY_TIME, CONNECTION, "Some commands, or all.", &[]),
    other("command|list", -2, ANY_TIME, CONNECTION, "The names of all commands.", &[]),
];

const CLIENT: &[Spec] = &[
    other("client|getname", 2, CLIENT_FLAGS, CONNECTION, "The connection's name.", &[]),
    other("client|id", 2, CLIENT_FLAGS, CONNECTION, "The connection's number.", &[]),
    other("client|info", 2, CLIENT_FLAGS, CONNECTION, "The state of the connection.", &[]),
    other("client|no-evict", 3, ADMIN, ["@dangerous @connection", ""], "Taken and ignored.", &[]),
    other("client|no-touch", 3, CLIENT_FLAGS, CONNECTION, "Taken and ignored.", &[]),
    other("client|setinfo", 4, CLIENT_FLAGS, CONNECTION, "Taken and ignored.", &[]),
    other("client|setname", 3, CLIENT_FLAGS, CONNECTION, "Names the connection.", &[]),
];
const CLIENT_FLAGS: [&str; 2] = ["noscript", "loading stale"];

const CLUSTER: &[Spec] = &[
    other("cluster|info", 2, ANY_TIME, ["", NONDETERMINISTIC], "Whether the cluster serves.", &[]),
    other("cluster|keyslot", 3, ANY_TIME, ["", ""], "The slot of a key.", &[]),
    other("cluster|myid", 2, ANY_TIME, ["", ""], "The name of this node.", &[]),
    other("cluster|nodes", 2, ANY_TIME, ["", NONDETERMINISTIC], "All nodes, as text.", &[]),
    other("cluster|shards", 2, ANY_TIME, ["", NONDETERMINISTIC], "All nodes, by shard.", &[]),
    other("cluster|slots", 2, ANY_TIME, ["", NONDETERMINISTIC], "The nodes that serve each slot.", &[]),
];
const NONDETERMINISTIC: &str = "nondeterministic_output";

/// The command or subcommand (`config|get`) of that name.
fn by_name(name: &[u8]) -> Option<&'static Spec> {
    let is_it = |spec: &&Spec| name.eq_ignore_ascii_case(spec.name.as_bytes());
    TABLE.iter().find(is_it).or_else(|| TABLE.iter().flat_map(|spec| spec.subcommands).find(is_it))
}

/// Answers `COMMAND` with these arguments.
pub(super) fn answer(args: &[&[u8]]) -> Reply {
    let Some((name, rest)) = args.split_first() else {
        return Reply::Array(TABLE.iter().map(Spec::describe).collect());
    };
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    match (name.as_str(), rest) {
        ("count", []) => Reply::integer(TABLE.len()),
        ("list", []) => Reply::Array(TABLE.iter().map(|spec| Reply::text(spec.name)).collect()),
        ("list", _) => Reply::error("ERR syntax error"),
        ("info" | "docs", names) if names.len() > NAMES_MAX => {
            Reply::error(format!("ERR COMMAND {name} takes at most {NAMES_MAX} names"))
        }
        ("info", []) => answer(&[]),
        ("info", names) => {
            let one = |name: &&[u8]| by_name(name).map_or(Reply::Nil, Spec::describe);
            Reply::Array(names.iter().map(one).collect())
        }
        ("docs", []) => Reply::Map(TABLE.iter().map(Spec::docs).collect()),
        ("docs", names) => {
            Reply::Map(names.iter().filter_map(|name| by_name(name)).map(Spec::docs).collect())
        }
        ("getkeys", [name, arguments @ ..]) => keys_of(name, arguments),
        ("count" | "getkeys", _) => wrong_arity(&format!("command|{name}")),
        _ => unknown_subcommand("COMMAND", &name),
    }
}

fn keys_of(name: &[u8], arguments: &[&[u8]]) -> Reply {
    let Some(spec) = TABLE.iter().find(|spec| name.eq_ignore_ascii_case(spec.name.as_bytes())) else {
        return Reply::error("ERR Invalid command specified");
    };
    if !spec.takes(arguments.len().saturating_add(1)) {
        return Reply::error("ERR Invalid number of arguments specified for command");
    }
    let [1, last, step] = spec.keys else {
        return Reply::error("ERR The command has no key arguments");
    };
    let end = if last < 0 { arguments.len() } else { usize::try_from(last).unwrap_or(1) };
    let step = usize::try_from(step).unwrap_or(1).max(1);
    let keys = arguments.iter().take(end).step_by(step);
    Reply::Array(keys.map(|key| Reply::Bulk(Bytes::copy_from_slice(key))).collect())
}

fn statuses(words: impl Iterator<Item = &'static str>) -> Reply {
    Reply::Set(words.map(Reply::Status).collect())
}

impl Spec {
    /// Whether a command of `count` arguments, its name among them, is complete.
    pub(super) fn takes(&self, count: usize) -> bool {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        if self.arity < 0 { count >= -self.arity } else { count == self.arity }
    }

    fn all_flags(&self) -> impl Iterator<Item = &'static str> + use<> {
        let first = (!self.flag.is_empty()).then_some(self.flag);
        first.into_iter().chain(self.flags.split_whitespace())
    }

    /// Redis derives some categories from the flags.
    fn all_categories(&self) -> impl Iterator<Item = &'static str> + use<> {
        let has = |flag| self.all_flags().any(|own| own == flag);
        let derived = [
            has("write").then_some("@write"),
            has("readonly").then_some("@read"),
            has("admin").then_some("@admin"),
            Some(if has("fast") { "@fast" } else { "@slow" }),
        ];
        self.categories.split_whitespace().chain(derived.into_iter().flatten())
    }

    fn describe(&self) -> Reply {
        let mut entry = vec![Reply::text(self.name), Reply::Integer(self.arity), statuses(self.all_flags())];
        entry.extend(self.keys.map(Reply::Integer));
        entry.push(statuses(self.all_categories()));
        entry.push(Reply::Set(self.tips.split_whitespace().map(Reply::text).collect()));
        entry.push(Reply::Set(self.key_specification().into_iter().collect()));
        entry.push(Reply::Set(self.subcommands.iter().map(Self::describe).collect()));
        Reply::Array(entry)
    }

    /// The positions of the keys. The first counts from the name, the last from the first key.
    fn key_specification(&self) -> Option<Reply> {
        let [first, last, step] = self.keys;
        if first == 0 {
            return None;
        }
        let last = if last < 0 { last } else { last - first };
        let map = |pairs: Vec<(&'static str, Reply)>| {
            Reply::Map(pairs.into_iter().map(|(name, value)| (Reply::text(name), value)).collect())
        };
        let numbers = |pairs: &[(&'static str, i64)]| {
            map(pairs.iter().map(|(name, number)| (*name, Reply::Integer(*number))).collect())
        };
        let search = [("type", Reply::text("index")), ("spec", numbers(&[("index", first)]))];
        let range = numbers(&[("lastkey", last), ("keystep", step), ("limit", 0)]);
        let find = [("type", Reply::text("range")), ("spec", range)];
        Some(map(vec![
            ("flags", statuses(self.access.split_whitespace())),
            ("begin_search", map(search.into())),
            ("find_keys", map(find.into())),
        ]))
    }

    fn docs(&self) -> (Reply, Reply) {
        let group = match self.categories.split_whitespace().next() {
            Some("@string") => "string",
            Some("@keyspace") => "generic",
            Some("@connection") => "connection",
            _ => "server",
        };
        let mut pairs = vec![
            (Reply::text("summary"), Reply::text(self.summary)),
            (Reply::text("group"), Reply::text(group)),
        ];
        if !self.subcommands.is_empty() {
            let subcommands = self.subcommands.iter().map(Self::docs).collect();
            pairs.push((Reply::text("subcommands"), Reply::Map(subcommands)));
        }
        (Reply::text(self.name), Reply::Map(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(reply: &Reply) -> &[Reply] {
        match reply {
            Reply::Array(items) | Reply::Set(items) => items,
            other => panic!("{other:?} is no array"),
        }
    }

    /// Entries had six elements. redis-py with RESP3 reads ten and raised `IndexError`.
    #[test]
    fn every_entry_has_the_ten_elements_of_redis_7() {
        let all = answer(&[]);
        assert_eq!(array(&all).len(), TABLE.len());
        for (spec, entry) in TABLE.iter().zip(array(&all)) {
            let entry = array(entry);
            assert_eq!(entry.len(), 10, "{}", spec.name);
            assert_eq!(array(&entry[8]).len(), usize::from(spec.keys != NONE), "{}", spec.name);
            assert_eq!(array(&entry[9]).len(), spec.subcommands.len(), "{}", spec.name);
            for subcommand in array(&entry[9]) {
                assert_eq!(array(subcommand).len(), 10, "of {}", spec.name);
            }
        }
    }

    #[test]
    fn an_entry_says_how_to_find_the_keys() {
        let mset = answer(&[b"info", b"mset", b"absent", b"config|get"]);
        let [mset, Reply::Nil, config_get] = array(&mset) else { panic!("{mset:?}") };
        assert_eq!(array(config_get)[0], Reply::text("config|get"));
        let text = format!("{:?}", array(mset)[8]);
        for (name, number) in [("lastkey", -1), ("keystep", 2), ("index", 1)] {
            let part = format!("Bulk(b\"{name}\"), Integer({number})");
            assert!(text.contains(&part), "{part} in {text}");
        }
    }

    #[test]
    fn keys_are_found_in_a_command() {
        let keys = |args: &[&[u8]]| answer(&[&[&b"getkeys"[..]], args].concat());
        let found = |keys: &[&str]| Reply::Array(keys.iter().map(|key| Reply::text(*key)).collect());
        assert_eq!(keys(&[b"GET", b"a"]), found(&["a"]));
        assert_eq!(keys(&[b"mset", b"a", b"1", b"b", b"2"]), found(&["a", "b"]));
        assert_eq!(keys(&[b"mget", b"a", b"b", b"c"]), found(&["a", "b", "c"]));
        assert_eq!(keys(&[b"set", b"a", b"1", b"EX", b"2"]), found(&["a"]));
        for (args, error) in [
            (&[&b"ping"[..]][..], "ERR The command has no key arguments"),
            (&[b"frob", b"a"], "ERR Invalid command specified"),
            (&[b"get"], "ERR Invalid number of arguments specified for command"),
        ] {
            assert_eq!(keys(args), Reply::error(error));
        }
    }
}
