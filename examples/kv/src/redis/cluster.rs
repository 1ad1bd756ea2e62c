//! How one Raft group looks to cluster-aware clients: one shard that holds all slots, whose master is the leader.

use redis_protocol::redis_keyslot;

use crate::replica::{ReplicaState, Role};

use super::commands::{unknown_subcommand, wrong_arity};
use super::reply::Reply;

pub(super) const SLOT_LAST: u16 = 16_383;

/// One node of the cluster, as clients reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// All nodes, and which one this is.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    pub(crate) me: u64,
    pub(crate) all: Vec<Member>,
}

/// The slot of a key; with `{tag}`, of the tag.
pub(super) fn slot(key: &[u8]) -> u16 {
    // An empty tag hashes the whole key, by Redis's rule.
    redis_keyslot(key)
}

impl Members {
    fn by_id(&self, id: u64) -> Option<&Member> {
        self.all.iter().find(|member| member.id == id)
    }

    /// Where to go instead of here.
    pub(super) fn moved(&self, slot: u16, leader: Option<u64>) -> Reply {
        match leader.filter(|id| *id != self.me).and_then(|id| self.by_id(id)) {
            Some(leader) => Reply::error(format!("MOVED {slot} {}:{}", leader.host, leader.port)),
            None => Reply::error("CLUSTERDOWN no leader is known"),
        }
    }

    /// The master first.
    fn ordered(&self, leader: u64) -> Vec<&Member> {
        let mut nodes: Vec<&Member> = self.all.iter().collect();
        nodes.sort_by_key(|member| (member.id != leader, member.id));
        nodes
    }

    pub(super) fn command(&self, args: &[&[u8]], state: &ReplicaState) -> Reply {
        let Some((name, rest)) = args.split_first() else { return wrong_arity("cluster") };
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        match (name.as_str(), rest) {
            ("slots", []) => self.slots(state),
            ("shards", []) => self.shards(state),
            ("nodes", []) => Reply::text(self.nodes(state)),
            ("info", []) => Reply::text(self.info(state)),
            ("myid", []) => Reply::text(node_name(self.me)),
            ("keyslot", [key]) => Reply::Integer(slot(key).into()),
            ("slots" | "shards" | "nodes" | "info" | "myid" | "keyslot", _) => {
                wrong_arity(&format!("cluster|{name}"))
            }
            _ => unknown_subcommand("CLUSTER", &name),
        }
    }

    fn slots(&self, state: &ReplicaState) -> Reply {
        let Some(leader) = state.leader else { return Reply::Array(Vec::new()) };
        let node = |member: &&Member| {
            Reply::Array(vec![
                Reply::text(member.host.clone()),
                Reply::Integer(member.port.into()),
                Reply::text(node_name(member.id)),
                Reply::Array(Vec::new()),
            ])
        };
        let mut range = vec![Reply::Integer(0), Reply::Integer(SLOT_LAST.into())];
        range.extend(self.ordered(leader).iter().map(node));
        Reply::Array(vec![Reply::Array(range)])
    }

    fn shards(&self, state: &ReplicaState) -> Reply {
        let leader = state.leader.unwrap_or(0);
        let node = |member: &&Member| {
            let role = if member.id == leader { "master" } else { "replica" };
            let offset = if member.id == self.me { state.applied } else { 0 };
            Reply::Map(vec![
                (Reply::text("id"), Reply::text(node_name(member.id))),
                (Reply::text("port"), Reply::Integer(member.port.into())),
                (Reply::text("ip"), Reply::text(member.host.clone())),
                (Reply::text("endpoint"), Reply::text(member.host.clone())),
                (Reply::text("role"), Reply::text(role)),
                (Reply::text("replication-offset"), Reply::integer(offset)),
                (Reply::text("health"), Reply::text("online")),
            ])
        };
        let slots = match state.leader {
            Some(_) => vec![Reply::Integer(0), Reply::Integer(SLOT_LAST.into())],
            None => Vec::new(),
        };
        let nodes = self.ordered(leader).iter().map(node).collect();
        Reply::Array(vec![Reply::Map(vec![
            (Reply::text("slots"), Reply::Array(slots)),
            (Reply::text("nodes"), Reply::Array(nodes)),
        ])])
    }

    fn nodes(&self, state: &ReplicaState) -> String {
        let leader = state.leader.unwrap_or(0);
        let line = |member: &&Member| {
            let myself = if member.id == self.me { "myself," } else { "" };
            let (role, master, slots) = match state.leader {
                Some(id) if id == member.id => ("master", "-".into(), format!(" 0-{SLOT_LAST}")),
                Some(id) => ("slave", node_name(id), String::new()),
                None => ("master", "-".into(), String::new()),
            };
            let Member { id, host, port } = member;
            // There is no Redis bus: its port is given as 0.
            format!(
                "{} {host}:{port}@0 {myself}{role} {master} 0 0 {} connected{slots}\n",
                node_name(*id),
                state.term
            )
        };
        self.ordered(leader).iter().map(line).collect()
    }

    fn info(&self, state: &ReplicaState) -> String {
        let up = state.leader.is_some() && state.role != Role::Down;
        let (health, slots) = if up { ("ok", u32::from(SLOT_LAST) + 1) } else { ("fail", 0) };
        format!(
            "cluster_enabled:1\r\ncluster_state:{health}\r\ncluster_slots_assigned:{slots}\r\ncluster_slots_ok:{slots}\r\n\
             cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:{}\r\ncluster_size:1\r\n\
             cluster_current_epoch:{term}\r\ncluster_my_epoch:{term}\r\n",
            self.all.len(),
            term = state.term,
        )
    }
}

/// Redis names nodes by 40 hex digits.
fn node_name(id: u64) -> String {
    format!("{id:040x}")
}

#[cfg(test)]
mod tests {
    use super::slot;

    #[test]
    fn slots_are_those_of_redis() {
        for (key, expected) in
            [("123456789", 12_739), ("foo", 12_182), ("a{foo}b", 12_182), ("{foo}{bar}", 12_182), ("", 0)]
        {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        assert_ne!(slot(b"{}foo"), slot(b""), "an empty tag is none");
    }
}
