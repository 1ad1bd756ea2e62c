//! The metrics of Towline: names, cached handles, and byte totals of transfers.
//!
//! Engine, transports and storage count through this crate, so one name means the same everywhere. It uses the [`metrics`]
//! facade: any recorder of that ecosystem can receive the numbers. The feature `prometheus` adds an exporter with a scrape
//! endpoint.
//!
//! Limits:
//!
//! * It knows nothing of Raft. Ids are plain `u64`, and it depends on no other Towline crate.
//! * It installs no global recorder and starts nothing by itself.
//! * It takes no free-form labels. Every label value comes from a closed enum in [`labels`], except ids and the transport's
//!   name. [`PEERS_MAX`] and [`GROUPS_MAX`] bound the tables of peers and groups.
//! * It takes no time. Durations are arguments.
//!
//! Handles are made once and kept: take a [`PeerMetrics`] or a [`GroupMetrics`] at start and count on it;
//! counting is an atomic increment and allocates nothing.
//!
//! **A handle made before its recorder is installed stays a no-op for ever.** Install the global recorder
//! first, or pass one to [`NodeMetrics::new`]. Several nodes of one process may use a recorder each, or share one: the label
//! `node` tells them apart.
//!
//! ```
//! use towline_metrics::labels::{Direction, DropReason, Lane, SnapshotOutcome};
//! use towline_metrics::{ByteTally, NodeMetrics};
//!
//! let node = NodeMetrics::new(1, None); // or Some(recorder)
//! let peer = node.peer(2, "grpc");
//! peer.lane(Lane::Append).messages_sent(3);
//! peer.lane(Lane::Append).dropped(DropReason::QueueFull, 1);
//!
//! let tally = ByteTally::new(peer.snapshot_record(Direction::Sent));
//! tally.add(10);
//! tally.finish(SnapshotOutcome::Finished); // dropping it instead records `Cancelled`
//! ```

#[cfg(feature = "prometheus")]
pub mod exporter;
mod group;
mod handles;
pub mod labels;
pub mod names;
mod node;
mod peer;
mod tally;

pub use group::GroupMetrics;
pub use node::{GROUPS_MAX, NodeMetrics, PEERS_MAX, SharedRecorder};
pub use peer::{LaneMetrics, PeerMetrics};
pub use tally::{ByteTally, RecordTotal};
