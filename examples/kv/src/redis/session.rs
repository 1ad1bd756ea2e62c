//! Commands about the connection and the server. They need no log.

use bytes::Bytes;

use towline::{GroupState, NodeId, Role};

use super::cluster::Members;
use super::reply::{OK, Reply, not_an_integer, quoted, unknown_subcommand, wrong_arity};
use super::table::{self, Spec};

/// The Redis version that commands and texts follow.
const REDIS_VERSION: &str = "7.4.0";
const NAME_BYTES_MAX: usize = 256;

/// The state that a client sets for its connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) resp3: bool,
    pub(super) quit: bool,
    /// Set by `READONLY`: a follower answers reads.
    pub(super) reads_here: bool,
    name: Bytes,
}

impl Session {
    pub(super) fn new(id: u64) -> Self {
        Self { id, resp3: false, quit: false, reads_here: false, name: Bytes::new() }
    }

    /// `args` starts with the name of the command.
    pub(super) fn command(
        &mut self,
        spec: &Spec,
        args: &[Bytes],
        members: &Members,
        state: &GroupState,
    ) -> Reply {
        let rest: Vec<&[u8]> = args.iter().skip(1).map(|arg| &arg[..]).collect();
        match (spec.name, rest.as_slice()) {
            ("ping", []) => Reply::Status("PONG"),
            ("ping" | "echo", [text]) => Reply::Bulk(Bytes::copy_from_slice(text)),
            ("ping", _) => wrong_arity("ping"),
            ("select", [index]) => match crate::machine::parse_integer(index) {
                Some(0) => OK,
                Some(_) => Reply::error("ERR DB index is out of range"),
                None => not_an_integer(),
            },
            ("readonly" | "readwrite", _) => {
                self.reads_here = spec.name == "readonly";
                OK
            }
            ("quit", _) => {
                self.quit = true;
                OK
            }
            ("reset", _) => {
                *self = Self::new(self.id);
                Reply::Status("RESET")
            }
            ("hello", rest) => self.hello(rest, state),
            ("client", rest) => self.client(rest),
            ("cluster", rest) => members.command(rest, state),
            ("config", rest) => config(rest),
            ("command", rest) => table::answer(rest),
            ("info", _) => Reply::text(info(members, state)),
            _ => Reply::error("ERR command is not available here"),
        }
    }

    fn hello(&mut self, args: &[&[u8]], state: &GroupState) -> Reply {
        let (mut resp3, mut name) = (self.resp3, None);
        let mut rest = args;
        if let [version, options @ ..] = args {
            resp3 = match *version {
                b"2" => false,
                b"3" => true,
                other if crate::machine::parse_integer(other).is_some() => {
                    return Reply::error("NOPROTO unsupported protocol version");
                }
                _ => return Reply::error("ERR Protocol version is not an integer or out of range"),
            };
            rest = options;
        }
        while let [option, options @ ..] = rest {
            rest = match options {
                [given, rest @ ..] if option.eq_ignore_ascii_case(b"setname") => {
                    name = Some(*given);
                    rest
                }
                [_, _, ..] if option.eq_ignore_ascii_case(b"auth") => {
                    return Reply::error("WRONGPASS this server knows no users and no passwords");
                }
                _ => {
                    return Reply::error(format!("ERR Syntax error in HELLO option '{}'", quoted(option)));
                }
            };
        }
        if let Some(error) = name.and_then(|name| self.rename(name)) {
            return error;
        }
        self.resp3 = resp3;
        let role = if state.role == Role::Leader { "master" } else { "replica" };
        Reply::Map(vec![
            (Reply::text("server"), Reply::text("redis")),
            (Reply::text("version"), Reply::text(REDIS_VERSION)),
            (Reply::text("proto"), Reply::Integer(if resp3 { 3 } else { 2 })),
            (Reply::text("id"), Reply::integer(self.id)),
            (Reply::text("mode"), Reply::text("cluster")),
            (Reply::text("role"), Reply::text(role)),
            (Reply::text("modules"), Reply::Array(Vec::new())),
        ])
    }

    fn rename(&mut self, name: &[u8]) -> Option<Reply> {
        if name.len() > NAME_BYTES_MAX || !name.iter().all(u8::is_ascii_graphic) {
            let text = "ERR Client names cannot contain spaces, newlines or special characters.";
            return Some(Reply::error(text));
        }
        self.name = Bytes::copy_from_slice(name);
        None
    }

    fn client(&mut self, args: &[&[u8]]) -> Reply {
        let Some((name, rest)) = args.split_first() else { return wrong_arity("client") };
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        match (name.as_str(), rest) {
            ("setname", [name]) => self.rename(name).unwrap_or(OK),
            ("setinfo", [_, _]) | ("no-evict" | "no-touch", [_]) => OK,
            ("id", []) => Reply::integer(self.id),
            ("getname", []) if self.name.is_empty() => Reply::Nil,
            ("getname", []) => Reply::Bulk(self.name.clone()),
            ("info", []) => {
                let name = String::from_utf8_lossy(&self.name);
                Reply::text(format!(
                    "id={} name={name} db=0 resp={}\n",
                    self.id,
                    if self.resp3 { 3 } else { 2 }
                ))
            }
            ("setname" | "setinfo" | "no-evict" | "no-touch" | "id" | "getname" | "info", _) => {
                wrong_arity(&format!("client|{name}"))
            }
            _ => unknown_subcommand("CLIENT", &name),
        }
    }
}

/// The settings that benchmarks and clients ask for. Others are unknown: an empty answer.
const SETTINGS: &[(&str, &str)] =
    &[("save", ""), ("appendonly", "yes"), ("appendfsync", "always"), ("databases", "1"), ("maxmemory", "0")];

fn config(args: &[&[u8]]) -> Reply {
    let Some((name, patterns)) = args.split_first() else { return wrong_arity("config") };
    match patterns {
        [] if name.eq_ignore_ascii_case(b"get") => wrong_arity("config|get"),
        _ if name.eq_ignore_ascii_case(b"get") => {
            let asked = |setting: &str| {
                patterns.iter().any(|p| *p == b"*" || p.eq_ignore_ascii_case(setting.as_bytes()))
            };
            let found = SETTINGS.iter().filter(|(setting, _)| asked(setting));
            Reply::Map(found.map(|(setting, value)| (Reply::text(*setting), Reply::text(*value))).collect())
        }
        _ => unknown_subcommand("CONFIG", &String::from_utf8_lossy(name)),
    }
}

fn info(members: &Members, state: &GroupState) -> String {
    let role = if state.role == Role::Leader { "master" } else { "slave" };
    format!(
        "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:cluster\r\nserver_name:towline-kv\r\n\r\n\
         # Replication\r\nrole:{role}\r\nnode_id:{}\r\nleader_id:{}\r\nterm:{}\r\ncommit:{}\r\napplied:{}\r\n\r\n\
         # Cluster\r\ncluster_enabled:1\r\n",
        members.me,
        state.leader.map_or(0, NodeId::as_u64),
        state.term,
        state.commit,
        state.applied,
    )
}
