use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline_engine::identity::{Identity, IdentityError, IdentityStore};
use towline_engine::ids::{Incarnation, NodeId};

/// An [`IdentityStore`] in memory. Clones share one; everything in it is durable at once. A new one is an emptied disk.
#[derive(Debug, Clone, Default)]
pub struct MemIdentity {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    identity: Option<Identity>,
    seen: BTreeMap<NodeId, Incarnation>,
}

impl MemIdentity {
    /// One that belongs to nobody yet.
    pub fn new() -> Self {
        Self::default()
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

    fn seen(&self) -> Result<BTreeMap<NodeId, Incarnation>, IdentityError> {
        Ok(self.lock().seen.clone())
    }

    fn remember(&self, peer: NodeId, incarnation: Incarnation) -> Result<(), IdentityError> {
        self.lock().seen.insert(peer, incarnation);
        Ok(())
    }
}
