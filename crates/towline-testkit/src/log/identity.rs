use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use towline_engine::identity::{Identity, IdentityError, IdentityStore};
use towline_engine::ids::{GroupId, Incarnation, NodeId};
use towline_engine::message::LostEntries;

use crate::sync::lock;

/// An [`IdentityStore`] in memory. Clones share one store, and every change is durable at once.
#[derive(Debug, Clone, Default)]
pub struct MemIdentity {
    state: Arc<Mutex<IdentityState>>,
}

#[derive(Debug, Default)]
struct IdentityState {
    identity: Option<Identity>,
    groups: BTreeSet<GroupId>,
    seen: BTreeMap<NodeId, Incarnation>,
    lost: BTreeMap<GroupId, LostEntries>,
    may_found: bool,
    peers_are_damaged: bool,
}

impl MemIdentity {
    /// A store without an identity, as on an empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `Start::auto` found groups, as in a directory of `DataDir::create`.
    pub fn allow_founding(&self) {
        self.lock().may_found = true;
    }

    /// Makes the list of peers unreadable.
    pub fn damage_peers(&self) {
        self.lock().peers_are_damaged = true;
    }

    fn lock(&self) -> MutexGuard<'_, IdentityState> {
        lock(&self.state)
    }
}

impl IdentityStore for MemIdentity {
    fn load(&self) -> Result<Option<Identity>, IdentityError> {
        Ok(self.lock().identity.clone())
    }

    fn create(&self, identity: &Identity) -> Result<(), IdentityError> {
        let mut state = self.lock();
        if let Some(there) = &state.identity {
            return Err(IdentityError::Exists { node: there.node, cluster: there.cluster.clone() });
        }
        state.identity = Some(identity.clone());
        Ok(())
    }

    fn may_found(&self) -> Result<bool, IdentityError> {
        Ok(self.lock().may_found)
    }

    fn groups(&self) -> Result<BTreeSet<GroupId>, IdentityError> {
        Ok(self.lock().groups.clone())
    }

    fn add_group(&self, group: GroupId) -> Result<(), IdentityError> {
        let mut state = self.lock();
        state.identity.as_ref().ok_or(IdentityError::Absent)?;
        state.groups.insert(group);
        Ok(())
    }

    fn lost(&self) -> Result<BTreeMap<GroupId, LostEntries>, IdentityError> {
        Ok(self.lock().lost.clone())
    }

    fn record_lost(&self, group: GroupId, lost: LostEntries) -> Result<(), IdentityError> {
        self.lock().lost.insert(group, lost);
        Ok(())
    }

    fn seen(&self) -> Result<BTreeMap<NodeId, Incarnation>, IdentityError> {
        let state = self.lock();
        match state.peers_are_damaged {
            true => Err(IdentityError::Corrupt { file: "peers".into(), detail: "torn".into() }),
            false => Ok(state.seen.clone()),
        }
    }

    fn remember(&self, peer: NodeId, incarnation: Incarnation) -> Result<(), IdentityError> {
        self.lock().seen.insert(peer, incarnation);
        Ok(())
    }
}
