//! The contract of a [`Transport`]: each sentence is a case.
//!
//! ```text
//! struct Mine { .. }
//! impl towline_testkit::suites::transport::TransportFixture for Mine { .. }
//! towline_testkit::transport_suite!(mine, Mine::new);
//! ```
//!
//! makes a module `mine` with one `#[test]` for each case. Each case gets a new fixture, which is one network. The suite
//! stands in for the engines on both sides: node 1 dials, others listen ([`RecordingInbound`](crate::doubles)). Each case
//! runs on its own multi-threaded runtime of tokio.
//!
//! Every wait has a deadline ([`TransportFixture::deadline`]). A failure names the sentence of the contract. A panic on any
//! thread of the runtime also fails the case.
//!
//! [`Capabilities`] states what may differ between transports. A fixture may also have a [`Path`] that fails on request, and
//! a [`RawStream`] that does not speak the protocol. Cases that need one of them pass without it.
//!
//! `tests/transport_flaws.rs` tests the suite itself, with broken transports.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::transport::Transport;

mod cases;
mod harness;
mod snapshot;

pub use cases::ends::*;
pub use cases::handshake::*;
pub use cases::lanes::*;
pub use cases::pressure::*;
pub use cases::slow::*;
pub use cases::snapshot_ends::*;
pub use cases::snapshots::*;
pub use cases::strangers::*;

/// The longest time of a message while another lane, a transfer or another peer is stuck or saturated. It is below the
/// shortest default election timeout, and far above the needs of a loaded machine.
pub const LANE_DELAY_MAX: Duration = Duration::from_secs(1);

/// A transport under test.
#[async_trait]
pub trait TransportFixture: Send + Sync + 'static {
    /// Makes the transport of a node, from 1 to 1000; called once for each node. Transports of one fixture reach each other.
    /// A transport that authenticates proves to be `node`.
    fn transport(&self, node: NodeId) -> Arc<dyn Transport>;

    /// An unused address to listen at, usually with port 0.
    fn address(&self) -> PeerAddr;

    /// The address of a listener that listens `at`: by default the same host with the port of `local`.
    fn reach(&self, at: &PeerAddr, local: SocketAddr) -> PeerAddr {
        let host = at.authority().rsplit_once(':').map_or("", |(host, _)| host);
        PeerAddr::new(&format!("{}://{host}:{}", at.scheme(), local.port())).unwrap()
    }

    /// What this transport can do.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// A path to a listener that fails on request. Without one, silent and broken links are not tested.
    async fn path(&self, to: &PeerAddr) -> Option<Box<dyn Path>> {
        let _ = to;
        None
    }

    /// A raw connection to a listener. Without one, garbage and silence before the hello are not tested.
    async fn raw(&self, to: &PeerAddr) -> Option<Box<dyn RawStream>> {
        let _ = to;
        None
    }

    /// The bound of each wait.
    fn deadline(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// What a transport can do, and its bounds.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Whether [`Transport::offer`] works. If not, it must return [`Unsupported`].
    ///
    /// [`Unsupported`]: towline_engine::transport::TransferError::Unsupported
    pub snapshots: bool,
    /// Whether the transport proves the dialler's identity. [`Inbound::admit`] then always gets a certificate, otherwise never.
    ///
    /// [`Inbound::admit`]: towline_engine::transport::Inbound::admit
    pub authenticates: bool,
    /// Bytes that one link takes while its receiver reads nothing: in memory of both ends and the kernel. The next dispatch
    /// waits.
    pub link_bytes_max: usize,
    /// Bytes that one snapshot transfer takes while its receiver reads nothing.
    pub transfer_bytes_max: usize,
    /// Connections or links of one listener, over all peers. The next dialler gets `TooManyConnections`. A fixture should set
    /// it low.
    pub connections_max: usize,
    /// The longest time until an idle link over a silent path ends. `None` for a transport without keep-alive.
    pub silence_max: Option<Duration>,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            snapshots: true,
            authenticates: false,
            link_bytes_max: 16 << 20,
            transfer_bytes_max: 16 << 20,
            connections_max: 256,
            silence_max: None,
        }
    }
}

/// A path to a listener that fails on request, in both directions.
pub trait Path: Send + Sync {
    /// The address to dial instead of the listener's.
    fn address(&self) -> PeerAddr;
    /// Breaks open connections. New ones pass.
    fn cut(&self);
    /// Takes everything and delivers nothing from now on.
    fn black_hole(&self);
    /// Limits the bytes per second in each direction, with a bounded queue. `false` if the path cannot do so.
    fn slow_down(&self, bytes_per_s: u64) -> bool {
        let _ = bytes_per_s;
        false
    }
    /// Bytes that arrived at the listener so far, with overhead. `None` if the path does not count.
    fn carried(&self) -> Option<u64> {
        None
    }
}

/// A byte stream to a listener.
pub trait RawStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> RawStream for T {}

/// Makes a module with one `#[test]` for each case of the suite. The second argument makes a fixture.
#[macro_export]
macro_rules! transport_suite {
    ($module:ident, $new:expr) => {
        $crate::__suite!(transport, $module, ::std::sync::Arc::new(($new)());
            both_sides_get_the_identity_of_the_other
            every_refusal_reaches_the_dialler_with_its_fields
            another_protocol_version_is_refused_on_both_sides
            connect_waits_for_the_answer_of_the_peer
            each_connection_is_admitted_separately
            another_node_than_expected_is_a_wrong_peer
            an_address_without_a_listener_is_unreachable
            listen_reports_an_address_in_use
            the_certificate_reaches_admit
            connections_are_bounded_and_the_next_dialler_is_refused
            simultaneous_diallers_are_all_admitted
            garbage_is_refused_and_others_are_admitted
            a_silent_dialler_is_cut
            a_flood_before_the_hello_is_cut
            batches_arrive_in_order_and_unchanged
            every_kind_and_field_of_a_message_arrives
            equal_messages_are_all_delivered
            a_large_batch_arrives_whole
            the_largest_message_arrives
            an_oversized_message_is_too_large_and_ends_the_link
            a_nack_concerns_one_group_and_the_lane_goes_on
            every_nack_of_a_batch_arrives
            a_stuck_append_lane_does_not_delay_control
            a_saturated_append_lane_does_not_delay_control
            a_stuck_peer_does_not_delay_another
            a_stuck_snapshot_does_not_delay_the_lanes
            a_running_snapshot_does_not_delay_the_lanes
            a_receiver_that_reads_nothing_blocks_dispatch
            small_messages_block_dispatch_too
            a_snapshot_over_a_slow_link_arrives_in_one_attempt
            appends_over_a_slow_link_arrive_once
            a_slow_link_that_dies_is_noticed
            a_receiver_that_reads_nothing_blocks_send
            a_dropped_link_closes_once_and_ends_the_session
            shutdown_of_a_listener_ends_every_link
            a_dropped_listener_ends_every_link
            a_link_with_batches_in_flight_reports_its_end
            a_violation_closes_one_lane_with_its_reason
            a_dropped_dispatch_ends_the_link
            a_failed_connect_closes_once
            a_dropped_connect_closes_once_and_leaves_nothing
            a_cut_idle_link_is_noticed
            a_silent_idle_link_is_noticed
            a_restarted_listener_reuses_its_address
            a_batch_is_never_delivered_twice
            an_offer_arrives_unchanged
            a_snapshot_of_any_length_arrives_unchanged
            a_transfer_starts_at_the_offset_the_receiver_names
            already_have_carries_the_commit_index
            every_refusal_of_an_offer_arrives_before_any_byte
            every_refusal_of_a_chunk_arrives
            every_refusal_at_the_end_arrives
            an_offer_without_a_connection_reports_the_cause
            progress_is_readable_while_send_waits
            the_sender_sees_storing_and_then_receiving
            phases_are_readable_while_finish_waits
            progress_is_readable_while_offer_waits
            concurrent_transfers_do_not_mix
            finish_waits_for_the_receipt
            a_dropped_transfer_is_a_reset
            a_dropped_send_is_a_reset
            a_dropped_finish_aborts_the_transfer
            a_dropped_offer_leaves_nothing
            a_lost_receiver_breaks_the_transfer
            a_cut_path_breaks_the_transfer_on_both_sides
        );
    };
}
