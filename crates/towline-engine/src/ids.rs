//! Ids of nodes, groups, clusters and incarnations, and the addresses of peers.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

/// The id of a node. It is unique in its cluster for ever: never give an id to another machine or to an emptied disk.
///
/// Never zero, because Raft uses zero for "no node".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(NonZeroU64);

macro_rules! nonzero_id {
    ($($id:ty),*) => {$(
        impl $id {
            /// Creates an id; `None` for zero.
            pub const fn new(raw: u64) -> Option<Self> {
                match NonZeroU64::new(raw) {
                    Some(id) => Some(Self(id)),
                    None => None,
                }
            }

            /// The id as a number, never zero.
            pub const fn as_u64(self) -> u64 {
                self.0.get()
            }
        }
    )*};
}

nonzero_id!(NodeId, Incarnation);

impl From<NonZeroU64> for NodeId {
    fn from(id: NonZeroU64) -> Self {
        Self(id)
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(s: &str) -> Result<Self, IdError> {
        s.parse::<NonZeroU64>().map(Self).map_err(|_| IdError::Node { given: s.into() })
    }
}

/// The id of a Raft group. A node may host many groups; a service with one group uses [`GroupId::DEFAULT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(u64);

impl GroupId {
    /// The group of a cluster with a single group.
    pub const DEFAULT: Self = Self(1);

    /// Creates an id. Every number is valid.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The id as a number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// Identifies the list of founders of a group: a digest of the group's id and the founders' ids.
///
/// Nodes that founded a group with different lists refuse each other's messages of that group. The default stands for "not
/// stated", which contradicts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FoundingHash(u64);

impl FoundingHash {
    /// The hash of a list; its order has no effect. Never the default.
    pub fn of(group: GroupId, founders: impl IntoIterator<Item = NodeId>) -> Self {
        let founders: BTreeSet<NodeId> = founders.into_iter().collect();
        let mut hasher = XxHash3_128::new();
        hasher.write(b"towline founding 1\0");
        hasher.write(&group.as_u64().to_be_bytes());
        founders.into_iter().for_each(|id| hasher.write(&id.as_u64().to_be_bytes()));
        let [.., a, b, c, d, e, f, g, h] = hasher.finish_128().to_be_bytes();
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1))
    }

    /// Makes a hash from its number; zero is the default.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The hash as a number; zero if it is not stated.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whether the hash is stated.
    pub const fn is_stated(self) -> bool {
        self.0 != 0
    }

    /// Whether both are stated and differ.
    pub const fn contradicts(self, other: Self) -> bool {
        self.is_stated() && other.is_stated() && self.0 != other.0
    }
}

macro_rules! display_as_number {
    ($($id:ty),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

display_as_number!(NodeId, GroupId);

/// Conversions of a type that is made from a text by `new` and returns it by `as_str`.
macro_rules! text_conversions {
    ($($id:ty),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $id {
            type Err = IdError;

            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $id {
            type Error = IdError;

            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(&s)
            }
        }

        impl From<$id> for String {
            fn from(id: $id) -> Self {
                id.as_str().into()
            }
        }
    )*};
}

text_conversions!(ClusterId, PeerAddr);

/// The name of a cluster. Nodes of different clusters refuse each other in the handshake.
///
/// 1 to 64 characters out of ASCII letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(Arc<str>);

impl ClusterId {
    /// The longest name, in bytes.
    pub const LEN_MAX: usize = 64;

    /// The cluster called `name`.
    ///
    /// # Errors
    /// [`IdError::Cluster`] if the name is empty, too long or has another character.
    pub fn new(name: &str) -> Result<Self, IdError> {
        let fits = (1..=Self::LEN_MAX).contains(&name.len());
        if fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            Ok(Self(name.into()))
        } else {
            Err(IdError::Cluster { given: name.chars().take(Self::LEN_MAX + 1).collect() })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A random number that identifies one data directory of a node.
///
/// The handshake carries it and peers remember it. A node whose disk was emptied has another incarnation, so it cannot
/// return under its old id and vote a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(NonZeroU64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0.get())
    }
}

/// The address on which a peer listens: `scheme://host:port`. The scheme selects the registered transport.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerAddr {
    text: Arc<str>,
    scheme_len: usize,
}

impl PeerAddr {
    /// The longest address, in bytes.
    pub const LEN_MAX: usize = 512;

    /// Parses `scheme://host:port`.
    ///
    /// # Errors
    /// [`IdError::Address`] if there is no scheme, no host or no port from 0 to 65535.
    pub fn new(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Address { given: text.chars().take(80).collect() };
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let scheme_ok = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
        let host_ok = !host.is_empty() && !host.bytes().any(|b| b.is_ascii_whitespace() || b == b'/');
        if !scheme_ok || !host_ok || port.parse::<u16>().is_err() || text.len() > Self::LEN_MAX {
            return Err(bad());
        }
        Ok(Self { text: text.into(), scheme_len: scheme.len() })
    }

    /// `grpc` of `grpc://host:port`.
    pub fn scheme(&self) -> &str {
        self.text.get(..self.scheme_len).unwrap_or_default()
    }

    /// `host:port` of `grpc://host:port`.
    pub fn authority(&self) -> &str {
        self.text.get(self.scheme_len + 3..).unwrap_or_default()
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Why a text is no valid id or address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// A node id is a whole number from 1.
    #[error("invalid node id `{given}`: expected a whole number from 1")]
    Node {
        /// The text.
        given: String,
    },
    /// See [`ClusterId`] for the form.
    #[error("invalid cluster name `{given}`: expected 1 to 64 letters, digits, `-`, `_` or `.`")]
    Cluster {
        /// The text, cut to its first characters.
        given: String,
    },
    /// See [`PeerAddr`] for the form.
    #[error("invalid address `{given}`: expected `scheme://host:port`, such as `grpc://127.0.0.1:7001`")]
    Address {
        /// The text, cut to its first characters.
        given: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_is_never_zero() {
        assert!(NodeId::new(0).is_none());
        assert!("0".parse::<NodeId>().is_err());
        assert_eq!("7".parse::<NodeId>().unwrap().as_u64(), 7);
    }

    #[test]
    fn a_cluster_name_has_a_bounded_alphabet_and_length() {
        assert!(ClusterId::new("prod-eu_1.a").is_ok());
        for bad in ["", "a b", "ä", &"x".repeat(65)] {
            assert!(ClusterId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_has_scheme_host_and_port() {
        let addr = PeerAddr::new("grpc://[::1]:7001").unwrap();
        assert_eq!((addr.scheme(), addr.authority()), ("grpc", "[::1]:7001"));
        let no_port = ["grpc://", "grpc://h", "grpc://h:x", "grpc://h:70000"];
        let no_scheme_or_host = ["127.0.0.1:1", "://h:1", "grpc://:1", "g://a/b:1"];
        for bad in no_port.iter().chain(&no_scheme_or_host) {
            assert!(PeerAddr::new(bad).is_err(), "{bad}");
        }
    }
}
