#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(feature = "codec")]
pub mod codec;

pub use towline_engine::config::{COMMAND_BYTES_MAX, Config, ConfigError};
pub use towline_engine::errors::{
    LeaderHint, Outcome, ProposeError, ReadError, StatusError, StopError, TransferLeaderError,
    UncertainCause, WaitLeaderError,
};
pub use towline_engine::explain::{HeardVoter, Wait, WaitCause};
pub use towline_engine::identity::{Identity, IdentityError, IdentityStore};
pub use towline_engine::ids::{ClusterId, GroupId, IdError, Incarnation, NodeId, PeerAddr};
pub use towline_engine::log_store::{DiskSpace, LogError, LogReadError, LogStore};
pub use towline_engine::message::LogId;
pub use towline_engine::node::{
    Consistency, Group, GroupBuilder, Node, NodeBuilder, Proposal, SHUTDOWN_MARGIN, ShutdownReport, Start,
    StartError,
};
pub use towline_engine::reporter::SnapshotFailure;
pub use towline_engine::snapshot_store::{SnapshotHead, SnapshotMeta, SnapshotStore, SnapshotStoreError};
pub use towline_engine::state_machine::{ApplyBatch, Command, Fatal, Replies, SnapshotSource, StateMachine};
pub use towline_engine::status::{
    AttemptOutcome, AttemptStatus, GroupState, GroupStatus, LastAttempt, PeerProgress, PeerRefusal,
    PeerStatus, Role,
};
pub use towline_engine::storage::Storage;
pub use towline_engine::transport::{TransferPhase, Transport, TransportError};
pub use towline_engine::units::ByteSize;

/// The seams, for authors of transports, logs and snapshot stores.
pub use towline_engine as engine;
/// Names, handles and the exporter of the engine's metrics.
pub use towline_metrics as metrics;

#[cfg(feature = "prometheus")]
pub use towline_metrics::exporter::Exporter;

#[cfg(feature = "grpc")]
pub use towline_grpc::{GrpcConfig, GrpcTransport};
#[cfg(feature = "quic")]
pub use towline_quic::{QuicConfig, QuicTransport};
#[cfg(feature = "storage")]
pub use towline_storage::{DataDir, DataDirConfig, DataDirError, LogConfig, SnapshotConfig};
#[cfg(feature = "dev-certs")]
pub use towline_tls::dev as dev_certs;
#[cfg(any(feature = "grpc", feature = "quic"))]
pub use towline_tls::{TlsConfig, TlsError, TlsFiles};
