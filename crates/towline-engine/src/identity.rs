//! Who a data directory belongs to, and whom it has met.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, GroupId, Incarnation, NodeId};

/// Written once, when a node is bootstrapped or joins; an empty directory never becomes a voter by itself.
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
    /// Who this directory belongs to; `None` if it is new.
    ///
    /// # Errors
    /// [`IdentityError::Corrupt`] names the file.
    fn load(&self) -> Result<Option<Identity>, IdentityError>;

    /// Writes the identity, durable when it returns.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] if there is one already.
    fn create(&self, identity: &Identity) -> Result<(), IdentityError>;

    /// The groups that were founded or joined here. A node whose log has fewer must not start: it forgot its votes.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    fn groups(&self) -> Result<BTreeSet<GroupId>, IdentityError>;

    /// Records a group that was founded or joined here, durable when it returns. Called once the log has the group
    /// durably, and before the group runs. Changes nothing if the group is recorded already.
    ///
    /// # Errors
    /// [`IdentityError::Absent`] before [`create`](Self::create); [`IdentityError::Io`].
    fn add_group(&self, group: GroupId) -> Result<(), IdentityError>;

    /// The last incarnation seen of each peer.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    fn seen(&self) -> Result<BTreeMap<NodeId, Incarnation>, IdentityError>;

    /// Remembers a peer's incarnation, durable when it returns.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    fn remember(&self, peer: NodeId, incarnation: Incarnation) -> Result<(), IdentityError>;
}

/// The identity could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The disk failed.
    #[error("identity file {file}: {during} failed")]
    Io {
        /// Which file.
        file: String,
        /// What was being done.
        during: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written, or of a later version.
    #[error("identity file {file} cannot be read: {detail}")]
    Corrupt {
        /// Which file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// The directory has no identity that a group could be recorded in.
    #[error("this data directory has no identity")]
    Absent,
    /// The directory has an identity already.
    #[error("this data directory already belongs to node {node} of cluster `{cluster}`")]
    Exists {
        /// Whose it is.
        node: NodeId,
        /// Of which cluster.
        cluster: ClusterId,
    },
}
