//! Each fault of a snapshot that a node can meet, alone, and then healed: the peer is sent a new attempt within two
//! heartbeats of its backoff, catches up, and every attempt had one report. The time is taken from the heal, or from the
//! end of the attempt that failed if that is later, to the moment the transport is asked to offer the next one.

use std::time::{Duration, Instant};

use crate::common::bench::{Bench, TRANSFERS, load};
use crate::common::lost;
use crate::common::offers::{Oddity, Offered};
use towline_engine::config::Config;
use towline_engine::message::Lane;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::status::{AttemptOutcome, PeerProgress, Role};
use towline_engine::transport::SnapshotRefusal;
use towline_testkit::cluster::{DEADLINE, Plan, node_id, until};
use towline_testkit::fault::{Direction, Faults, LaneFaults, SnapshotFaults};
use towline_testkit::mem;
use towline_testkit::proxy::{self, Flow};
use towline_testkit::snapshots::{SnapshotGate, SnapshotOp};

const TICK: Duration = Duration::from_millis(10);

/// Long, so that what this machine adds is small beside it.
const HEARTBEAT: Duration = Duration::from_millis(200);

const BACKOFF_MAX: Duration = Duration::from_secs(6);

/// What the scheduling of a busy machine may add.
const SLACK: Duration = Duration::from_millis(150);

/// Where the links broke too: a call that was never answered has to end, and the wait before the next one.
const RECONNECT: Duration = Duration::from_millis(CONNECT_MS + RECALL_MS);
const CONNECT_MS: u64 = 150;
const RECALL_MS: u64 = 50;

/// By how much the log may grow during a transfer, where that is the fault.
const PIN_BYTES: usize = 10_000;

fn config() -> Config {
    Config {
        tick_ms: TICK.as_millis() as u64,
        heartbeat_ticks: (HEARTBEAT.as_millis() / TICK.as_millis()) as u32,
        election_ticks_min: 60,
        election_ticks_max: 120,
        lane_connect_timeout_ms: CONNECT_MS,
        lane_backoff_max_ms: RECALL_MS,
        snapshot_backoff_max_ms: BACKOFF_MAX.as_millis() as u64,
        snapshot_bytes_per_second: 1_000_000,
        ..crate::common::bench::config()
    }
}

/// The longest wait that is documented for an attempt after so many failures in a row.
fn wait_max(failures: u64, lasting: bool) -> Duration {
    let least = HEARTBEAT * if lasting { 16 } else { 1 };
    (least * 2_u32.pow(failures as u32 - 1)).min(BACKOFF_MAX) * 5 / 4
}

/// What goes wrong with the first attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    /// The sender's transport panics, says nothing, refuses in the name of the peer, or leaves a transfer behind in which
    /// its receiver believes.
    Odd(Oddity),
    /// To what is sent.
    Sent(SnapshotFaults),
    /// To what is received.
    Received(SnapshotFaults),
    /// By more than a transfer may pin, so that it is cancelled.
    LogGrows,
    FileRots,
    FileIsSilent,
    ReceiverDies,
    ReceiverStops,
    ReceiverDiesWhileItCommits,
    /// At the last byte.
    DiskFull,
    /// For the receiver, until somebody changes its settings.
    TooLarge,
    /// Between leader and follower nothing arrives, both ways, and nobody is told.
    BlackHole,
    /// Links break, and none can be made.
    LinksCut,
    /// After so many bytes.
    WireEnds(u64),
}
use Fault::*;

impl Fault {
    fn breaks_links(&self) -> bool {
        let of_receiver =
            matches!(self, ReceiverDies | ReceiverStops | ReceiverDiesWhileItCommits | TooLarge);
        of_receiver || matches!(self, BlackHole | LinksCut | WireEnds(_))
    }

    fn is_lasting(&self) -> bool {
        match self {
            Odd(Oddity::Refused(refusal)) => refusal.is_lasting(),
            fault => *fault == TooLarge,
        }
    }

    /// Before the follower comes back.
    fn prepare(&self, bench: &Bench) {
        let (leader, behind) = (bench.leader, bench.behind);
        // So that it is the sender that gives up.
        let mut patient = Config { snapshot_progress_timeout_ms: 60_000, ..config() };
        match self {
            Odd(oddity) => bench.offers.next(oddity.clone()),
            Sent(faults) => bench.fault(leader, Direction::Out, *faults),
            Received(faults) => {
                bench.later.lock().unwrap().insert(node_id(behind), (Direction::In, *faults));
            }
            FileRots => bench.rot(),
            DiskFull => bench.full_from_start(behind, bench.latest(leader).length - 1),
            TooLarge => patient.snapshot_bytes_max = 1_000,
            WireEnds(bytes) => {
                let flow = Flow { cut_after: Some(*bytes), ..Flow::default() };
                bench.proxies[behind as usize - 1].set(proxy::Direction::Forth, flow);
            }
            _ => {}
        }
        bench.config_from_start(behind, patient);
    }

    /// Once the attempt is under way.
    async fn strike(&self, bench: &mut Bench) -> Option<SnapshotGate> {
        let behind = bench.behind;
        match self {
            LogGrows => {
                bench.midway().await;
                load(&bench.cluster, 1, 2 * PIN_BYTES).await;
            }
            FileIsSilent => {
                bench.midway().await;
                return Some(bench.store(bench.leader).hold(SnapshotOp::Read));
            }
            ReceiverDies => {
                bench.midway().await;
                bench.cluster.crash(behind);
            }
            ReceiverStops => {
                bench.midway().await;
                bench.cluster.stop(behind, Duration::ZERO).await;
            }
            ReceiverDiesWhileItCommits => {
                let gate = bench.store(behind).hold(SnapshotOp::Commit);
                until("the receiver commits", || gate.wait_held(Duration::ZERO)).await;
                bench.cluster.net.kill(node_id(behind));
                bench.cluster.stop(behind, Duration::ZERO).await;
            }
            BlackHole => {
                bench.midway().await;
                between(bench, mem::Fault::Swallow);
            }
            LinksCut => {
                bench.midway().await;
                between(bench, mem::Fault::Cut);
            }
            _ => {}
        }
        None
    }

    async fn heal(&self, bench: &mut Bench) {
        bench.clear();
        bench.cluster.net.heal_all();
        match self {
            TooLarge => {
                bench.config_from_start(bench.behind, config());
                bench.cluster.stop(bench.behind, Duration::ZERO).await;
                bench.comes_back().await;
            }
            ReceiverDies | ReceiverStops | ReceiverDiesWhileItCommits => bench.comes_back().await,
            DiskFull => bench.store(bench.behind).full_at(None),
            _ => {}
        }
    }
}

/// Both ways between leader and follower; of a wire, at the follower's port.
fn between(bench: &Bench, fault: mem::Fault) {
    let (leader, behind) = (node_id(bench.leader), node_id(bench.behind));
    bench.cluster.net.fault(leader, behind, fault);
    bench.cluster.net.fault(behind, leader, fault);
    if let Some(proxy) = bench.proxies.get(bench.behind as usize - 1) {
        let hole = Flow { black_hole: true, ..Flow::default() };
        proxy::Direction::ALL.into_iter().for_each(|way| proxy.set(way, hole));
    }
}

/// An attempt that has ended, and the wait that the leader then says it has before it.
#[derive(Debug)]
struct Ended {
    number: u64,
    seen: Instant,
    wait: Duration,
    /// Ticks that the leader had skipped by then.
    skipped: u64,
}

fn skipped(bench: &Bench) -> u64 {
    bench.counts.sum("towline_ticks_skipped_total", &[&format!("node={}", bench.leader)])
}

async fn ended_after(bench: &Bench, number: u64) -> (Ended, AttemptOutcome) {
    let last = bench.next_end(number).await;
    let wait = TICK * bench.peer().await.backoff_ticks as u32;
    let (number, seen, skipped) = (last.number, Instant::now(), skipped(bench));
    (Ended { number, seen, wait, skipped }, last.outcome)
}

/// Waits for the first attempt that begins after the heal, for as long as the promise says, and gives the time it took from
/// where the promise begins.
async fn served(bench: &Bench, mut ended: Ended, healed: Instant, fault: &Fault) -> Result<Duration, String> {
    let reached = healed + if fault.breaks_links() { RECONNECT } else { Duration::ZERO };
    loop {
        // All attempts so far failed, and were to this peer.
        let wait = ended.wait.min(wait_max(ended.number, fault.is_lasting()));
        // Waits are ticks, and a shard that is held up skips those that are due meanwhile.
        let held_up = TICK * (skipped(bench) - ended.skipped) as u32;
        let from = reached.max(ended.seen + wait + held_up);
        let end = from + 2 * HEARTBEAT + SLACK;
        let to_it = |offer: &&Offered| offer.to == node_id(bench.behind) && offer.number > ended.number;
        let next = bench.offers.offered().iter().find(to_it).copied();
        match next {
            None if Instant::now() > end => {
                return Err(format!(
                    "none within {:?} after {ended:?}: {:?}",
                    end - healed,
                    bench.peer().await
                ));
            }
            None => tokio::time::sleep(Duration::from_millis(2)).await, // not synchronisation: between two looks
            // It began while things were still wrong; or when they had just been put right, before anybody looked at the clock:
            // a node is called back while it starts. Then it finishes, and there is no other.
            Some(next) if next.at < healed => match ended_after(bench, next.number - 1).await {
                (_, AttemptOutcome::Finished) => return Ok(Duration::ZERO),
                (last, _) => ended = last,
            },
            Some(next) if next.at > end => return Err(format!("{:?} too late: {next:?}", next.at - end)),
            Some(next) => return Ok(next.at.saturating_duration_since(from)),
        }
    }
}

async fn bench(over: &str, fault: &Fault) -> Bench {
    let pin_bytes = if *fault == LogGrows { PIN_BYTES as u64 } else { config().snapshot_pin_bytes_max };
    let plan = Plan::new(3, 1).config(Config { snapshot_pin_bytes_max: pin_bytes, ..config() });
    match over {
        "grpc" => Bench::grpc(plan).await,
        _ => Bench::with(plan).await,
    }
}

/// The fault is there, the first attempt ends of it, and it is healed. Gives when.
async fn fails_and_heals(bench: &mut Bench, fault: &Fault, outcome: SnapshotFailure) -> (Ended, Instant) {
    fault.prepare(bench);
    bench.comes_back().await;
    let gate = fault.strike(bench).await;
    let (ended, seen) = ended_after(bench, 0).await;
    assert_eq!((ended.number, seen), (1, AttemptOutcome::Failed(outcome)), "{fault:?}");
    drop(gate);
    fault.heal(bench).await;
    (ended, Instant::now())
}

/// How often a case may be tried: what delays an attempt each time is the product, and what does so once may be a machine that
/// stood still.
const TRIES: usize = 2;

async fn heals(over: &str, fault: Fault, outcome: SnapshotFailure) {
    let mut late = Vec::new();
    for _ in 0..TRIES {
        let mut bench = bench(over, &fault).await;
        let (ended, healed) = fails_and_heals(&mut bench, &fault, outcome).await;
        let served = served(&bench, ended, healed, &fault).await;
        bench.heals().await;
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

/// One test a line: name, wire, fault, what the first attempt is to end of.
macro_rules! heals {
    ($($name:ident: $over:literal, $fault:expr => $outcome:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            heals($over, $fault, $outcome).await;
        })*
    };
}

heals! {
    case_3_the_task_panics_before_an_answer: "mem", Odd(Oddity::OfferPanics) => SnapshotFailure::Abandoned;
    case_3_the_task_panics_midway: "mem", Odd(Oddity::SendPanics) => SnapshotFailure::Abandoned;
    case_3_the_task_panics_midway_over_grpc: "grpc", Odd(Oddity::SendPanics) => SnapshotFailure::Abandoned;
    case_3_the_attempt_is_cancelled: "mem", LogGrows => SnapshotFailure::PinTooLarge;
    case_3_the_attempt_is_cancelled_over_grpc: "grpc", LogGrows => SnapshotFailure::PinTooLarge;
    case_14_the_sender_ends_at_its_first_chunk: "mem", Sent(cut_at(0)) => SnapshotFailure::Transfer;
    case_14_the_sender_ends_midway: "mem", Sent(cut_at(20)) => SnapshotFailure::Transfer;
    case_14_the_sender_ends_midway_over_grpc: "grpc", Sent(cut_at(20)) => SnapshotFailure::Transfer;
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
    case_18_the_offer_is_never_answered: "mem", Odd(Oddity::OfferPends) => SnapshotFailure::Timeout;
    case_18_the_producer_is_silent: "mem", FileIsSilent => SnapshotFailure::Timeout;
    case_18_the_stream_is_silent: "mem", Sent(stalls_at(5)) => SnapshotFailure::Timeout;
    case_18_the_consumer_is_silent: "mem", Received(stalls_at(5)) => SnapshotFailure::Timeout;
    case_18_the_consumer_is_silent_over_grpc: "grpc", Received(stalls_at(5)) => SnapshotFailure::Timeout;
    case_18_the_peer_is_a_black_hole: "mem", BlackHole => SnapshotFailure::Timeout;
    // A sender that waits for an acknowledgement finds it before keep-alive does, whose time is longer here.
    case_18_the_port_is_a_black_hole_over_grpc: "grpc", BlackHole => SnapshotFailure::Timeout;
    case_18_all_links_break: "mem", LinksCut => SnapshotFailure::Transfer;
    case_19_the_receiver_is_busy: "mem", Odd(Oddity::Refused(SnapshotRefusal::Busy)) => REFUSED;
    case_19_the_term_is_stale: "mem",
        Odd(Oddity::Refused(SnapshotRefusal::StaleTerm { ours: 9, theirs: 8 })) => REFUSED;
    case_19_the_node_is_the_wrong_one: "mem", Odd(Oddity::Refused(SnapshotRefusal::WrongNode)) => REFUSED_FOR_GOOD;
    case_19_the_snapshot_is_too_large_until_somebody_allows_it: "mem", TooLarge => REFUSED_FOR_GOOD;
    case_19_the_snapshot_is_too_large_until_somebody_allows_it_over_grpc: "grpc", TooLarge => REFUSED_FOR_GOOD;
    case_20_the_receiver_believes_in_the_attempt_that_was_given_up: "mem",
        Odd(Oddity::Haunts { after: 20 }) => SnapshotFailure::Timeout;
}

/// The control: what waits sixteen times as long is not within the promise of one heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_longer_than_documented_is_found() {
    let fault = Odd(Oddity::Refused(SnapshotRefusal::WrongNode));
    let mut bench = bench("mem", &fault).await;
    let (ended, healed) = fails_and_heals(&mut bench, &fault, REFUSED_FOR_GOOD).await;
    let late = served(&bench, ended, healed, &Sent(cut_at(0))).await;
    assert!(late.is_err(), "{late:?}");
    bench.heals().await;
}

/// The control: a peer whose answers do not come is not reached, so nothing has healed.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_is_not_healed_is_found() {
    let fault = Sent(cut_at(20));
    let mut bench = bench("mem", &fault).await;
    fault.prepare(&bench);
    bench.comes_back().await;
    let (ended, _) = ended_after(&bench, 0).await;
    fault.heal(&mut bench).await;
    let answers = bench.faults.lock().unwrap()[&node_id(bench.behind)].clone();
    answers.lane(Lane::Control, Direction::Out, LaneFaults { black_hole: true, ..LaneFaults::default() });
    let late = served(&bench, ended, Instant::now(), &fault).await;
    assert!(late.is_err(), "{late:?}");
    bench.heals().await;
}

/// The control: nothing but a report ends the wait of a peer whose attempt failed.
#[tokio::test(flavor = "multi_thread")]
async fn without_reports_no_attempt_follows_the_first() {
    let plan = Plan::new(3, 1).config(config()).customise(lost::outcomes);
    let mut bench = Bench::with(plan).await;
    let fault = Sent(cut_at(20));
    fault.prepare(&bench);
    bench.comes_back().await;
    let failed = || bench.counts.sum(TRANSFERS, &["direction=sent", "outcome=failed"]) == 1;
    until("the attempt has failed", failed).await;
    bench.clear();
    let ended = Ended { number: 1, seen: Instant::now(), wait: BACKOFF_MAX, skipped: skipped(&bench) };
    let late = served(&bench, ended, Instant::now(), &fault).await;
    assert!(late.is_err(), "{late:?}");
    assert_eq!(bench.peer().await.progress, PeerProgress::Snapshot);
}

/// The follower is silent about appends, whatever else it says arrives.
async fn loses_its_acknowledgement(bench: &mut Bench) -> Faults {
    bench.comes_back().await;
    bench.midway().await;
    let faults = bench.faults.lock().unwrap()[&node_id(bench.behind)].clone();
    faults.lane(Lane::Append, Direction::Out, LaneFaults { drop: 1.0, ..LaneFaults::default() });
    faults
}

fn reports(bench: &Bench) -> [u64; 2] {
    ["kind=snapshot_finish", "kind=snapshot_failure"]
        .map(|kind| bench.counts.sum("towline_reports_total", &[kind, "outcome=applied"]))
}

/// Waits until the leader knows that the follower has all, and gives when.
async fn is_level(bench: &Bench) -> Instant {
    let last = bench.cluster.group(bench.leader, 1).status().await.unwrap().last_index;
    let end = Instant::now() + DEADLINE;
    while bench.peer().await.matched < last {
        assert!(Instant::now() < end, "{:?}", bench.peer().await);
        tokio::task::yield_now().await;
    }
    Instant::now()
}

/// Case 2.
async fn a_finish_alone(over: &str) {
    let mut bench = bench(over, &LinksCut).await;
    let faults = loses_its_acknowledgement(&mut bench).await;
    assert_eq!(bench.next_end(0).await.outcome, AttemptOutcome::Finished);
    until("the acknowledgement is lost", || faults.counts().dropped > 0).await;
    let peer = bench.peer().await;
    let index = bench.latest(bench.leader).head.at.index;
    assert!(peer.progress == PeerProgress::Probe && peer.matched < index && peer.next > index, "{peer:?}");
    faults.clear();
    let healed = Instant::now();
    let took = is_level(&bench).await - healed;
    assert!(took < 2 * HEARTBEAT + SLACK, "{took:?}");
    assert_eq!((reports(&bench), bench.offers.offered().len()), ([1, 0], 1));
    bench.heals().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_2_a_finish_alone_moves_a_peer_on_whose_acknowledgement_was_lost() {
    a_finish_alone("mem").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_2_a_finish_alone_moves_a_peer_on_whose_acknowledgement_was_lost_over_grpc() {
    a_finish_alone("grpc").await;
}

/// Case 54: neither the receipt nor Raft's acknowledgement came through, and nobody proposes anything.
async fn an_idle_cluster_converges(over: &str) {
    let mut bench = bench(over, &LinksCut).await;
    bench.offers.next(Oddity::ReceiptIsLost);
    let faults = loses_its_acknowledgement(&mut bench).await;
    let (ended, outcome) = ended_after(&bench, 0).await;
    assert_eq!(outcome, AttemptOutcome::Failed(SnapshotFailure::Transfer));
    until("the acknowledgement is lost", || faults.counts().dropped > 0).await;
    faults.clear();
    let healed = Instant::now();
    served(&bench, ended, healed, &Odd(Oddity::ReceiptIsLost)).await.unwrap();
    assert_eq!(bench.next_end(1).await.outcome, AttemptOutcome::Finished);
    is_level(&bench).await;
    assert_eq!(reports(&bench), [1, 1]);
    let sent = |outcome| bench.counts.sum(TRANSFERS, &["direction=sent", outcome]);
    assert_eq!((sent("outcome=failed"), sent("outcome=already_had"), sent("outcome=finished")), (1, 1, 0));
    assert_eq!(bench.bytes("sent", "already_had"), 0, "none of it is sent twice");
    assert!(bench.cluster.settled(1).await.len() >= 45);
    assert_eq!(bench.offers.offered().len(), 2, "and there is no third");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_cluster_whose_acknowledgement_was_lost_converges_with_one_finish_and_no_second_transfer() {
    an_idle_cluster_converges("mem").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_cluster_whose_acknowledgement_was_lost_converges_over_grpc_too() {
    an_idle_cluster_converges("grpc").await;
}

/// How a leader leaves its office.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    Transfer,
    Shutdown,
    Crash,
}

/// Cases 3 and 21: the next leader serves within two heartbeats of its election.
async fn leader_leaves_midway(over: &str, leaves: Leaves) {
    let mut bench = bench(over, &LinksCut).await;
    let (old, next) = (bench.leader, 6 - bench.leader - bench.behind);
    bench.comes_back().await;
    bench.midway().await;
    match leaves {
        Leaves::Transfer => bench.hands_over(next).await,
        Leaves::Shutdown => bench.cluster.stop(old, Duration::from_secs(1)).await,
        Leaves::Crash => bench.cluster.crash(old),
    }
    until("the next one leads", || bench.cluster.group(next, 1).state().role == Role::Leader).await;
    let end = Instant::now() + 2 * HEARTBEAT + SLACK;
    let of_next = || bench.offers.offered().into_iter().find(|offer| offer.from == node_id(next));
    until("the next one offers a snapshot", || of_next().is_some()).await;
    let offered = of_next().unwrap().at;
    assert!(offered < end, "{leaves:?}: {:?} too late", offered - end);
    assert!(bench.cluster.settled(1).await.len() >= 45);
    let sent = |node: u64, outcome: &str| {
        let labels = [format!("node={node}"), format!("outcome={outcome}")];
        bench.counts.sum(TRANSFERS, &["direction=sent", &labels[0], &labels[1]])
    };
    // Raft's own acknowledgement may come before the receipt.
    until("the next one has finished", || sent(next, "finished") > 0).await;
    assert_eq!(
        (sent(old, "finished"), sent(old, "cancelled"), sent(next, "finished")),
        (0, 1, 1),
        "{leaves:?}"
    );
    assert_eq!(bench.counts.sum("towline_reports_total", &["outcome=synthesized"]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_21_the_leader_changes_midway() {
    leader_leaves_midway("mem", Leaves::Transfer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_21_the_leader_changes_midway_over_grpc() {
    leader_leaves_midway("grpc", Leaves::Transfer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_3_the_leader_shuts_down_midway() {
    leader_leaves_midway("mem", Leaves::Shutdown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_14_the_leader_dies_midway() {
    leader_leaves_midway("mem", Leaves::Crash).await;
}
