use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline_engine::identity::{Identity, IdentityError, IdentityStore};
use towline_engine::ids::{GroupId, Incarnation, NodeId};

/// An [`IdentityStore`] in memory. Clones share one; everything in it is durable at once. A new one is an emptied disk.
#[derive(Debug, Clone, Default)]
pub struct MemIdentity {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    identity: Option<Identity>,
    groups: BTreeSet<GroupId>,
    seen: BTreeMap<NodeId, Incarnation>,
    may_found: bool,
}

impl MemIdentity {
    /// One that belongs to nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `Start::auto` may found groups here, as on a directory made by `DataDir::create`.
    pub fn allow_founding(&self) {
        self.lock().may_found = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn seen(&self) -> Result<BTreeMap<NodeId, Incarnation>, IdentityError> {
        Ok(self.lock().seen.clone())
    }

    fn remember(&self, peer: NodeId, incarnation: Incarnation) -> Result<(), IdentityError> {
        self.lock().seen.insert(peer, incarnation);
        Ok(())
    }
}
