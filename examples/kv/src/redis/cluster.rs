//! Shows the Raft group as a Redis Cluster of one shard with all slots. The leader is its master.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis_protocol::redis_keyslot;
use towline::{GroupState, NodeId, Outcome, ProposeError, Role};

use crate::replica::Replica;

use super::health::{self, Health, Member};
use super::reply::{Reply, one_line, unknown_subcommand, wrong_arity};

pub(super) const SLOT_LAST: u16 = 16_383;

/// All nodes, and which one this is.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    pub(crate) me: NodeId,
    all: Vec<Member>,
    health: Arc<Health>,
    /// The last known leader; zero for none.
    led: Arc<AtomicU64>,
}

/// How often a node notes the leader. Shorter than any election.
const LEADER_INTERVAL: Duration = Duration::from_millis(50);

/// The slot of a key. With a `{tag}` in the key, the slot of the tag.
pub(super) fn slot(key: &[u8]) -> u16 {
    redis_keyslot(key)
}

impl Members {
    pub(crate) fn new(me: NodeId, all: Vec<Member>) -> Self {
        Self { me, all, health: Arc::default(), led: Arc::default() }
    }

    /// Watches the health of the others and notes the leader. Never ends.
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

    /// The leader, or the last known one. Redis also lists a dead master until the next election, and clients do not retry
    /// after an empty list.
    fn master(&self, state: &GroupState) -> Option<NodeId> {
        if let Some(id) = state.leader {
            self.led.store(id.as_u64(), Ordering::Relaxed);
        }
        state.leader.or_else(|| NodeId::new(self.led.load(Ordering::Relaxed)))
    }

    fn has_failed(&self, id: NodeId, state: &GroupState) -> bool {
        if id == self.me { state.role == Role::Down } else { self.health.has_failed(id) }
    }

    /// Sends the client to the leader.
    pub(super) fn moved(&self, slot: u16, leader: Option<NodeId>) -> Reply {
        match self.all.iter().find(|member| Some(member.id) == leader && member.id != self.me) {
            Some(leader) => Reply::error(format!("MOVED {slot} {}:{}", leader.host, leader.port)),
            None => Reply::error("CLUSTERDOWN no leader is known"),
        }
    }

    /// The reply to a failed write. Only the first word `UNCERTAIN` means that the write may have happened.
    pub(super) fn write_error(&self, error: &ProposeError, slot: u16) -> Reply {
        match error {
            _ if error.outcome() == Outcome::MayHaveHappened => {
                Reply::error(format!("UNCERTAIN {}", one_line(error)))
            }
            ProposeError::NotLeader { hint } | ProposeError::Superseded { hint } => {
                self.moved(slot, hint.as_ref().map(|hint| hint.node))
            }
            ProposeError::Busy => Reply::error("TRYAGAIN too much is under way, the write was not taken"),
            ProposeError::DiskFull { .. } => Reply::error(format!("DISKFULL {error}")),
            ProposeError::Stopped { cause } => {
                Reply::error(format!("ERR this node is stopped: {}", one_line(cause)))
            }
            _ => Reply::error(format!("ERR {}", one_line(error))),
        }
    }

    /// All members, the master first.
    fn ordered(&self, master: Option<NodeId>) -> Vec<&Member> {
        let mut nodes: Vec<&Member> = self.all.iter().collect();
        nodes.sort_by_key(|member| (Some(member.id) != master, member.id));
        nodes
    }

    pub(super) fn command(&self, args: &[&[u8]], state: &GroupState) -> Reply {
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

    fn slots(&self, state: &GroupState) -> Reply {
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
        // As in Redis: a failed replica is left out, a failed master stays until another node leads.
        let ordered = self.ordered(Some(leader));
        let listed = ordered.iter().filter(|m| m.id == leader || !self.has_failed(m.id, state));
        range.extend(listed.map(node));
        Reply::Array(vec![Reply::Array(range)])
    }

    fn shards(&self, state: &GroupState) -> Reply {
        let master = self.master(state);
        let node = |member: &&Member| {
            let role = if Some(member.id) == master { "master" } else { "replica" };
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
        let slots = match master {
            Some(_) => vec![Reply::Integer(0), Reply::Integer(SLOT_LAST.into())],
            None => Vec::new(),
        };
        let nodes = self.ordered(master).iter().map(node).collect();
        Reply::Array(vec![Reply::Map(vec![
            (Reply::text("slots"), Reply::Array(slots)),
            (Reply::text("nodes"), Reply::Array(nodes)),
        ])])
    }

    fn nodes(&self, state: &GroupState) -> String {
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
            // Port 0: there is no Redis bus.
            format!(
                "{} {host}:{port}@0 {myself}{role}{fail} {master} 0 0 {} {link}{slots}\n",
                node_name(*id),
                state.term
            )
        };
        self.ordered(master).iter().map(line).collect()
    }

    fn info(&self, state: &GroupState) -> String {
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

/// The name of a node: 40 hex digits, as in Redis.
fn node_name(id: NodeId) -> String {
    format!("{:040x}", id.as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn members(leader: u64) -> (Members, GroupState) {
        let member = |number| Member { id: id(number), host: "127.0.0.1".into(), port: 7_000 };
        let role = if leader == 1 { Role::Leader } else { Role::Follower };
        let state = GroupState {
            role,
            leader: Some(id(leader)),
            term: 4,
            commit: 9,
            applied: 9,
            down: None,
            refused: None,
        };
        (Members::new(id(1), (1..=3).map(member).collect()), state)
    }

    /// A peer that was dead for long was shown as `connected`, and clients went on asking it.
    #[test]
    fn a_dead_replica_is_shown_as_failed_everywhere() {
        let (members, state) = members(1);
        let shown = |what: &[u8]| format!("{:?}", members.command(&[what], &state));
        let third = format!("{:?}", node_name(id(3)));
        assert!(shown(b"slots").contains(&third) && !shown(b"shards").contains("fail"));
        members.health.set(id(3), true);
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
        let (members, mut state) = members(2);
        let slots = |state: &GroupState| format!("{:?}", members.slots(state));
        assert!(slots(&state).contains(&node_name(id(2))));
        members.health.set(id(2), true);
        state.leader = None;
        assert!(members.nodes(&state).contains(" master,fail - 0 0 4 disconnected 0-16383"));
        assert!(slots(&state).contains(&node_name(id(2))), "as long as no other node leads");
        assert!(members.info(&state).contains("cluster_state:fail"));
        (state.role, state.leader) = (Role::Leader, Some(id(1)));
        assert!(!slots(&state).contains(&node_name(id(2))));
    }
}
