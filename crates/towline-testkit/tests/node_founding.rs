//! Nodes that founded a group with different lists refuse each other by name, and never give two leaders (trials T9, T27).

use std::time::Duration;

use crate::common::Counts;
use towline_engine::ids::{GroupId, NodeId, PeerAddr};
use towline_engine::node::{Group, Node, Start};
use towline_engine::status::Role;
use towline_testkit::cluster::{Disk, cluster_id, node_id, quick, until, within};
use towline_testkit::list::ListMachine;
use towline_testkit::mem::{Fault, MemNet};

struct Founder {
    node: Node,
    group: Group<ListMachine>,
}

impl Founder {
    async fn start(net: &MemNet, counts: &Counts, id: u64, disk: &Disk, start: Start) -> Self {
        net.revive(node_id(id));
        let builder = Node::builder(node_id(id), cluster_id()).config(quick()).storage(disk.storage());
        let builder = counts.on()(node_id(id), builder).transport(net.transport(), address(id));
        let node = builder.start().await.unwrap();
        let group = node.group(GroupId::DEFAULT, ListMachine::new()).start(start).await.unwrap();
        Self { node, group }
    }

    /// Whether its state shows that `by` founded the group with another list.
    fn is_refused_for_its_list(&self, by: u64) -> bool {
        let refused = self.group.state().refused.unwrap_or_default();
        refused.starts_with(&format!("refused by node {by}: founded with another list; "))
    }
}

fn address(id: u64) -> PeerAddr {
    format!("mem://n{id}:1").parse().unwrap()
}

fn list(ids: &[u64]) -> Vec<(NodeId, PeerAddr)> {
    ids.iter().map(|id| (node_id(*id), address(*id))).collect()
}

/// Waits for several election timeouts, in which none of these nodes may follow or commit.
async fn no_founder_leads(founders: &[&Founder]) {
    for founder in founders {
        let mut states = founder.group.watch();
        let led = states.wait_for(|state| state.leader.is_some() || state.commit > 0);
        let led = tokio::time::timeout(quick().election_timeout_max * 2, led).await;
        assert!(led.is_err(), "node {}: {:?}", founder.node.id(), founder.group.state());
    }
}

/// T27: one of three nodes was started with one member left out, and was not refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_whose_list_lacks_a_member_is_refused_by_name_on_both_sides() {
    let (net, counts, disks) = (MemNet::new(), Counts::default(), [(); 3].map(|()| Disk::default()));
    let mut founders = Vec::new();
    for (id, ids) in [(3, &[1, 3][..]), (1, &[1, 2, 3]), (2, &[1, 2, 3])] {
        let start = Start::Bootstrap(list(ids));
        founders.push(Founder::start(&net, &counts, id, &disks[id as usize - 1], start).await);
    }
    let [odd, one, two] = &founders[..] else { unreachable!() };
    until("node 1 to name node 3", || one.is_refused_for_its_list(3)).await;
    until("node 3 to name node 1", || odd.is_refused_for_its_list(1)).await;
    until("node 2 to name node 3", || two.is_refused_for_its_list(3)).await;
    no_founder_leads(&[one, two, odd]).await;
    let status = within(one.group.status()).await.unwrap();
    let named: Vec<_> = status.refusals.iter().map(|refusal| refusal.by).collect();
    assert_eq!(named, [node_id(3)]);
    let rejects = |by: u64| {
        counts.sum("towline_inbound_rejects_total", &[&format!("node={by}"), "cause=founded_differently"])
    };
    until("both count", || rejects(1) > 0 && rejects(3) > 0).await;

    // Without it the two others found the group.
    within(founders.remove(0).node.shutdown(Duration::ZERO)).await;
    net.kill(node_id(3));
    let [one, two] = &founders[..] else { unreachable!() };
    until("a leader", || [one, two].iter().any(|founder| founder.group.state().role == Role::Leader)).await;
    until("no refusal", || [one, two].iter().all(|founder| !founder.is_refused_for_its_list(3))).await;

    // An established group goes on, and refuses it.
    let before = rejects(1) + counts.sum("towline_inbound_rejects_total", &["cause=unknown_peer"]);
    let odd = Founder::start(&net, &counts, 3, &disks[2], Start::Restart).await;
    until("node 3 to name node 1", || odd.is_refused_for_its_list(1)).await;
    let counted = || rejects(1) + counts.sum("towline_inbound_rejects_total", &["cause=unknown_peer"]);
    until("node 1 to count it", || counted() > before).await;
    let leader = if one.group.state().role == Role::Leader { one } else { two };
    within(leader.group.propose("established")).await.unwrap();
    assert_eq!(odd.group.state().commit, 0);
}

/// T9: two leaders acknowledged under one cluster id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_and_three_new_founders_never_both_acknowledge() {
    let (net, counts, disks) = (MemNet::new(), Counts::default(), [(); 3].map(|()| Disk::default()));
    let alone = Founder::start(&net, &counts, 1, &disks[0], Start::Bootstrap(list(&[1]))).await;
    until("node 1 to lead", || alone.group.state().role == Role::Leader).await;
    within(alone.group.propose("own")).await.unwrap();
    within(alone.node.shutdown(Duration::from_secs(5))).await;

    // A list binds at the founding only. At a later start it is a line in the log.
    let alone = Founder::start(&net, &counts, 1, &disks[0], Start::auto(list(&[1, 2, 3]))).await;
    let mut founders = Vec::new();
    for id in [2, 3] {
        let start = Start::Bootstrap(list(&[1, 2, 3]));
        founders.push(Founder::start(&net, &counts, id, &disks[id as usize - 1], start).await);
    }
    for founder in &founders {
        until("the founders to name node 1", || founder.is_refused_for_its_list(1)).await;
    }
    no_founder_leads(&founders.iter().collect::<Vec<_>>()).await;
    let refused = counts.sum("towline_inbound_rejects_total", &["node=1", "cause=unknown_peer"]);
    assert!(refused > 0, "node 1 counts them");
    until("node 1 to lead", || alone.group.state().role == Role::Leader).await;
    within(alone.group.propose("goes on")).await.unwrap();
}

/// The refusal of node 1 came later than the votes of the others. Both lists got a leader, and both acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founders_wait_for_one_that_answers_late_and_has_another_list() {
    let (net, counts, disks) = (MemNet::new(), Counts::default(), [(); 3].map(|()| Disk::default()));
    let alone = Founder::start(&net, &counts, 1, &disks[0], Start::Bootstrap(list(&[1]))).await;
    until("node 1 to lead", || alone.group.state().role == Role::Leader).await;
    within(alone.group.propose("own")).await.unwrap();
    let mut founders = Vec::new();
    for id in [2, 3] {
        net.fault(node_id(id), node_id(1), Fault::Stall);
        let start = Start::Bootstrap(list(&[1, 2, 3]));
        founders.push(Founder::start(&net, &counts, id, &disks[id as usize - 1], start).await);
    }
    no_founder_leads(&[&founders[0]]).await;
    net.heal_all();
    for founder in &founders {
        until("the founders to name node 1", || founder.is_refused_for_its_list(1)).await;
    }
    no_founder_leads(&[&founders[0]]).await;
}

/// Two nodes whose disks were emptied founded the group again. The third one has what they had acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founders_whose_earlier_directories_a_member_met_do_not_found_the_group_again() {
    let (net, counts, disks) = (MemNet::new(), Counts::default(), [(); 3].map(|()| Disk::default()));
    let mut founders = Vec::new();
    for id in [1, 2, 3] {
        let start = Start::Bootstrap(list(&[1, 2, 3]));
        founders.push(Founder::start(&net, &counts, id, &disks[id as usize - 1], start).await);
    }
    until("a commit", || founders[0].group.state().commit > 0).await;
    until("node 1 to meet all", || [2, 3].iter().all(|id| net.links(node_id(*id), node_id(1)) == 2)).await;
    for founder in founders.drain(1..) {
        net.kill(founder.node.id());
        within(founder.node.shutdown(Duration::ZERO)).await;
    }
    for id in [2, 3] {
        let start = Start::Bootstrap(list(&[1, 2, 3]));
        founders.push(Founder::start(&net, &counts, id, &Disk::default(), start).await);
    }
    for wiped in &founders[1..] {
        let refused = || wiped.group.state().refused.unwrap_or_default();
        until("the refusal", || refused().contains("came with another incarnation")).await;
    }
    // Longer than they wait for a founder that is silent.
    for _ in 0..3 {
        no_founder_leads(&[&founders[1]]).await;
    }
}
