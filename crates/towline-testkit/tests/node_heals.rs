//! Each fault of a snapshot, alone and then healed: the leader begins a new attempt within two heartbeats of its backoff, the
//! follower catches up, and every attempt has one report. The measured time starts at the heal, or at the end of the failed
//! attempt if that is later. It ends when the engine asks its transport for the next offer.

use crate::common::*;
use HealedFault::*;
use towline_testkit::mem;
use towline_testkit::proxy::{self};

const TICK: Duration = Duration::from_millis(10);

/// Long compared to the delays of a busy machine.
const HEARTBEAT: Duration = Duration::from_millis(200);

const BACKOFF_MAX: Duration = Duration::from_secs(6);

/// The delay that a busy machine may add.
const SLACK: Duration = Duration::from_millis(150);

/// The extra time after broken links: the timeout of one connect, and the wait before the next.
const RECONNECT: Duration = CONNECT.saturating_add(RECALL);
const CONNECT: Duration = Duration::from_millis(150);
const RECALL: Duration = Duration::from_millis(50);

/// The bound on log growth during a transfer, where that is the fault.
const PIN_BYTES: usize = 10_000;

fn config() -> Config {
    Config {
        tick: TICK,
        heartbeat_interval: HEARTBEAT,
        election_timeout_min: Duration::from_millis(600),
        election_timeout_max: Duration::from_millis(1_200),
        lane_connect_timeout: CONNECT,
        lane_backoff_max: RECALL,
        snapshot_backoff_max: BACKOFF_MAX,
        snapshot_bytes_per_second: ByteSize::bytes(1_000_000),
        // An attempt that kept its slot would block all later ones.
        snapshot_sends_max: 1,
        ..crate::common::config()
    }
}

/// The longest documented wait after `failures` failures in a row.
fn wait_max(failures: u64, lasting: bool) -> Duration {
    let least = HEARTBEAT * if lasting { 16 } else { 1 };
    (least * 2_u32.pow(failures as u32 - 1)).min(BACKOFF_MAX) * 5 / 4
}

/// What goes wrong with the first attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HealedFault {
    /// The sender's transport panics, stalls, refuses for the peer, or leaves an orphaned transfer.
    Offer(OfferFault),
    Sent(SnapshotFaults),
    Received(SnapshotFaults),
    /// The log grows by more than a transfer may pin, so the transfer is cancelled.
    LogGrows,
    FileRots,
    FileIsSilent,
    ReceiverDies,
    ReceiverStops,
    ReceiverDiesWhileItCommits,
    /// The receiver's disk is full at the last byte.
    DiskFull,
    /// The receiver's settings forbid the snapshot until the heal.
    TooLarge,
    /// Nothing arrives between leader and follower, and no link breaks.
    BlackHole,
    /// All links break, and connects fail.
    LinksCut,
    /// The connection breaks after this many bytes.
    WireEnds(u64),
}

impl HealedFault {
    fn breaks_links(&self) -> bool {
        let of_receiver =
            matches!(self, ReceiverDies | ReceiverStops | ReceiverDiesWhileItCommits | TooLarge);
        of_receiver || matches!(self, BlackHole | LinksCut | WireEnds(_))
    }

    fn is_lasting(&self) -> bool {
        match self {
            Offer(OfferFault::Refused(refusal)) => refusal.is_lasting(),
            fault => *fault == TooLarge,
        }
    }

    /// Applies what must be in place before the follower starts.
    fn prepare(&self, setup: &LaggingCluster) {
        let (leader, behind) = (setup.leader, setup.behind);
        // The receiver is patient, so the sender gives up.
        let mut patient = Config { snapshot_progress_timeout: Duration::from_secs(60), ..config() };
        match self {
            Offer(oddity) => setup.offers.next(oddity.clone()),
            Sent(faults) => setup.break_sent(*faults),
            Received(faults) => setup.break_received(*faults),
            FileRots => setup.damage_leader_file(),
            DiskFull => setup.full_from_start(behind, setup.latest(leader).length - 1),
            TooLarge => patient.snapshot_bytes_max = ByteSize::bytes(1_000),
            WireEnds(bytes) => {
                let flow = Flow { cut_after: Some(*bytes), ..Flow::default() };
                setup.proxies[behind as usize - 1].set(proxy::ProxyDirection::Forth, flow);
            }
            _ => {}
        }
        setup.config_from_start(behind, patient);
    }

    /// Applies what happens during the attempt.
    async fn strike(&self, setup: &mut LaggingCluster) -> Option<SnapshotGate> {
        let behind = setup.behind;
        match self {
            LogGrows => {
                setup.midway().await;
                load(&setup.cluster, 1, 2 * PIN_BYTES).await;
            }
            FileIsSilent => {
                setup.midway().await;
                return Some(setup.store(setup.leader).hold(SnapshotOp::Read));
            }
            ReceiverDies => {
                setup.midway().await;
                setup.cluster.crash(behind);
            }
            ReceiverStops => {
                setup.midway().await;
                setup.cluster.stop(behind, Duration::ZERO).await;
            }
            ReceiverDiesWhileItCommits => {
                let gate = setup.store(behind).hold(SnapshotOp::Commit);
                until("the receiver commits", || gate.wait_held(Duration::ZERO)).await;
                setup.cluster.net.kill(node_id(behind));
                setup.cluster.stop(behind, Duration::ZERO).await;
            }
            BlackHole => {
                setup.midway().await;
                between(setup, mem::Fault::Swallow);
            }
            LinksCut => {
                setup.midway().await;
                between(setup, mem::Fault::Cut);
            }
            _ => {}
        }
        None
    }

    async fn heal(&self, setup: &mut LaggingCluster) {
        setup.clear_faults();
        setup.cluster.net.heal_all();
        match self {
            TooLarge => {
                setup.config_from_start(setup.behind, config());
                setup.cluster.stop(setup.behind, Duration::ZERO).await;
                setup.restart_follower().await;
            }
            ReceiverDies | ReceiverStops | ReceiverDiesWhileItCommits => setup.restart_follower().await,
            DiskFull => setup.store(setup.behind).full_at(None),
            _ => {}
        }
    }
}

/// Breaks both ways between leader and follower; over gRPC at the follower's port.
fn between(setup: &LaggingCluster, fault: mem::Fault) {
    let (leader, behind) = (node_id(setup.leader), node_id(setup.behind));
    setup.cluster.net.fault(leader, behind, fault);
    setup.cluster.net.fault(behind, leader, fault);
    if let Some(proxy) = setup.proxies.get(setup.behind as usize - 1) {
        let hole = Flow { black_hole: true, ..Flow::default() };
        proxy::ProxyDirection::ALL.into_iter().for_each(|way| proxy.set(way, hole));
    }
}

/// An attempt that has ended, and the backoff that the leader then reports.
#[derive(Debug)]
struct Ended {
    number: u64,
    seen: Instant,
    wait: Duration,
    /// Ticks that the leader has skipped so far.
    skipped: u64,
}

fn skipped(setup: &LaggingCluster) -> u64 {
    setup.counts.sum("towline_ticks_skipped_total", &format!("node={}", setup.leader))
}

async fn ended_after(setup: &LaggingCluster, number: u64) -> (Ended, AttemptOutcome) {
    let last = setup.next_end(number).await;
    let wait = TICK * setup.peer().await.backoff_ticks as u32;
    let (number, seen, skipped) = (last.number, Instant::now(), skipped(setup));
    (Ended { number, seen, wait, skipped }, last.outcome)
}

/// Waits for the first attempt after the heal, at most as long as promised. Returns the time since the promise began.
async fn served(
    setup: &LaggingCluster,
    mut ended: Ended,
    healed: Instant,
    fault: &HealedFault,
) -> Result<Duration, String> {
    let reached = healed + if fault.breaks_links() { RECONNECT } else { Duration::ZERO };
    loop {
        // All attempts so far failed.
        let wait = ended.wait.min(wait_max(ended.number, fault.is_lasting()));
        // Backoff counts ticks, and a delayed shard skips the ticks that it missed.
        let held_up = TICK * (skipped(setup) - ended.skipped) as u32;
        let from = reached.max(ended.seen + wait + held_up);
        let end = from + 2 * HEARTBEAT + SLACK;
        let to_it = |offer: &&Offered| offer.to == node_id(setup.behind) && offer.number > ended.number;
        let next = setup.offers.offered().iter().find(to_it).copied();
        match next {
            None if Instant::now() > end => {
                return Err(format!(
                    "none within {:?} after {ended:?}: {:?}",
                    end - healed,
                    setup.peer().await
                ));
            }
            None => tokio::time::sleep(Duration::from_millis(2)).await, // not synchronisation: poll interval under a deadline
            // The attempt began before the heal was timed. If it finishes, no other follows.
            Some(next) if next.at < healed => match ended_after(setup, next.number - 1).await {
                (_, AttemptOutcome::Finished) => return Ok(Duration::ZERO),
                (last, _) => ended = last,
            },
            Some(next) if next.at > end => return Err(format!("{:?} too late: {next:?}", next.at - end)),
            Some(next) => return Ok(next.at.saturating_duration_since(from)),
        }
    }
}

async fn start(over: &str, fault: &HealedFault) -> LaggingCluster {
    let pin_bytes =
        if *fault == LogGrows { ByteSize::bytes(PIN_BYTES as u64) } else { config().snapshot_pin_bytes_max };
    let plan = Plan::new(3, 1).config(Config { snapshot_pin_bytes_max: pin_bytes, ..config() });
    match over {
        "grpc" => LaggingCluster::grpc(plan).await,
        _ => LaggingCluster::with(plan).await,
    }
}

/// Applies a fault, waits for the end of the first attempt, and heals the fault. Returns the end and the time of the heal.
async fn fails_and_heals(
    setup: &mut LaggingCluster,
    fault: &HealedFault,
    outcome: SnapshotFailure,
) -> (Ended, Instant) {
    fault.prepare(setup);
    setup.restart_follower().await;
    let gate = fault.strike(setup).await;
    let (ended, seen) = ended_after(setup, 0).await;
    assert_eq!((ended.number, seen), (1, AttemptOutcome::Failed(outcome)), "{fault:?}");
    if setup.cluster.up.contains_key(&setup.behind) {
        let restored = setup.cluster.commands(setup.behind, 1).await;
        assert!(restored.len() < 45, "{fault:?}: the failed attempt was restored");
    }
    drop(gate);
    fault.heal(setup).await;
    (ended, Instant::now())
}

/// How often a case may run. A machine that stood still delays one attempt; a fault of the engine delays each.
const TRIES: usize = 2;

async fn heals(over: &str, fault: HealedFault, outcome: SnapshotFailure) {
    let mut late = Vec::new();
    for _ in 0..TRIES {
        let mut setup = start(over, &fault).await;
        let (ended, healed) = fails_and_heals(&mut setup, &fault, outcome).await;
        let served = served(&setup, ended, healed, &fault).await;
        setup.assert_heals().await;
        match served {
            Ok(took) => return println!("{fault:?}: {} ms after the wait", took.as_millis()),
            Err(how) => late.push(how),
        }
    }
    panic!("{fault:?}: {late:#?}");
}

const REFUSED: SnapshotFailure = SnapshotFailure::Refused { lasting: false };
const REFUSED_FOR_GOOD: SnapshotFailure = SnapshotFailure::Refused { lasting: true };

fn cut_at(chunk: u64) -> SnapshotFaults {
    SnapshotFaults { cut_at_chunk: Some(chunk), ..SnapshotFaults::default() }
}

fn stalls_at(chunk: u64) -> SnapshotFaults {
    SnapshotFaults { stall_at_chunk: Some(chunk), ..SnapshotFaults::default() }
}

fn flips_in(chunk: u64) -> SnapshotFaults {
    SnapshotFaults { corrupt_chunk: Some(chunk), ..SnapshotFaults::default() }
}

fn no_trailer() -> SnapshotFaults {
    SnapshotFaults { drop_trailer: true, ..SnapshotFaults::default() }
}

/// One test a line: name, transport, fault, outcome of the first attempt.
macro_rules! heals {
    ($($name:ident: $over:literal, $fault:expr => $outcome:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            heals($over, $fault, $outcome).await;
        })*
    };
}

heals! {
    case_3_the_task_panics_before_an_answer: "mem", Offer(OfferFault::OfferPanics) => SnapshotFailure::Abandoned;
    case_3_the_task_panics_midway: "mem", Offer(OfferFault::SendPanics) => SnapshotFailure::Abandoned;
    case_3_the_task_panics_midway_over_grpc: "grpc", Offer(OfferFault::SendPanics) => SnapshotFailure::Abandoned;
    case_3_the_attempt_is_cancelled: "mem", LogGrows => SnapshotFailure::PinTooLarge;
    case_3_the_attempt_is_cancelled_over_grpc: "grpc", LogGrows => SnapshotFailure::PinTooLarge;
    case_14_the_sender_ends_at_its_first_chunk: "mem", Sent(cut_at(0)) => SnapshotFailure::Transfer;
    case_14_the_sender_ends_midway: "mem", Sent(cut_at(20)) => SnapshotFailure::Transfer;
    case_14_the_sender_ends_midway_over_grpc: "grpc", Sent(cut_at(20)) => SnapshotFailure::Transfer;
    // The leader once offered its unreadable file for ever on an idle cluster.
    case_14_the_sender_cannot_read_its_file: "mem", FileRots => SnapshotFailure::Storage;
    case_15_the_follower_is_killed_midway: "mem", ReceiverDies => SnapshotFailure::Transfer;
    case_15_the_follower_is_killed_midway_over_grpc: "grpc", ReceiverDies => SnapshotFailure::Transfer;
    case_15_the_follower_is_restarted_midway: "mem", ReceiverStops => SnapshotFailure::Transfer;
    case_15_the_follower_is_killed_while_its_file_becomes_durable: "mem",
        ReceiverDiesWhileItCommits => SnapshotFailure::Transfer;
    case_16_a_byte_is_flipped: "mem", Sent(flips_in(10)) => SnapshotFailure::Corrupt;
    case_16_a_byte_is_flipped_over_grpc: "grpc", Sent(flips_in(10)) => SnapshotFailure::Corrupt;
    case_16_the_trailer_is_missing: "mem", Sent(no_trailer()) => SnapshotFailure::Transfer;
    case_16_the_wire_ends_over_grpc: "grpc", WireEnds(300_000) => SnapshotFailure::Transfer;
    case_17_the_disk_is_full_midway: "mem", Received(cut_at(30)) => REFUSED;
    case_17_the_disk_is_full_at_the_last_byte: "mem", DiskFull => REFUSED;
    case_17_the_disk_is_full_at_the_last_byte_over_grpc: "grpc", DiskFull => REFUSED;
    case_18_the_offer_is_never_answered: "mem", Offer(OfferFault::OfferPends) => SnapshotFailure::Timeout;
    case_18_the_producer_is_silent: "mem", FileIsSilent => SnapshotFailure::Timeout;
    case_18_the_stream_is_silent: "mem", Sent(stalls_at(5)) => SnapshotFailure::Timeout;
    case_18_the_consumer_is_silent: "mem", Received(stalls_at(5)) => SnapshotFailure::Timeout;
    case_18_the_consumer_is_silent_over_grpc: "grpc", Received(stalls_at(5)) => SnapshotFailure::Timeout;
    case_18_the_peer_is_a_black_hole: "mem", BlackHole => SnapshotFailure::Timeout;
    // The sender's progress timeout is shorter than keep-alive here.
    case_18_the_port_is_a_black_hole_over_grpc: "grpc", BlackHole => SnapshotFailure::Timeout;
    case_18_all_links_break: "mem", LinksCut => SnapshotFailure::Transfer;
    case_19_the_receiver_is_busy: "mem", Offer(OfferFault::Refused(SnapshotRefusal::Busy)) => REFUSED;
    case_19_the_term_is_stale: "mem",
        Offer(OfferFault::Refused(SnapshotRefusal::StaleTerm { ours: 9, theirs: 8 })) => REFUSED;
    case_19_the_node_is_the_wrong_one: "mem", Offer(OfferFault::Refused(SnapshotRefusal::WrongNode)) => REFUSED_FOR_GOOD;
    case_19_the_snapshot_is_too_large_until_the_settings_change: "mem", TooLarge => REFUSED_FOR_GOOD;
    case_19_the_snapshot_is_too_large_until_the_settings_change_over_grpc: "grpc", TooLarge => REFUSED_FOR_GOOD;
    case_20_the_receiver_waits_for_an_orphaned_attempt: "mem",
        Offer(OfferFault::Orphaned { after: 20 }) => SnapshotFailure::Timeout;
}

/// The control: the wait after a lasting refusal is sixteen times as long, which breaks the promise for other faults.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_longer_than_documented_is_found() {
    let fault = Offer(OfferFault::Refused(SnapshotRefusal::WrongNode));
    let mut setup = start("mem", &fault).await;
    let (ended, healed) = fails_and_heals(&mut setup, &fault, REFUSED_FOR_GOOD).await;
    let late = served(&setup, ended, healed, &Sent(cut_at(0))).await;
    assert!(late.is_err(), "{late:?}");
    setup.assert_heals().await;
}

/// The control: the peer stays unreachable, because its answers are lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_is_not_healed_is_found() {
    let fault = Sent(cut_at(20));
    let mut setup = start("mem", &fault).await;
    fault.prepare(&setup);
    setup.restart_follower().await;
    let (ended, _) = ended_after(&setup, 0).await;
    fault.heal(&mut setup).await;
    let answers = setup.faults(setup.behind);
    answers.lane(Lane::Control, Direction::Out, LaneFaults { black_hole: true, ..LaneFaults::default() });
    let late = served(&setup, ended, Instant::now(), &fault).await;
    assert!(late.is_err(), "{late:?}");
    setup.assert_heals().await;
}

/// The control: after a failed attempt only a report lets Raft send the next snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn without_reports_no_attempt_follows_the_first() {
    let plan = Plan::new(3, 1).config(config()).customise(lost::outcomes);
    let mut setup = LaggingCluster::with(plan).await;
    let fault = Sent(cut_at(20));
    fault.prepare(&setup);
    setup.restart_follower().await;
    let failed = || setup.counts.sum(TRANSFERS, "direction=sent outcome=failed") == 1;
    until("the attempt has failed", failed).await;
    setup.clear_faults();
    let ended = Ended { number: 1, seen: Instant::now(), wait: BACKOFF_MAX, skipped: skipped(&setup) };
    let late = served(&setup, ended, Instant::now(), &fault).await;
    assert!(late.is_err(), "{late:?}");
    assert_eq!(setup.peer().await.progress, PeerProgress::Snapshot);
}

/// Starts the follower and drops its answers to appends once a transfer is under way.
async fn lose_acknowledgement(setup: &mut LaggingCluster) -> Faults {
    setup.restart_follower().await;
    setup.midway().await;
    let faults = setup.faults(setup.behind);
    faults.lane(Lane::Append, Direction::Out, LaneFaults { drop: 1.0, ..LaneFaults::default() });
    faults
}

fn reports(setup: &LaggingCluster) -> [u64; 2] {
    ["kind=snapshot_finish", "kind=snapshot_failure"]
        .map(|kind| setup.counts.sum(REPORTS, &format!("{kind} outcome=applied")))
}

/// Waits until the leader knows that the follower is level, and returns the time.
async fn level(setup: &LaggingCluster) -> Instant {
    let last = setup.cluster.group(setup.leader, 1).status().await.unwrap().last_index;
    eventually("the follower is level", async || {
        let peer = setup.peer().await;
        if peer.matched < last { Err(peer) } else { Ok(Instant::now()) }
    })
    .await
}

async fn a_finish_alone(over: &str) {
    let mut setup = start(over, &LinksCut).await;
    let faults = lose_acknowledgement(&mut setup).await;
    assert_eq!(setup.next_end(0).await.outcome, AttemptOutcome::Finished);
    until("the acknowledgement is lost", || faults.counts().dropped > 0).await;
    let peer = setup.peer().await;
    let index = setup.latest(setup.leader).head.at.index;
    assert!(peer.progress == PeerProgress::Probe && peer.matched < index && peer.next > index, "{peer:?}");
    faults.clear();
    let healed = Instant::now();
    let took = level(&setup).await - healed;
    assert!(took < 2 * HEARTBEAT + SLACK, "{took:?}");
    assert_eq!((reports(&setup), setup.offers.offered().len()), ([1, 0], 1));
    setup.assert_heals().await;
}

/// The receipt and Raft's acknowledgement are lost, and no caller proposes anything.
async fn an_idle_cluster_converges(over: &str) {
    let mut setup = start(over, &LinksCut).await;
    setup.offers.next(OfferFault::ReceiptIsLost);
    let faults = lose_acknowledgement(&mut setup).await;
    let (ended, outcome) = ended_after(&setup, 0).await;
    assert_eq!(outcome, AttemptOutcome::Failed(SnapshotFailure::Transfer));
    until("the acknowledgement is lost", || faults.counts().dropped > 0).await;
    faults.clear();
    let healed = Instant::now();
    served(&setup, ended, healed, &Offer(OfferFault::ReceiptIsLost)).await.unwrap();
    assert_eq!(setup.next_end(1).await.outcome, AttemptOutcome::Finished);
    level(&setup).await;
    assert_eq!(reports(&setup), [1, 1]);
    let ended = |direction: &str, outcome: &str| {
        setup.counts.sum(TRANSFERS, &format!("direction={direction} outcome={outcome}"))
    };
    assert_eq!(["failed", "already_had", "finished"].map(|outcome| ended("sent", outcome)), [1, 1, 0]);
    assert_eq!(["already_had", "finished"].map(|outcome| ended("received", outcome)), [1, 1]);
    for direction in ["sent", "received"] {
        assert_eq!(setup.bytes(direction, "already_had"), 0, "no byte is {direction} twice");
    }
    assert!(setup.cluster.settled(1).await.len() >= 45);
    assert_eq!(setup.offers.offered().len(), 2, "and there is no third");
}

/// How a leader loses its leadership.
#[derive(Debug, Clone, Copy, PartialEq)]
enum LeaderLoss {
    Transfer,
    Shutdown,
    Crash,
}

/// The next leader serves within two heartbeats of its election.
async fn leader_lost_midway(over: &str, loss: LeaderLoss) {
    let mut setup = start(over, &LinksCut).await;
    let (old, next) = (setup.leader, setup.third());
    setup.restart_follower().await;
    setup.midway().await;
    match loss {
        LeaderLoss::Transfer => setup.transfer_leadership(next).await,
        LeaderLoss::Shutdown => setup.cluster.stop(old, Duration::from_secs(1)).await,
        LeaderLoss::Crash => setup.cluster.crash(old),
    }
    until("the next one leads", || setup.cluster.group(next, 1).state().role == Role::Leader).await;
    let end = Instant::now() + 2 * HEARTBEAT + SLACK;
    let of_next = || setup.offers.offered().into_iter().find(|offer| offer.from == node_id(next));
    until("the next one offers a snapshot", || of_next().is_some()).await;
    let offered = of_next().unwrap().at;
    assert!(offered < end, "{loss:?}: {:?} too late", offered - end);
    let commands = setup.cluster.settled(1).await;
    assert!(commands.len() >= 45);
    let sent = |node: u64, outcome: &str| {
        setup.counts.sum(TRANSFERS, &format!("node={node} direction=sent outcome={outcome}"))
    };
    // Raft's acknowledgement may arrive before the receipt.
    until("the next one has finished", || sent(next, "finished") > 0).await;
    assert_eq!(
        (sent(old, "finished"), sent(old, "cancelled"), sent(next, "finished")),
        (0, 1, 1),
        "{loss:?}"
    );
    assert_eq!(setup.counts.sum(REPORTS, "outcome=synthesized"), 0);
    match loss {
        // The old leader's attempt ended with its leadership, so Raft did not take its report.
        LeaderLoss::Transfer => {
            let of_old = |outcome: &str| {
                ["finish", "failure"].map(|kind| {
                    let labels = format!("node={old} outcome={outcome} kind=snapshot_{kind}");
                    setup.counts.sum(REPORTS, &labels)
                })
            };
            until("the old report", || of_old("stale") == [0, 1]).await;
            assert_eq!(of_old("applied"), [0, 0]);
            let status = setup.cluster.group(old, 1).status().await.unwrap();
            assert!(status.peers.iter().all(|peer| peer.attempt.is_none()), "{status:?}");
        }
        LeaderLoss::Shutdown => {
            // Both sides count the bytes of the cancelled transfer. One side has counted chunks that wait in the other.
            until("both sides count the end", || setup.bytes("received", "cancelled") > 0).await;
            let (sent, received) = (setup.bytes("sent", "cancelled"), setup.bytes("received", "cancelled"));
            assert!(sent > 0 && sent.abs_diff(received) <= 16 * (16 << 10), "{received} of {sent} arrived");
            setup.cluster.restart(old).await;
            assert_eq!(setup.cluster.settled(1).await, commands);
        }
        LeaderLoss::Crash => {}
    }
}

/// One test a line: name, body.
macro_rules! cases {
    ($($name:ident: $body:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $body.await;
        })*
    };
}

cases! {
    case_2_a_finish_alone_moves_a_peer_on_whose_acknowledgement_was_lost: a_finish_alone("mem");
    case_2_a_finish_alone_moves_a_peer_on_whose_acknowledgement_was_lost_over_grpc: a_finish_alone("grpc");
    an_idle_cluster_whose_acknowledgement_was_lost_converges_with_one_finish_and_no_second_transfer: an_idle_cluster_converges("mem");
    an_idle_cluster_whose_acknowledgement_was_lost_converges_over_grpc_too: an_idle_cluster_converges("grpc");
    case_21_the_leader_changes_midway: leader_lost_midway("mem", LeaderLoss::Transfer);
    case_21_the_leader_changes_midway_over_grpc: leader_lost_midway("grpc", LeaderLoss::Transfer);
    case_3_the_leader_shuts_down_midway: leader_lost_midway("mem", LeaderLoss::Shutdown);
    case_14_the_leader_dies_midway: leader_lost_midway("mem", LeaderLoss::Crash);
}
