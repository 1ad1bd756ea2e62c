//! The contract of a [`Transport`]: each sentence is a case.
//!
//! ```text
//! struct Mine { .. }
//! impl towline_testkit::suites::transport::TransportFixture for Mine { .. }
//! towline_testkit::transport_suite!(mine, Mine::new);
//! ```
//!
//! makes a module `mine` with one `#[test]` for each case. Each case gets a new fixture, which is one network. The
//! suite stands in for the engines on both sides: node 1 dials, others listen ([`RecordingInbound`](crate::doubles)).
//! Each case runs on its own multi-threaded runtime of tokio.
//!
//! Every wait has a deadline ([`TransportFixture::deadline`]). A failure names the sentence of the contract. A panic on
//! any thread of the runtime also fails the case.
//!
//! [`Capabilities`] states what may differ between transports. A fixture may also have a [`Path`] that fails on
//! request, and a [`RawStream`] that does not speak the protocol. Cases that need one of them pass without it.
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

/// The longest time of a message while another lane, a transfer or another peer is stuck or saturated. It is below the
/// shortest default election timeout, and far above the needs of a loaded machine.
pub const LANE_DELAY_MAX: Duration = Duration::from_secs(1);

/// A transport under test.
#[async_trait]
pub trait TransportFixture: Send + Sync + 'static {
    /// Makes the transport of a node, from 1 to 1000; called once for each node. Transports of one fixture reach each
    /// other. A transport that authenticates proves to be `node`.
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
    /// Whether the transport proves the dialler's identity. [`Inbound::admit`] then always gets a certificate,
    /// otherwise never.
    ///
    /// [`Inbound::admit`]: towline_engine::transport::Inbound::admit
    pub authenticates: bool,
    /// Bytes that one link takes while its receiver reads nothing: in memory of both ends and the kernel. The next
    /// dispatch waits.
    pub link_bytes_max: usize,
    /// Bytes that one snapshot transfer takes while its receiver reads nothing.
    pub transfer_bytes_max: usize,
    /// Connections or links of one listener, over all peers. The next dialler gets `TooManyConnections`. A fixture
    /// should set it low.
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

/// Makes the cases and their suite from lines of topic, case, setup, and the sentence of the contract that the case holds.
macro_rules! contract {
    ($dollar:tt $($topic:ident::$case:ident: $setup:ident, $sentence:expr;)*) => {
        $(
            #[allow(missing_docs)] // its sentence documents it
            pub fn $case(fixture: Arc<dyn TransportFixture>) {
                harness::$setup(fixture, $sentence, cases::$topic::$case);
            }
        )*

        /// Makes a module with one `#[test]` for each case of the suite. The second argument makes a fixture.
        #[macro_export]
        macro_rules! transport_suite {
            ($dollar module:ident, $dollar new:expr) => {
                $crate::__suite!(transport, $dollar module, ::std::sync::Arc::new(($dollar new)()); $($case)*);
            };
        }
    };
}

contract! { $
    handshake::both_sides_get_the_identity_of_the_other: with_host, "`connect` returns the welcome, and `admit` gets the hello";
    handshake::every_refusal_reaches_the_dialler_with_its_fields: with_host,
        "a `Refusal` of `admit` is sent to the dialler, with its fields";
    handshake::another_protocol_version_is_refused_on_both_sides: with_host,
        "a peer with another `PROTOCOL_VERSION` is refused in the handshake";
    handshake::connect_waits_for_the_answer_of_the_peer: with_host, "`connect` returns once the peer has answered the handshake";
    handshake::each_connection_is_admitted_separately: with_host,
        "frames reach `deliver` only after `admit` accepted the hello of their sender";
    handshake::another_node_than_expected_is_a_wrong_peer: run,
        "`connect` gives `WrongPeer` if another node answered than was expected";
    handshake::an_address_without_a_listener_is_unreachable: with_host, "`connect` returns `Unreachable` if no listener answers";
    handshake::listen_reports_an_address_in_use: with_host, "`listen` gives `Bind` with the address if it is in use";
    handshake::the_certificate_reaches_admit: with_host,
        "`cert` is the content of the dialler's certificate, if the transport checked one";
    handshake::connections_are_bounded_and_the_next_dialler_is_refused: with_host,
        "a listener holds `connections_max` connections and refuses the next";
    handshake::simultaneous_diallers_are_all_admitted: with_host, "the peer of a session is the one that passed the handshake";
    strangers::garbage_is_refused_and_others_are_admitted: with_host,
        "`refused` reports each connection that sent no valid hello";
    strangers::a_silent_dialler_is_cut: with_host, "no hello within the handshake timeout is a refusal";
    strangers::a_flood_before_the_hello_is_cut: with_host, "a listener takes a bounded number of bytes before the hello";
    lanes::batches_arrive_in_order_and_unchanged: run, "a link is one ordered stream";
    lanes::every_kind_and_field_of_a_message_arrives: with_host, "a transport moves frames and decides nothing";
    lanes::equal_messages_are_all_delivered: with_host, "a transport merges no messages and judges none";
    lanes::a_large_batch_arrives_whole: with_host, "`dispatch` takes a batch of any size, in order";
    lanes::the_largest_message_arrives: with_host, "every transport carries an encoded message of `MESSAGE_BYTES_MAX`";
    lanes::an_oversized_message_is_too_large_and_ends_the_link: with_host,
        "`dispatch` returns `TooLarge` for a message above `MESSAGE_BYTES_MAX`, and the link ends";
    lanes::a_nack_concerns_one_group_and_the_lane_goes_on: run,
        "a nack concerns its group; other groups on the lane are not concerned";
    lanes::every_nack_of_a_batch_arrives: run, "every nack that `deliver` returns reaches the sender";
    pressure::a_stuck_append_lane_does_not_delay_control: with_host, "links of different lanes do not delay each other";
    pressure::a_saturated_append_lane_does_not_delay_control: with_host, "links of different lanes do not delay each other";
    pressure::a_stuck_peer_does_not_delay_another: run, "links to different peers do not delay each other";
    pressure::a_stuck_snapshot_does_not_delay_the_lanes: with_snapshots, "links of different lanes do not delay each other";
    pressure::a_running_snapshot_does_not_delay_the_lanes: with_snapshots, "links of different lanes do not delay each other";
    pressure::a_receiver_that_reads_nothing_blocks_dispatch: with_host,
        "a link has flow control: `dispatch` waits for the peer to make room";
    pressure::small_messages_block_dispatch_too: run, "what a link holds is bounded, however small its messages are";
    slow::a_snapshot_over_a_slow_link_arrives_in_one_attempt: run,
        "a link is alive while its peer receives what it carries, however slowly";
    slow::appends_over_a_slow_link_arrive_once: run, "a link is alive while its peer receives what it carries, however slowly";
    slow::a_slow_link_that_dies_is_noticed: run, "a dead link is detected within `silence_max`, also with batches in flight";
    pressure::a_receiver_that_reads_nothing_blocks_send: with_snapshots, "`Transfer::send` waits for flow control";
    ends::a_dropped_link_closes_once_and_ends_the_session: with_host,
        "when a link dies, `LinkFeedback::closed` is called exactly once";
    ends::shutdown_of_a_listener_ends_every_link: with_host, "`shutdown` closes what was accepted and returns when that is done";
    ends::a_dropped_listener_ends_every_link: with_host, "dropping a listener stops accepting and closes what was accepted";
    ends::a_link_with_batches_in_flight_reports_its_end: with_host,
        "when a link dies, `LinkFeedback::closed` is called exactly once";
    ends::a_violation_closes_one_lane_with_its_reason: with_host, "a `Violation` closes the lane; the sender hears why";
    ends::a_dropped_dispatch_ends_the_link: with_host, "a link ends when the future of `dispatch` is dropped before its end";
    ends::a_failed_connect_closes_once: with_host, "when a link dies, `LinkFeedback::closed` is called exactly once";
    ends::a_dropped_connect_closes_once_and_leaves_nothing: with_host, "dropping the future of `connect` aborts the attempt";
    ends::a_cut_idle_link_is_noticed: with_host, "when a link dies, `LinkFeedback::closed` is called exactly once";
    ends::a_silent_idle_link_is_noticed: run, "a transport names the time after which an idle link is known to be dead";
    ends::a_restarted_listener_reuses_its_address: with_host, "the address of a listener that was shut down is free";
    ends::a_batch_is_never_delivered_twice: with_host, "a transport retries nothing";
    snapshots::an_offer_arrives_unchanged: with_snapshots, "an offer reaches the session of the peer with all its fields";
    snapshots::a_snapshot_of_any_length_arrives_unchanged: with_snapshots,
        "a transfer gives the receiver every chunk in order, then the end";
    snapshots::a_transfer_starts_at_the_offset_the_receiver_names: with_snapshots,
        "`Accepted` carries the offset the receiver wants to start at";
    snapshots::already_have_carries_the_commit_index: with_snapshots, "`AlreadyHave` carries the receiver's commit index";
    snapshots::every_refusal_of_an_offer_arrives_before_any_byte: with_snapshots,
        "a refused offer is `OfferAnswer::Refused` with the receiver's reason";
    snapshots::every_refusal_of_a_chunk_arrives: with_snapshots,
        "a refused chunk is `TransferError::Refused` with the receiver's reason";
    snapshots::every_refusal_at_the_end_arrives: with_snapshots,
        "a refused end is `TransferError::Refused` with the receiver's reason";
    snapshots::an_offer_without_a_connection_reports_the_cause: with_snapshots,
        "an offer without a connection is `TransferError::Connect` with the cause";
    snapshots::progress_is_readable_while_send_waits: with_snapshots, "`progress` is current, also while `send` waits";
    snapshots::the_sender_sees_storing_and_then_receiving: with_snapshots,
        "a receiver reports both phases, receiving and storing";
    snapshots::phases_are_readable_while_finish_waits: with_snapshots,
        "while a receiver finishes, the transport keeps sending progress";
    snapshots::progress_is_readable_while_offer_waits: with_snapshots,
        "while a receiver decides on an offer, the transport keeps `deciding` current";
    snapshots::concurrent_transfers_do_not_mix: with_snapshots, "a transfer is a stream of its own";
    snapshots::finish_waits_for_the_receipt: with_snapshots,
        "`finish` waits until the peer has verified the snapshot, stored it and stepped it into Raft";
    snapshot_ends::a_dropped_transfer_is_a_reset: with_snapshots,
        "dropping a transfer aborts it: the peer sees a reset, never an ordinary end of stream";
    snapshot_ends::a_dropped_send_is_a_reset: with_snapshots,
        "dropping a transfer aborts it: the peer sees a reset, never an ordinary end of stream";
    snapshot_ends::a_dropped_finish_aborts_the_transfer: with_snapshots,
        "dropping the future of `finish` aborts the transfer on both sides";
    snapshot_ends::a_dropped_offer_leaves_nothing: with_snapshots, "dropping the future of `offer` aborts the attempt";
    snapshot_ends::a_lost_receiver_breaks_the_transfer: run, "a transfer whose stream broke is `TransferError::Broken`";
    snapshot_ends::a_cut_path_breaks_the_transfer_on_both_sides: with_snapshots,
        "a transfer whose stream broke is `TransferError::Broken`";
}
