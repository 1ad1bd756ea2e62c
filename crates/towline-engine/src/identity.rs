//! The seam of a node's identity: its ids, its groups, and the incarnations of its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, GroupId, Incarnation, NodeId};
use crate::message::LostEntries;

/// The identity of a data directory. Written once, when a node is bootstrapped or joins: an empty directory never becomes
/// a voter by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Random, made together with the directory.
    pub incarnation: Incarnation,
}

/// Keeps the [`Identity`] of this node and the incarnations of its peers. Blocking, small.
pub trait IdentityStore: Send + Sync + 'static {
    /// Returns the identity of this directory; `None` if the directory is new.
    ///
    /// # Errors
    /// [`IdentityError::Corrupt`] names the file.
    fn load(&self) -> Result<Option<Identity>, IdentityError>;

    /// Writes the identity. It is durable when this returns.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] if the directory has an identity.
    fn create(&self, identity: &Identity) -> Result<(), IdentityError>;

    /// Whether `Start::auto` may found groups here: the storage was made for a new node, by an explicit act, and is not
    /// an emptied disk. It stays true when groups were founded. The default is `false`.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    fn may_found(&self) -> Result<bool, IdentityError> {
        Ok(false)
    }

    /// Returns the groups that were founded or joined here. A node whose log has fewer must not start: it lost its votes.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    fn groups(&self) -> Result<BTreeSet<GroupId>, IdentityError>;

    /// Records a group that was founded or joined here. The record is durable when this returns. The engine calls it when
    /// the group's log is durable and before the group runs. Recording a group again changes nothing.
    ///
    /// # Errors
    /// [`IdentityError::Absent`] before [`create`](Self::create); [`IdentityError::Io`].
    fn add_group(&self, group: GroupId) -> Result<(), IdentityError>;

    /// Returns the groups whose log lost durable entries on this node. The engine starts none of them again.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    fn lost(&self) -> Result<BTreeMap<GroupId, LostEntries>, IdentityError>;

    /// Records that the log of a group lost durable entries. The record is durable when this returns. It stays until a person
    /// removes it. The engine calls this from a thread of its own.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    fn record_lost(&self, group: GroupId, lost: LostEntries) -> Result<(), IdentityError>;

    /// Returns the last known incarnation of each peer.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    fn seen(&self) -> Result<BTreeMap<NodeId, Incarnation>, IdentityError>;

    /// Records a peer's incarnation. The record is durable when this returns.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    fn remember(&self, peer: NodeId, incarnation: Incarnation) -> Result<(), IdentityError>;
}

/// Why the identity could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The disk failed.
    #[error("identity file {file}: {during} failed")]
    Io {
        /// The file.
        file: String,
        /// The step that failed.
        during: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file is damaged or has a later version.
    #[error("identity file {file} cannot be read: {detail}")]
    Corrupt {
        /// The file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// The directory has no identity, so no group can be recorded.
    #[error("this data directory has no identity")]
    Absent,
    /// The directory already has an identity.
    #[error("this data directory already belongs to node {node} of cluster `{cluster}`")]
    Exists {
        /// The node of the existing identity.
        node: NodeId,
        /// The cluster of the existing identity.
        cluster: ClusterId,
    },
}
