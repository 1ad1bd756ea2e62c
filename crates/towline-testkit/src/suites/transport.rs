//! What every [`Transport`] must do: each sentence of its contract is a case here.
//!
//! ```text
//! struct Mine { .. }
//! impl towline_testkit::suites::transport::TransportFixture for Mine { .. }
//! towline_testkit::transport_suite!(mine, Mine::new);
//! ```
//!
//! makes a module `mine` with one `#[test]` a case. The macro's second argument is called once a case and gives a new
//! fixture; what one fixture makes is one network, on which the suite plays both engines: the one that dials (node 1)
//! and the ones that listen. It uses nothing but the seams of [`towline_engine::transport`] and a tokio runtime of its
//! own for each case, with several threads, so that a receiver can be held without holding the test.
//!
//! Everything waits on a condition with a deadline ([`TransportFixture::deadline`]), and a case that fails names the
//! sentence of the contract it holds. A panic on any thread of the runtime fails the case too.
//!
//! What may differ between transports stands in [`Capabilities`]; there is a case for having a capability and one for
//! not having it. Two more things are asked of the fixture where the transport's nature allows it: a [`Path`] whose bytes
//! can be stopped, and a [`RawStream`] that speaks something else than the protocol. Without them the cases that need
//! them pass without a check, which [`TransportFixture`] says at the methods.
//!
//! That the suite sees what it claims to see is itself tested, with transports broken on purpose
//! (`tests/transport_flaws.rs`).

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

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

/// How long a message of one lane may take while another lane, a transfer or another peer is stuck or saturated. Below
/// the shortest election timeout of the engine's defaults, and far above what a loaded machine needs.
pub const LANE_DELAY_MAX: Duration = Duration::from_secs(1);

/// A transport under test.
#[async_trait]
pub trait TransportFixture: Send + Sync + 'static {
    /// The transport of one node; asked for once a node. All of a fixture's reach each other. If the transport authenticates, this one proves
    /// to be `node`; any node from 1 to 1000 may be asked for.
    fn transport(&self, node: NodeId) -> Arc<dyn Transport>;

    /// An address to listen at that no one uses, usually with port 0.
    fn address(&self) -> PeerAddr;

    /// Where a listener that was asked to listen `at` is reached: usually the same host with the port it really has.
    fn reach(&self, at: &PeerAddr, local: SocketAddr) -> PeerAddr {
        let host = at.authority().rsplit_once(':').map_or("", |(host, _)| host);
        PeerAddr::new(&format!("{}://{host}:{}", at.scheme(), local.port())).unwrap()
    }

    /// What this transport can do.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// A way to a listener that can be made to fail. Without one, links that die without a word are not tried.
    async fn path(&self, to: &PeerAddr) -> Option<Box<dyn Path>> {
        let _ = to;
        None
    }

    /// A connection to a listener that does not speak the protocol (yet). Without one, garbage and silence are not tried.
    async fn raw(&self, to: &PeerAddr) -> Option<Box<dyn RawStream>> {
        let _ = to;
        None
    }

    /// How long anything may take that should happen. The suite's own proof uses a short one.
    fn deadline(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// What a transport can do, and its bounds.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Whether [`Transport::offer`] works. If not, it must say [`Unsupported`].
    ///
    /// [`Unsupported`]: towline_engine::transport::TransferError::Unsupported
    pub snapshots: bool,
    /// Whether the dialler's identity is proven: [`Inbound::admit`] then always gets a certificate, and otherwise never.
    ///
    /// [`Inbound::admit`]: towline_engine::transport::Inbound::admit
    pub authenticates: bool,
    /// Bytes that one link takes at most while its receiver takes nothing: its part of memory on both ends together with
    /// the kernel's. A dispatch beyond it waits.
    pub link_bytes_max: usize,
    /// The same for one snapshot transfer.
    pub transfer_bytes_max: usize,
    /// How many connections or links a listener holds, over all peers; the fixture sets it low where it can. A dialler
    /// beyond it, with some room for those that are only there to hear it, gets `TooManyConnections`.
    pub connections_max: usize,
    /// The longest time until an idle link over a path that swallows everything is known to be dead. `None` for a
    /// transport that cannot know: the deadline of the next dispatch then finds it.
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

/// A way to a listener that fails on request, both ways.
pub trait Path: Send + Sync {
    /// Where to dial instead of the listener's own address.
    fn address(&self) -> PeerAddr;
    /// Breaks what goes through it, now; new connections may pass.
    fn cut(&self);
    /// From now on everything is taken and nothing arrives.
    fn black_hole(&self);
    /// From now on no more than this many bytes pass in a second, each way, as over a slow link: its queue is bounded, and
    /// a sender that does not wait loses what does not fit, or is held back. Says whether it can.
    fn slow_down(&self, bytes_per_s: u64) -> bool {
        let _ = bytes_per_s;
        false
    }
    /// Bytes that have arrived at the listener's side so far, with all that the transport adds, if they are counted.
    fn carried(&self) -> Option<u64> {
        None
    }
}

/// A byte stream to a listener.
pub trait RawStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> RawStream for T {}

/// One `#[test]` for each case of the suite, in a module of its own. The second argument makes a new fixture.
#[macro_export]
macro_rules! transport_suite {
    ($module:ident, $new:expr) => {
        $crate::transport_suite!(@tests $module, $new;
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
    (@tests $module:ident, $new:expr; $($case:ident)*) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[test]
                fn $case() {
                    $crate::suites::transport::$case(::std::sync::Arc::new(($new)()));
                }
            )*
        }
    };
}
