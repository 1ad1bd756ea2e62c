//! The conformance suite over Unix sockets.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio::net::UnixStream;
use towline_custom_transport::{CONNECTIONS_MAX, UnixTransport};
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::transport::Transport;
use towline_testkit::suites::transport::{Capabilities, RawStream, TransportFixture};
use towline_testkit::transport_suite;

struct Unix {
    directory: tempfile::TempDir,
    hosts: AtomicU64,
}

impl Unix {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), hosts: AtomicU64::new(0) }
    }
}

#[async_trait]
impl TransportFixture for Unix {
    fn transport(&self, _node: NodeId) -> Arc<dyn Transport> {
        Arc::new(UnixTransport { directory: self.directory.path().into() })
    }

    fn address(&self) -> PeerAddr {
        PeerAddr::new(&format!("unix://host-{}:1", self.hosts.fetch_add(1, Ordering::Relaxed))).unwrap()
    }

    fn reach(&self, at: &PeerAddr, _: SocketAddr) -> PeerAddr {
        at.clone()
    }

    fn capabilities(&self) -> Capabilities {
        // A Unix socket reports the end of its peer at once, so it needs no keep-alive.
        Capabilities { connections_max: CONNECTIONS_MAX, ..Capabilities::default() }
    }

    async fn raw(&self, to: &PeerAddr) -> Option<Box<dyn RawStream>> {
        let path = self.directory.path().join(to.authority().replace(':', "-"));
        Some(Box::new(UnixStream::connect(path).await.unwrap()))
    }
}

transport_suite!(unix_sockets, Unix::new);
