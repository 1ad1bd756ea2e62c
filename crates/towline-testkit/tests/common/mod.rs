//! Fixtures and imports of the test files.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub(crate) mod addresses;
pub(crate) mod counts;
pub(crate) mod distance;
pub(crate) mod lagging;
pub(crate) mod load;
pub(crate) mod lost;
pub(crate) mod offers;
pub(crate) mod seeds;

pub(crate) use std::collections::{BTreeMap, BTreeSet};
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use std::sync::{Arc, Mutex};
pub(crate) use std::time::{Duration, Instant};

pub(crate) use async_trait::async_trait;
pub(crate) use bytes::Bytes;
pub(crate) use towline_engine::{
    config::Config, errors::*, explain::*, identity::*, ids::*, log_store::*, message::*, node::*,
    reporter::*, snapshot_store::*, state_machine::*, status::*, storage::Storage, transport::*,
    units::ByteSize,
};
pub(crate) use towline_grpc::{GrpcConfig, GrpcTransport};
pub(crate) use towline_quic::{QuicConfig, QuicTransport};
pub(crate) use towline_storage::{DataDir, DataDirConfig};
pub(crate) use towline_testkit::{
    cluster::*, doubles::*, fault::*, list::*, log::*, mem::*, proxy::*, sim::*, snapshots::*,
};

pub(crate) use addresses::*;
pub(crate) use counts::*;
pub(crate) use distance::*;
pub(crate) use lagging::*;
pub(crate) use load::*;
pub(crate) use offers::*;
pub(crate) use seeds::*;
