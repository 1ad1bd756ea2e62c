//! How one Raft group looks to cluster-aware clients: one shard that holds all slots, whose master is the leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis_protocol::redis_keyslot;

use crate::replica::{Replica, ReplicaState, Role};

use super::commands::{unknown_subcommand, wrong_arity};
use super::health::{self, Health};
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
    all: Vec<Member>,
    health: Arc<Health>,
    /// The last leader that was known; zero for none.
    led: Arc<AtomicU64>,
}

/// How often the leader is noted. Shorter than any election.
const LEADER_INTERVAL: Duration = Duration::from_millis(50);

/// The slot of a key; with `{tag}`, of the tag.
pub(super) fn slot(key: &[u8]) -> u16 {
    // An empty tag hashes the whole key, by Redis's rule.
    redis_keyslot(key)
}

impl Members {
    pub(crate) fn new(me: u64, all: Vec<Member>) -> Self {
        Self { me, health: Arc::new(Health::new(&all)), all, led: Arc::default() }
    }

    /// Keeps asking the others whether they are well, and notes who leads. Never ends.
    pub(crate) async fn watch<R: Replica>(self, replica: R) {
        let peers = self.all.iter().filter(|member| member.id != self.me).cloned().collect();
        let noted = async {
            loop {
                self.master(&replica.state());
                tokio::time::sleep(LEADER_INTERVAL).await;
            }
        };
        tokio::join!(health::watch(Arc::clone(&self.health), peers), noted);
    }

    /// Who leads. Without a leader, who led: Redis lists a dead master until another one is elected, and clients call an
    /// empty list an error that they do not retry.
    fn master(&self, state: &ReplicaState) -> Option<u64> {
        if let Some(id) = state.leader {
            self.led.store(id, Ordering::Relaxed);
        }
        state.leader.or_else(|| Some(self.led.load(Ordering::Relaxed)).filter(|id| *id != 0))
    }

    fn has_failed(&self, id: u64, state: &ReplicaState) -> bool {
        if id == self.me { state.role == Role::Down } else { self.health.has_failed(id) }
    }

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
        let Some(leader) = self.master(state) else { return Reply::Array(Vec::new()) };
        let node = |member: &&Member| {
            Reply::Array(vec![
                Reply::text(member.host.clone()),
                Reply::Integer(member.port.into()),
                Reply::text(node_name(member.id)),
                Reply::Array(Vec::new()),
            ])
        };
        let mut range = vec![Reply::Integer(0), Reply::Integer(SLOT_LAST.into())];
        // As in Redis: a replica that has failed is left out, a master stays until another one leads.
        let ordered = self.ordered(leader);
        let listed = ordered.iter().filter(|m| m.id == leader || !self.has_failed(m.id, state));
        range.extend(listed.map(node));
        Reply::Array(vec![Reply::Array(range)])
    }

    fn shards(&self, state: &ReplicaState) -> Reply {
        let leader = self.master(state).unwrap_or(0);
        let node = |member: &&Member| {
            let role = if member.id == leader { "master" } else { "replica" };
            let health = if self.has_failed(member.id, state) { "fail" } else { "online" };
            let offset = if member.id == self.me { state.applied } else { 0 };
            Reply::Map(vec![
                (Reply::text("id"), Reply::text(node_name(member.id))),
                (Reply::text("port"), Reply::Integer(member.port.into())),
                (Reply::text("ip"), Reply::text(member.host.clone())),
                (Reply::text("endpoint"), Reply::text(member.host.clone())),
                (Reply::text("role"), Reply::text(role)),
                (Reply::text("replication-offset"), Reply::integer(offset)),
                (Reply::text("health"), Reply::text(health)),
            ])
        };
        let slots = match self.master(state) {
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
        let master = self.master(state);
        let line = |member: &&Member| {
            let myself = if member.id == self.me { "myself," } else { "" };
            let (role, master, slots) = match master {
                Some(id) if id == member.id => ("master", "-".into(), format!(" 0-{SLOT_LAST}")),
                Some(id) => ("slave", node_name(id), String::new()),
                None => ("slave", "-".into(), String::new()),
            };
            let Member { id, host, port } = member;
            let has_failed = self.has_failed(*id, state);
            let fail = if has_failed { ",fail" } else { "" };
            let link = if has_failed && *id != self.me { "disconnected" } else { "connected" };
            // There is no Redis bus: its port is given as 0.
            format!(
                "{} {host}:{port}@0 {myself}{role}{fail} {master} 0 0 {} {link}{slots}\n",
                node_name(*id),
                state.term
            )
        };
        self.ordered(master.unwrap_or(0)).iter().map(line).collect()
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
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        for (key, expected) in
            [("123456789", 12_739), ("foo", 12_182), ("a{foo}b", 12_182), ("{foo}{bar}", 12_182), ("", 0)]
        {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        assert_ne!(slot(b"{}foo"), slot(b""), "an empty tag is none");
    }

    fn members() -> Members {
        let member = |id| Member { id, host: "127.0.0.1".into(), port: 7_000 };
        Members::new(1, (1..=3).map(member).collect())
    }

    /// A peer that was dead for long was `connected`, and clients went on asking it.
    #[test]
    fn a_dead_replica_is_shown_as_failed_everywhere() {
        let members = members();
        let state =
            ReplicaState { role: Role::Leader, leader: Some(1), term: 4, commit: 9, applied: 9, down: None };
        let shown = |what: &[u8]| format!("{:?}", members.command(&[what], &state));
        let third = format!("{:?}", node_name(3));
        assert!(shown(b"slots").contains(&third) && !shown(b"shards").contains("fail"));
        members.health.fail(3);
        let nodes = members.nodes(&state);
        let lines: Vec<&str> = nodes.lines().collect();
        assert!(lines[0].contains(" myself,master - 0 0 4 connected 0-16383"), "{nodes}");
        assert!(lines[1].ends_with(" 0 0 4 connected") && lines[1].contains(" slave "), "{nodes}");
        assert!(lines[2].ends_with(" 0 0 4 disconnected") && lines[2].contains(" slave,fail "), "{nodes}");
        assert!(!shown(b"slots").contains(&third), "clients must not read there");
        assert_eq!(shown(b"shards").matches("\"fail\"").count(), 1);
    }

    #[test]
    fn a_dead_master_is_listed_until_another_node_leads() {
        let members = members();
        let mut state = ReplicaState {
            role: Role::Follower,
            leader: Some(2),
            term: 4,
            commit: 9,
            applied: 9,
            down: None,
        };
        let slots = |state: &ReplicaState| format!("{:?}", members.slots(state));
        assert!(slots(&state).contains(&node_name(2)));
        members.health.fail(2);
        state.leader = None;
        assert!(members.nodes(&state).contains(" master,fail - 0 0 4 disconnected 0-16383"));
        assert!(slots(&state).contains(&node_name(2)), "as long as no other node leads");
        assert!(members.info(&state).contains("cluster_state:fail"));
        (state.role, state.leader) = (Role::Leader, Some(1));
        assert!(!slots(&state).contains(&node_name(2)));
    }
}
