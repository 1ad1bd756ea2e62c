//! The peers that refuse this node's connections, as this node learns when it calls them, and those that this node refuses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::refusals::Spaced;
use crate::ids::NodeId;
use crate::status::PeerRefusal;
use crate::sync::lock;
use crate::transport::Refusal;

/// The last refusal of each peer, until that peer admits this node. At most one for each peer that this node calls.
#[derive(Default)]
pub(crate) struct RefusedBy {
    peers: Mutex<BTreeMap<NodeId, Refused>>,
    /// Whether the table has an entry. The shard asks in every turn.
    any: AtomicBool,
    /// The last refusal of each peer by this node, until this node admits the peer.
    ours: Mutex<BTreeMap<NodeId, (Arc<str>, Instant)>>,
    any_of_ours: AtomicBool,
}

struct Refused {
    refusal: Refusal,
    meaning: &'static str,
    /// For the state of each group.
    text: Arc<str>,
    at: Instant,
    lines: Spaced,
}

impl RefusedBy {
    /// Records a refusal. Returns its meaning if a log line is due.
    pub(crate) fn refused(&self, by: NodeId, refusal: &Refusal, now: Instant) -> Option<&'static str> {
        let meaning = meaning(refusal)?;
        let mut peers = lock(&self.peers);
        let known = peers.get_mut(&by).filter(|known| known.refusal == *refusal);
        let due = match known {
            Some(known) => {
                known.at = now;
                known.lines.is_due(now)
            }
            None => {
                let lines = Spaced::new(now);
                let text = format!("refused by node {by}: {refusal}; {meaning}").into();
                peers.insert(by, Refused { refusal: refusal.clone(), meaning, text, at: now, lines });
                // While a cluster starts, peers call before a group runs there: the first line about it waits.
                !matches!(refusal, Refusal::UnknownPeer { .. })
            }
        };
        self.any.store(true, Ordering::Relaxed);
        due.then_some(meaning)
    }

    /// Records that the peer admitted this node.
    pub(crate) fn admitted(&self, by: NodeId) {
        let mut peers = lock(&self.peers);
        peers.remove(&by);
        self.any.store(!peers.is_empty(), Ordering::Relaxed);
    }

    /// Records that this node refuses a member, in whatever direction they connect.
    pub(crate) fn refuses(&self, peer: NodeId, refusal: &str, now: Instant) {
        let why = format!("this node refuses it: {refusal}").into();
        lock(&self.ours).insert(peer, (why, now));
        self.any_of_ours.store(true, Ordering::Relaxed);
    }

    /// Records that this node admitted the peer.
    pub(crate) fn admits(&self, peer: NodeId) {
        if self.any_of_ours.load(Ordering::Relaxed) {
            let mut ours = lock(&self.ours);
            ours.remove(&peer);
            self.any_of_ours.store(!ours.is_empty(), Ordering::Relaxed);
        }
    }

    /// The peers that refused this node, or were refused, at most `age` ago, and why. An older refusal says nothing of now: a
    /// peer that runs calls, and is called, more often.
    pub(crate) fn lately(&self, age: Duration, now: Instant) -> BTreeMap<NodeId, Arc<str>> {
        let mut why = BTreeMap::new();
        let is_late = |at: Instant| now.saturating_duration_since(at) > age;
        if self.any_of_ours.load(Ordering::Relaxed) {
            let ours = lock(&self.ours);
            why.extend(
                ours.iter().filter(|(_, (_, at))| !is_late(*at)).map(|(peer, (why, _))| (*peer, why.clone())),
            );
        }
        if self.any.load(Ordering::Relaxed) {
            let peers = lock(&self.peers);
            let text = |known: &Refused| {
                format!("it refuses this node: {}; {}", known.refusal, known.meaning).into()
            };
            why.extend(
                peers
                    .iter()
                    .filter(|(_, known)| !is_late(known.at))
                    .map(|(peer, known)| (*peer, text(known))),
            );
        }
        why
    }

    /// The refusals of those peers for which `is_member` holds.
    pub(crate) fn of(&self, is_member: impl Fn(NodeId) -> bool, now: Instant) -> Vec<PeerRefusal> {
        if !self.any.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let peers = lock(&self.peers);
        let shown = |(by, refused): (&NodeId, &Refused)| PeerRefusal {
            by: *by,
            refusal: refused.refusal.to_string().into(),
            meaning: refused.meaning,
            age_ms: now.saturating_duration_since(refused.at).as_millis().try_into().unwrap_or(u64::MAX),
        };
        peers.iter().filter(|(by, _)| is_member(**by)).map(shown).collect()
    }

    /// The first of these refusals as a text for the state of a group.
    pub(crate) fn text(&self, is_member: impl Fn(NodeId) -> bool) -> Option<Arc<str>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let peers = lock(&self.peers);
        peers.iter().find(|(by, _)| is_member(**by)).map(|(_, refused)| refused.text.clone())
    }
}

/// What a refusal means for the refused node, and what to do. `None` for refusals that end by themselves.
fn meaning(refusal: &Refusal) -> Option<&'static str> {
    Some(match refusal {
        Refusal::WrongIncarnation { .. } => {
            "the data directory of this node is not the one that joined: it was emptied or exchanged, and its votes are \
             forgotten; put the old directory back, or keep this node stopped"
        }
        Refusal::UnknownPeer { founded, .. } if founded.is_empty() => {
            "that node is starting: it admits this node once it has started a group with this node as a member"
        }
        Refusal::UnknownPeer { .. } => {
            "no group that runs there has this node as a member: its group is not started yet, or it was founded with \
             another list"
        }
        Refusal::WrongCluster { .. } => {
            "that node belongs to another cluster: correct its address, or the cluster of this node"
        }
        Refusal::WrongNode { .. } => "the address of that peer leads to another node: correct the address",
        Refusal::Version { .. } => {
            "the releases of the two nodes do not understand each other: upgrade the older one"
        }
        Refusal::Unauthenticated { .. } | Refusal::Certificate(_) => {
            "that node does not accept the certificate of this node: correct or renew the certificate"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{FoundingHash, GroupId};
    use crate::transport::Founded;

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn a_refusal_is_shown_with_its_age_until_the_peer_admits_this_node() {
        let (refused, start) = (RefusedBy::default(), Instant::now());
        let wiped = Refusal::WrongIncarnation { peer: 3 };
        assert!(refused.refused(node(1), &wiped, start).is_some());
        let shown = refused.of(|_| true, start + Duration::from_secs(2));
        assert_eq!((shown[0].by, shown[0].age_ms), (node(1), 2_000));
        assert!(shown[0].refusal.contains("another incarnation"), "{shown:?}");
        assert!(shown[0].meaning.contains("emptied"), "{shown:?}");
        assert_eq!(refused.of(|by| by == node(2), start), []);
        assert!(refused.text(|_| true).unwrap().starts_with("refused by node 1: node 3 came with"));
        refused.admitted(node(1));
        assert_eq!((refused.of(|_| true, start), refused.text(|_| true)), (vec![], None));
    }

    #[test]
    fn a_refusal_in_either_direction_counts_until_it_ends_or_is_not_repeated() {
        let (refused, start) = (RefusedBy::default(), Instant::now());
        let age = Duration::from_secs(2);
        refused.refused(node(1), &Refusal::WrongIncarnation { peer: 3 }, start);
        refused.refuses(node(2), "wrong cluster", start + age);
        let lately = |at| refused.lately(age, start + at);
        assert!(lately(age)[&node(1)].contains("it refuses this node: node 3 came with another incarnation"));
        assert_eq!(lately(age)[&node(2)].as_ref(), "this node refuses it: wrong cluster");
        assert!(lately(2 * age).keys().eq([&node(2)]), "the other one is old");
        refused.admits(node(2));
        refused.admitted(node(1));
        assert!(lately(age).is_empty());
    }

    #[test]
    fn lines_about_one_refusal_get_rarer_and_a_refusal_that_ends_by_itself_gets_none() {
        let (refused, start) = (RefusedBy::default(), Instant::now());
        let lines = |refusal: &Refusal| {
            let at = |second| start + Duration::from_secs(second);
            (0..3_600).filter(|second| refused.refused(node(1), refusal, at(*second)).is_some()).count()
        };
        let hour = lines(&Refusal::WrongIncarnation { peer: 3 });
        assert!((5..20).contains(&hour), "{hour} lines in an hour");
        assert_eq!(lines(&Refusal::ShuttingDown), 0);
    }

    #[test]
    fn a_group_that_is_not_started_there_yet_gets_no_line_at_once() {
        let (refused, start) = (RefusedBy::default(), Instant::now());
        let unknown = Refusal::UnknownPeer { peer: 3, founded: Vec::new() };
        assert_eq!(refused.refused(node(1), &unknown, start), None);
        let meaning = refused.refused(node(1), &unknown, start + Duration::from_secs(10)).unwrap();
        assert!(meaning.contains("is starting") && unknown.to_string().contains("no group has started"));
        let founded = vec![Founded { group: GroupId::DEFAULT, founding: FoundingHash::default() }];
        let unknown = Refusal::UnknownPeer { peer: 3, founded };
        refused.refused(node(1), &unknown, start);
        assert!(refused.text(|_| true).unwrap().contains("node 3 is not a member of a group"));
    }
}
