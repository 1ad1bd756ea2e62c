//! Transports with one flaw each, and the case of the suite that must find it. The sound transport under them passes every case
//! (`transport_suite.rs`).

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::*;
use crate::flaws::{FlawedFixture, TransportFlaw};
use towline_testkit::suites::transport::{self as suite, TransportFixture};

/// Runs a case over a flawed transport. The case must fail by one of its own checks.
fn found_by(case: fn(Arc<dyn TransportFixture>), flaw: TransportFlaw) {
    // The sound transport must pass first.
    case(Arc::new(FlawedFixture::new(None)));
    let failed = catch_unwind(AssertUnwindSafe(|| case(Arc::new(FlawedFixture::new(Some(flaw))))));
    let panic = failed.expect_err("the case passes over a flawed transport");
    let text = panic.downcast_ref::<String>().expect("a failure with its sentence");
    let by_a_check = text.contains("the contract says") || text.contains("a transport never panics");
    assert!(by_a_check, "{text}");
}

macro_rules! found {
    ($($name:ident: $flaw:ident by $case:ident;)*) => {
        $(
            #[test]
            fn $name() {
                found_by(suite::$case, TransportFlaw::$flaw);
            }
        )*
    };
}

found! {
    closed_forgotten: ForgetsClosed by a_dropped_listener_ends_every_link;
    closed_forgotten_with_a_batch: ForgetsClosed by a_link_with_batches_in_flight_reports_its_end;
    closed_forgotten_on_a_cut: ForgetsClosed by a_cut_idle_link_is_noticed;
    closed_forgotten_of_a_failed_connect: ForgetsClosed by a_failed_connect_closes_once;
    closed_forgotten_of_a_dropped_connect: ForgetsClosed by a_dropped_connect_closes_once_and_leaves_nothing;
    nacks_lost: LosesNacks by a_nack_concerns_one_group_and_the_lane_goes_on;
    a_nack_for_every_group: NacksEveryGroup by a_nack_concerns_one_group_and_the_lane_goes_on;
    a_nack_kept_back: KeepsOneNack by every_nack_of_a_batch_arrives;
    batches_reordered: Reorders by batches_arrive_in_order_and_unchanged;
    a_batch_lost: LosesABatch by batches_arrive_in_order_and_unchanged;
    a_batch_twice: DeliversTwice by batches_arrive_in_order_and_unchanged;
    a_batch_sent_again: Retries by a_batch_is_never_delivered_twice;
    equal_messages_conflated: Conflates by equal_messages_are_all_delivered;
    a_field_lost: LosesAField by every_kind_and_field_of_a_message_arrives;
    a_large_batch_cut: CutsLargeBatches by a_large_batch_arrives_whole;
    a_small_limit: RefusesLargeMessages by the_largest_message_arrives;
    an_oversized_message_swallowed: SwallowsOversized by an_oversized_message_is_too_large_and_ends_the_link;
    control_behind_append: OneQueue by a_stuck_append_lane_does_not_delay_control;
    peers_behind_each_other: OneQueue by a_stuck_peer_does_not_delay_another;
    lanes_behind_a_snapshot: LanesBehindSnapshots by a_stuck_snapshot_does_not_delay_the_lanes;
    no_flow_control: TakesEverything by a_receiver_that_reads_nothing_blocks_dispatch;
    no_flow_control_for_small_messages: TakesEverything by small_messages_block_dispatch_too;
    a_dropped_dispatch_survived: DispatchesInTheBackground by a_dropped_dispatch_ends_the_link;
    admitted_once_for_all: AdmitsOnce by each_connection_is_admitted_separately;
    delivered_before_admit: ConnectsInTheBackground by connect_waits_for_the_answer_of_the_peer;
    a_refusal_without_its_type: FlattensRefusals by every_refusal_reaches_the_dialler_with_its_fields;
    a_version_without_its_type: FlattensRefusals by another_protocol_version_is_refused_on_both_sides;
    any_peer_accepted: AcceptsAnyPeer by another_node_than_expected_is_a_wrong_peer;
    an_unproven_identity: InventsIdentities by the_certificate_reaches_admit;
    connections_without_bound: AllowsMore by connections_are_bounded_and_the_next_dialler_is_refused;
    a_shutdown_that_closes_nothing: LeavesLinksOpen by shutdown_of_a_listener_ends_every_link;
    an_address_never_given_back: LeavesLinksOpen by a_restarted_listener_reuses_its_address;
    an_unreachable_that_answers: LeavesLinksOpen by an_address_without_a_listener_is_unreachable;
    sessions_kept: KeepsSessions by a_dropped_link_closes_once_and_ends_the_session;
    a_violation_unheard: OverlooksViolations by a_violation_closes_one_lane_with_its_reason;
    a_panic: Panics by both_sides_get_the_identity_of_the_other;
    a_welcome_made_up: MakesUpTheWelcome by both_sides_get_the_identity_of_the_other;

    a_dropped_transfer_ended: EndsDroppedTransfers by a_dropped_transfer_is_a_reset;
    a_dropped_send_ended: EndsDroppedSends by a_dropped_send_is_a_reset;
    a_sink_kept: KeepsSinks by a_dropped_transfer_is_a_reset;
    a_sink_kept_after_a_refusal: KeepsSinks by every_refusal_of_a_chunk_arrives;
    a_sink_kept_after_success: KeepsSinks by a_snapshot_of_any_length_arrives_unchanged;
    progress_frozen: FreezesProgress by progress_is_readable_while_send_waits;
    deciding_frozen: FreezesProgress by progress_is_readable_while_offer_waits;
    phases_frozen: FreezesProgress by phases_are_readable_while_finish_waits;
    storing_frozen: FreezesProgress by the_sender_sees_storing_and_then_receiving;
    storing_for_ever: KeepsTheHighestPhase by the_sender_sees_storing_and_then_receiving;
    a_receipt_too_early: GivesReceiptsEarly by finish_waits_for_the_receipt;
    a_receipt_without_a_receiver: GivesReceiptsAlways by a_lost_receiver_breaks_the_transfer;
    a_refusal_at_the_end_ignored: GivesReceiptsAlways by every_refusal_at_the_end_arrives;
    a_refusal_of_an_offer_as_broken: FlattensTransfers by every_refusal_of_an_offer_arrives_before_any_byte;
    a_refusal_midway_as_broken: FlattensTransfers by every_refusal_of_a_chunk_arrives;
    a_refused_handshake_as_broken: FlattensTransfers by an_offer_without_a_connection_reports_the_cause;
    having_it_as_a_refusal: FlattensTransfers by already_have_carries_the_commit_index;
    an_offset_ignored: IgnoresTheOffset by a_transfer_starts_at_the_offset_the_receiver_names;
    an_attempt_lost: LosesTheAttempt by an_offer_arrives_unchanged;
    a_byte_flipped: FlipsAByte by a_snapshot_of_any_length_arrives_unchanged;
    chunks_mixed_up: MixesTransfers by concurrent_transfers_do_not_mix;
    chunks_without_flow_control: TakesEverything by a_receiver_that_reads_nothing_blocks_send;
    a_finish_that_goes_on: FinishesInTheBackground by a_dropped_finish_aborts_the_transfer;
    an_offer_that_goes_on: OffersInTheBackground by a_dropped_offer_leaves_nothing;
    a_slow_link_given_up: GivesUpSlowLinks by appends_over_a_slow_link_arrive_once;
    a_slow_transfer_given_up: GivesUpSlowLinks by a_snapshot_over_a_slow_link_arrives_in_one_attempt;
    heartbeats_behind_slow_appends: OneQueue by appends_over_a_slow_link_arrive_once;
    slow_appends_twice: DeliversTwice by appends_over_a_slow_link_arrive_once;
    a_cut_unnoticed_by_the_sender: HidesBreaks by a_cut_path_breaks_the_transfer_on_both_sides;
}
