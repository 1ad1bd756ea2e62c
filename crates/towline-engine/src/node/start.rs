//! Starting a group.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use tokio::sync::{Semaphore, watch};

use super::answer::answer;
use super::handle::{Group, Shared};
use super::ingress::Ingress;
use super::mail::{Control, ShardEvent, StartGroup};
use super::recover::{Recovery, Start as Recovered};
use super::target::{Machine, Target};
use super::waiter::{ReadWaiter, Waiter};
use super::{Inner, Node, StartError};
use crate::ids::{GroupId, NodeId, PeerAddr};
use crate::log_store::{ConfRecord, GroupWrite};
use crate::message::{ConfState, HardState, Member, MemberTable};
use crate::state_machine::StateMachine;
use crate::status::Role;
use crate::transport::Peer;

type CoreStart = Recovered<Waiter, ReadWaiter>;

/// Calls of `status` and `transfer` of one group that wait for the shard at a time.
const QUESTIONS_MAX: usize = 1_024;

/// How a group comes to life on a node. An empty directory never becomes a voter by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Founds a group with these voters. Every one of them is started with the same list; nothing may be stored yet.
    Bootstrap(Vec<(NodeId, PeerAddr)>),
    /// Joins a group that exists. Refused by this version: membership does not change yet.
    Join,
    /// Goes on with what is stored.
    Restart,
}

/// A group to be started.
#[must_use = "nothing happens before `start`"]
pub struct GroupBuilder<'a, S> {
    node: &'a Node,
    id: GroupId,
    machine: S,
}

impl<'a, S: StateMachine> GroupBuilder<'a, S> {
    pub(super) fn new(node: &'a Node, id: GroupId, machine: S) -> Self {
        Self { node, id, machine }
    }

    /// Starts the group: brings the state machine up to what is known to be committed, then runs it. A group that was
    /// quarantined can be started again, with a state machine opened anew.
    ///
    /// # Errors
    /// [`StartError`]; the node and its other groups are not concerned.
    pub async fn start(self, start: Start) -> Result<Group<S>, StartError> {
        let (node, group) = (&self.node.inner, self.id);
        let _reserved = node.reserve(group)?;
        // Whatever an earlier life of this group still has in the queue must be written before its log is read.
        let log_error = |cause| StartError::Log { group, cause };
        node.writer.barrier(None).await.map_err(log_error)?;
        let founding = node.clone().blocking(move |node| node.prepare(group, start)).await?;
        let quiet_ticks = if founding.is_some() { 0 } else { u64::from(node.config.election_ticks_min) };
        if let Some(write) = founding {
            node.writer.barrier(Some(write)).await.map_err(log_error)?;
        }
        // The log has the group, and it has not voted yet: from now on a log without it is a lost one.
        node.clone().blocking(move |node| Ok(node.peers.add_group(group)?)).await?;
        let metrics = Arc::new(node.metrics.group(group.as_u64()));
        let view = self.machine.view();
        let target: Box<dyn Target> = Box::new(Machine { machine: self.machine, metrics: metrics.clone() });
        let (start, target) =
            node.clone().blocking(move |node| node.recover(group, quiet_ticks, target)).await?;
        let Recovered { group: core, conf, installed } = start;
        if installed {
            let write = GroupWrite { installed, ..GroupWrite::new(group) };
            node.writer.barrier(Some(write)).await.map_err(log_error)?;
        }
        let life = node.next_life();
        let ingress = Arc::new(Ingress::new(group, &node.config, node.scheduled.clone()));
        let (state, watched) = watch::channel(core.state());
        let apply = node.applier(group).clone();
        apply.start_group(group, life, target);
        let (started, running) = answer();
        let peers = node.meet(group, &conf);
        let start = StartGroup {
            id: group,
            life,
            group: core,
            peers,
            ingress: ingress.clone(),
            state,
            apply,
            metrics: metrics.clone(),
            started,
        };
        node.shard.post(ShardEvent::Control(Control::Start(Box::new(start))));
        // Before anything is waited for: if this future is dropped, the group runs on and must be known.
        node.registry.write().unwrap_or_else(PoisonError::into_inner).insert(group, ingress.clone());
        node.states.lock().unwrap_or_else(PoisonError::into_inner).insert(group, watched.clone());
        running.await.map_err(|_| StartError::Stopped)?;
        Ok(Group::new(Shared {
            id: group,
            node: node.id,
            view,
            ingress,
            shard: node.shard.clone(),
            state: watched,
            metrics,
            proposal_bytes_max: node.config.proposal_bytes_max,
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            transfer_timeout: node.config.tick() * node.config.election_ticks_max,
        }))
    }
}

/// A start that is under way.
struct Reserved {
    node: Arc<Inner>,
    group: GroupId,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.node.starting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.group);
    }
}

impl Inner {
    /// Keeps every other start of the group out: two lives of one group at a time could vote twice.
    fn reserve(self: &Arc<Self>, group: GroupId) -> Result<Reserved, StartError> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        let known = states.get(&group);
        if known.is_some_and(|state| state.borrow().role != Role::Down) || starting.contains(&group) {
            return Err(StartError::AlreadyRuns { group });
        }
        let new = starting.iter().filter(|other| !states.contains_key(other)).count();
        if known.is_none() && states.len() + new >= self.config.groups_max {
            return Err(StartError::TooManyGroups { groups_max: self.config.groups_max });
        }
        starting.insert(group);
        Ok(Reserved { node: self.clone(), group })
    }

    async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        run: impl FnOnce(&Self) -> Result<T, StartError> + Send + 'static,
    ) -> Result<T, StartError> {
        let runtime = self.runtime.clone();
        runtime.spawn_blocking(move || run(&self)).await.map_err(StartError::ended)?
    }

    /// Checks that the act fits what is stored; gives the first write of a new group.
    fn prepare(&self, group: GroupId, start: Start) -> Result<Option<GroupWrite>, StartError> {
        let stored = self
            .store
            .recover(group)
            .map_err(|error| StartError::Log { group, cause: super::writer::describe(&error).into() })?;
        match (start, stored.conf.is_some()) {
            (Start::Join, _) => Err(StartError::JoinRefused),
            (Start::Restart, false) => Err(StartError::NothingStored { group }),
            (Start::Restart, true) => match self.peers.identity() {
                Some(_) => Ok(None),
                None => Err(StartError::NoIdentity { group }),
            },
            (Start::Bootstrap(_), true) => Err(StartError::AlreadyBootstrapped { group }),
            (Start::Bootstrap(members), false) => {
                let conf = self.founding_members(members)?;
                // The identity first: a group without one would never start, one without a group can be bootstrapped.
                self.peers.found()?;
                let hard_state = Some(HardState::default());
                Ok(Some(GroupWrite { hard_state, conf: Some(conf), ..GroupWrite::new(group) }))
            }
        }
    }

    fn founding_members(&self, list: Vec<(NodeId, PeerAddr)>) -> Result<ConfRecord, StartError> {
        let count = list.len();
        let members: MemberTable =
            list.into_iter().map(|(id, address)| (id, Member { address, incarnation: None })).collect();
        if members.len() != count {
            return Err(StartError::Members { detail: "a node is named twice".into() });
        }
        if !members.contains_key(&self.id) {
            return Err(StartError::Members { detail: format!("node {} itself is not among them", self.id) });
        }
        let conf_state = ConfState { voters: members.keys().copied().collect(), ..ConfState::default() };
        Ok(ConfRecord { conf_state, index: 0, members })
    }

    fn recover(
        &self,
        group: GroupId,
        quiet_ticks: u64,
        mut target: Box<dyn Target>,
    ) -> Result<(CoreStart, Box<dyn Target>), StartError> {
        let incarnation = self.peers.identity().map_or(0, |identity| identity.incarnation.as_u64());
        let mut origin = [0; 16];
        let (node, run) = origin.split_at_mut(8);
        node.copy_from_slice(&self.id.as_u64().to_be_bytes());
        // Unique to this run too: a leader may still remember rounds of the one before.
        run.copy_from_slice(&(incarnation ^ fastrand::u64(..)).to_be_bytes());
        let recovery = Recovery {
            store: &*self.store,
            snapshots: &*self.snapshots,
            group,
            node: self.id,
            config: &self.config,
            quiet_ticks,
            origin,
        };
        let start = recovery.run(target.as_mut())?;
        Ok((start, target))
    }

    /// Lets the other members of a group in, and calls them.
    fn meet(&self, group: GroupId, conf: &ConfRecord) -> BTreeSet<NodeId> {
        let others: BTreeSet<_> = conf.members.keys().copied().filter(|id| *id != self.id).collect();
        self.peers.set_members(group, others.clone());
        for &id in &others {
            let address = self.addresses.get(&id).or_else(|| conf.members.get(&id).map(|m| &m.address));
            if let Some(address) = address {
                let peer = Peer { id, address: address.clone() };
                self.sends.set_peer(peer.clone());
                self.lanes.set_peer(peer);
            }
        }
        others
    }
}
