//! Nodes that founded a group with different lists refuse each other by name, and never give two leaders (trials T9, T27).

use crate::common::*;

/// Where three nodes found a group.
struct World {
    net: MemNet,
    counts: Counts,
    disks: [Disk; 3],
}

struct Founder {
    node: Node,
    group: Group<ListMachine>,
}

impl World {
    fn new() -> Self {
        Self { net: MemNet::new(), counts: Counts::default(), disks: Default::default() }
    }

    async fn start(&self, id: u64, start: Start) -> Founder {
        self.net.revive(node_id(id));
        let storage = self.disks[id as usize - 1].storage();
        let builder = Node::builder(node_id(id), cluster_id()).config(quick()).storage(storage);
        let builder = self.counts.on()(node_id(id), builder).transport(self.net.transport(), address(id));
        let node = builder.start().await.unwrap();
        let group = node.group(GroupId::DEFAULT, ListMachine::new()).start(start).await.unwrap();
        Founder { node, group }
    }

    /// Starts a node that founds the group with this list.
    async fn found(&self, id: u64, ids: &[u64]) -> Founder {
        self.start(id, Start::Bootstrap(list(ids))).await
    }

    /// Starts node 1, which founds the group alone and writes to it.
    async fn found_alone(&self) -> Founder {
        let alone = self.found(1, &[1]).await;
        until("node 1 to lead", || alone.group.state().role == Role::Leader).await;
        within(alone.group.propose("own")).await.unwrap();
        alone
    }
}

impl Founder {
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
    let world = World::new();
    let odd = world.found(3, &[1, 3]).await;
    let [one, two] = [world.found(1, &[1, 2, 3]).await, world.found(2, &[1, 2, 3]).await];
    until("node 1 to name node 3", || one.is_refused_for_its_list(3)).await;
    until("node 3 to name node 1", || odd.is_refused_for_its_list(1)).await;
    until("node 2 to name node 3", || two.is_refused_for_its_list(3)).await;
    no_founder_leads(&[&one, &two, &odd]).await;
    let status = within(one.group.status()).await.unwrap();
    let named: Vec<_> = status.refusals.iter().map(|refusal| refusal.by).collect();
    assert_eq!(named, [node_id(3)]);
    let rejects = |labels: &str| world.counts.sum("towline_inbound_rejects_total", labels);
    let differently = |by: u64| rejects(&format!("node={by} cause=founded_differently"));
    until("both count", || differently(1) > 0 && differently(3) > 0).await;

    // Without it the two others found the group.
    within(odd.node.shutdown(Duration::ZERO)).await;
    world.net.kill(node_id(3));
    until("a leader", || [&one, &two].iter().any(|founder| founder.group.state().role == Role::Leader)).await;
    until("no refusal", || [&one, &two].iter().all(|founder| !founder.is_refused_for_its_list(3))).await;

    // An established group goes on, and refuses it.
    let counted = || differently(1) + rejects("cause=unknown_peer");
    let before = counted();
    let odd = world.start(3, Start::Restart).await;
    until("node 3 to name node 1", || odd.is_refused_for_its_list(1)).await;
    until("node 1 to count it", || counted() > before).await;
    let leader = if one.group.state().role == Role::Leader { &one } else { &two };
    within(leader.group.propose("established")).await.unwrap();
    assert_eq!(odd.group.state().commit, 0);
}

/// T9: two leaders acknowledged under one cluster id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_and_three_new_founders_never_both_acknowledge() {
    let world = World::new();
    let alone = world.found_alone().await;
    within(alone.node.shutdown(Duration::from_secs(5))).await;

    // A list binds at the founding only. At a later start it is a line in the log.
    let alone = world.start(1, Start::auto(list(&[1, 2, 3]))).await;
    let founders = [world.found(2, &[1, 2, 3]).await, world.found(3, &[1, 2, 3]).await];
    for founder in &founders {
        until("the founders to name node 1", || founder.is_refused_for_its_list(1)).await;
    }
    no_founder_leads(&founders.each_ref()).await;
    let refused = world.counts.sum("towline_inbound_rejects_total", "node=1 cause=unknown_peer");
    assert!(refused > 0, "node 1 counts them");
    until("node 1 to lead", || alone.group.state().role == Role::Leader).await;
    within(alone.group.propose("goes on")).await.unwrap();
}

/// The refusal of node 1 came later than the votes of the others. Both lists got a leader, and both acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founders_wait_for_one_that_answers_late_and_has_another_list() {
    let world = World::new();
    let _alone = world.found_alone().await;
    for id in [2, 3] {
        world.net.fault(node_id(id), node_id(1), Fault::Stall);
    }
    let founders = [world.found(2, &[1, 2, 3]).await, world.found(3, &[1, 2, 3]).await];
    no_founder_leads(&[&founders[0]]).await;
    world.net.heal_all();
    for founder in &founders {
        until("the founders to name node 1", || founder.is_refused_for_its_list(1)).await;
    }
    no_founder_leads(&[&founders[0]]).await;
}

/// Two nodes whose disks were emptied founded the group again. The third one has what they had acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founders_whose_earlier_directories_a_member_met_do_not_found_the_group_again() {
    let mut world = World::new();
    let one = world.found(1, &[1, 2, 3]).await;
    let others = [world.found(2, &[1, 2, 3]).await, world.found(3, &[1, 2, 3]).await];
    until("a commit", || one.group.state().commit > 0).await;
    until("node 1 to meet all", || [2, 3].iter().all(|id| world.net.links(node_id(*id), node_id(1)) == 2))
        .await;
    for founder in others {
        world.net.kill(founder.node.id());
        within(founder.node.shutdown(Duration::ZERO)).await;
    }
    world.disks = [world.disks[0].clone(), Disk::default(), Disk::default()];
    let wiped = [world.found(2, &[1, 2, 3]).await, world.found(3, &[1, 2, 3]).await];
    for wiped in &wiped {
        let refused = || wiped.group.state().refused.unwrap_or_default();
        until("the refusal", || refused().contains("came with another incarnation")).await;
    }
    // Longer than they wait for a founder that is silent.
    for _ in 0..3 {
        no_founder_leads(&[&wiped[0]]).await;
    }
}
