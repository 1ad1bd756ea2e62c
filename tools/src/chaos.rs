//! `cargo xtask chaos`: hurts the nodes of a cluster under load in many ways, again and again.
//!
//! The run then checks that no acknowledged write is lost, that the answers to clients are linearizable, that every node
//! served again soon after each fault, and that `/status` named a cause for each stall.

mod room;
mod running;
mod schedule;
mod serving;
mod stalls;
mod syncs;
mod tally;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use self::room::Room;
use self::running::{RunningFault, victims};
use self::schedule::{At, FaultKind, KINDS, Round, Schedule};
use self::stalls::Stalls;
use self::tally::Tally;
use crate::cluster::{self, Cluster, NODES, Setup, Transport};
use crate::linear::clients::{Break, Clients};
use crate::linear::report::Report;
use crate::load::Load;
use crate::process::run_in_directory;
use crate::watch::{Screen, conclude};
use crate::{Missing, Result, clock};

#[derive(clap::Args)]
pub(crate) struct ChaosOptions {
    /// How long the load runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=3600))]
    seconds: u64,
    /// Decides the faults, where, when and for how long, and what clients call; random by default
    #[arg(long)]
    seed: Option<u64>,
    /// Connections that write, each to its own keys
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    writers: u16,
    /// Make only these faults; by default all that this machine allows
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,...")]
    faults: Vec<FaultKind>,
    /// Run this towline-kv instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Falsify what the run observes; it passes only if exactly that is found
    #[arg(long = "break", value_name = "WHAT")]
    broken: Option<Break>,
}

/// The last seconds are quiet: writes must go on.
const CALM: Duration = Duration::from_secs(3);
/// Every node must serve this long after the end of a fault.
const RECOVERY_MAX: Duration = Duration::from_secs(10);
/// A node that is later than that does not recover by itself.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Snapshots come often: nodes that were away need them, and a killed node applies few entries before it serves. The log is
/// small: it reads all of it, beside the other nodes on one machine.
const SETTINGS: &str = "[engine]\nsnapshot_entries = 20_000\nsnapshot_trailing_entries = 2_000\n\
                        [log]\nfile_bytes = '16MiB'\npurge_bytes = '128MiB'\n";

pub(crate) fn run(options: &ChaosOptions) -> Result<()> {
    let binary = cluster::kv_binary(options.binary.as_deref())?;
    let kinds = possible(&options.faults)?;
    run_in_directory("chaos", async |data| {
        let mut screen = Screen::new(options.seconds);
        let rooms = if kinds.contains(&FaultKind::FullDisk) { rooms(data)? } else { BTreeMap::new() };
        let done = chaos(binary, data, options, &kinds, &rooms, &mut screen).await;
        screen.bar.finish_and_clear();
        if done.is_err() {
            keep(&rooms, data);
        }
        done
    })
}

/// The kinds of faults that this machine allows. In CI, and if the option names it, a kind that is not possible is an error.
fn possible(named: &[FaultKind]) -> Result<Vec<FaultKind>> {
    let mut kinds = if named.is_empty() { KINDS.to_vec() } else { named.to_vec() };
    let needs: [(&[FaultKind], bool, &str); 3] = [
        (&[FaultKind::HangingDisk, FaultKind::SlowDisk], syncs::can_trace(), "strace that may trace here"),
        (&[FaultKind::FullDisk], room::can_mount(), "the right to mount a tmpfs: run as root"),
        (&[FaultKind::SkewedClock], clock::library().is_some(), "libfaketime (package libfaketime)"),
    ];
    for (of, has, need) in needs {
        for kind in of.iter().filter(|kind| !has && kinds.contains(*kind)) {
            let without = format!("{kind} needs {need}");
            if !named.is_empty() || std::env::var_os("CI").is_some() {
                return Err(Missing(without).into());
            }
            println!("left out: {without}");
        }
        kinds.retain(|kind| has || !of.contains(kind));
    }
    Ok(kinds)
}

/// A disk for each node, before the cluster makes its directories.
fn rooms(data: &Path) -> Result<BTreeMap<usize, Room>> {
    (0..NODES).map(|node| Ok((node, Room::mount(&data.join(format!("node-{}", node + 1)))?))).collect()
}

/// Copies the data of nodes whose disks end with the run.
fn keep(rooms: &BTreeMap<usize, Room>, data: &Path) {
    for node in rooms.keys() {
        let (from, to) = (data.join(format!("node-{}", node + 1)), data.join(format!("kept-{}", node + 1)));
        let done = Command::new("cp").args(["-a"]).arg(&from).arg(&to).status();
        if !done.is_ok_and(|status| status.success()) {
            println!("the data of node {} is not kept", node + 1);
        }
    }
}

async fn chaos(
    binary: PathBuf,
    data: &Path,
    options: &ChaosOptions,
    kinds: &[FaultKind],
    rooms: &BTreeMap<usize, Room>,
    screen: &mut Screen,
) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    screen.say(format!(
        "nodes 1 and 2 over gRPC, node 3 over QUIC, all on loopback; {} writers, seed {seed}",
        options.writers
    ));
    let settings = data.join("settings.toml");
    fs::write(&settings, SETTINGS)?;
    let setup = Setup {
        transports: [Transport::Grpc, Transport::Grpc, Transport::Quic],
        relayed: true,
        flags: vec!["--config".to_owned(), settings.to_string_lossy().into_owned()],
        clock_library: clock::library().filter(|_| kinds.contains(&FaultKind::SkewedClock)),
        ..Setup::default()
    };
    let mut cluster = Cluster::start_with(binary, data, setup)?;
    let first = cluster.wait_leader().await?;
    let load = Load::start(cluster.redis_addresses(), first, options.writers.into(), seed);
    let until = Duration::from_secs(options.seconds);
    let clients = Clients::start(cluster.redis_addresses(), first, seed, until, options.broken);
    let begun = Instant::now();
    let mut storm = Storm {
        stalls: Stalls::watch(
            cluster.http_addresses(),
            load.acked_counter(),
            options.broken == Some(Break::Waits),
        ),
        cluster: &mut cluster,
        rooms,
        data,
        load: &load,
        begun,
        tally: Tally::default(),
        screen,
    };
    let schedule = Schedule::new(fastrand::Rng::with_seed(seed), kinds.to_vec(), until);
    let stormed = storm.run(schedule, until.saturating_sub(CALM + Schedule::lasts_max(until))).await;
    let tally = storm.tally;
    if let Err(error) = stormed {
        tally.lines().into_iter().for_each(|line| screen.say(line));
        return Err(error);
    }
    let acked_in_storm = load.acked();
    let calm = (begun.elapsed() + CALM).max(until);
    screen.watch(&load, begun, calm).await;
    if load.acked() == acked_in_storm {
        return Err("no write was acknowledged after the last fault".into());
    }
    // The load goes on while the clients end and read all keys once more.
    let noted = clients.stop().await?;
    let outcome = conclude(screen, &mut cluster, load, begun).await?;
    let report = tokio::task::block_in_place(|| Report::of(&noted, data))?;
    report.lines().into_iter().for_each(|line| screen.say(line));
    tally.lines().into_iter().for_each(|line| screen.say(line));
    // All that is wrong is reported.
    let broken = options.broken;
    let wrong: Vec<String> = [
        outcome.judge(),
        report.judge(broken == Some(Break::StaleReads)),
        tally.judge(broken == Some(Break::Waits)),
    ]
    .into_iter()
    .filter_map(|judged| Some(judged.err()?.to_string()))
    .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

struct Storm<'a> {
    stalls: Stalls,
    cluster: &'a mut Cluster,
    rooms: &'a BTreeMap<usize, Room>,
    data: &'a Path,
    load: &'a Load,
    begun: Instant,
    tally: Tally,
    screen: &'a mut Screen,
}

impl Storm<'_> {
    async fn run(&mut self, mut schedule: Schedule, until: Duration) -> Result<()> {
        while self.begun.elapsed() < until {
            let round = schedule.next().ok_or("there is no fault to make")?;
            self.round(&round).await?;
        }
        Ok(())
    }

    /// Makes the faults of one round, ends them, and waits until every node serves.
    async fn round(&mut self, round: &Round) -> Result<()> {
        let leader = self.cluster.wait_leader().await?;
        let Round { fault, beside, lasts, pause } = round;
        let mut said = format!("{:7.1} s  ", self.begun.elapsed().as_secs_f64());
        let (mut active, mut silenced) = (Vec::new(), Vec::new());
        // The mild one first: it may be of a process that the other one kills.
        for (n, fault) in beside.iter().chain([fault]).enumerate() {
            let nodes = victims(fault.at, leader);
            let begun = RunningFault::begin(fault, &nodes, self.cluster, self.rooms, self.data).await?;
            if begun.silences {
                silenced.extend(&nodes);
            }
            active.push(begun);
            let at = match fault.at {
                At::Everyone => "all nodes".to_owned(),
                _ => nodes.iter().map(|node| format!("node {}", node + 1)).collect(),
            };
            let who = if nodes == [leader] { ", the leader" } else { "" };
            said.push_str(&format!("{}{fault} at {at}{who}", if n == 0 { "" } else { ", and " }));
        }
        self.stalls.begin_anew(silenced);
        self.rest(*lasts).await?;
        // The other way round: the second one may be of the process that starts again.
        while let Some(ends) = active.pop() {
            ends.end(self.cluster)?;
        }
        self.stalls.begin_anew(Vec::new());
        let slowest = self.recovery().await?;
        let stalls = self.stalls.found();
        self.tally.round(beside.iter().chain([fault]), slowest, stalls.len(), RECOVERY_MAX);
        let recovered =
            slowest.map_or("not served".to_owned(), |took| format!("served {:.2} s", took.as_secs_f64()));
        self.screen.say(format!("{said}, for {:.1} s; {recovered} after its end", lasts.as_secs_f64()));
        stalls.into_iter().for_each(|stall| self.screen.say(format!("  UNEXPLAINED: {stall}")));
        self.cluster.check_alive()?;
        if slowest.is_none() {
            return Err(
                format!("a node does not serve {} s after the end of a fault", GIVE_UP.as_secs()).into()
            );
        }
        self.rest(*pause).await
    }

    /// How long it takes until every node serves; `None` if one does not.
    async fn recovery(&mut self) -> Result<Option<Duration>> {
        let redis = self.cluster.redis_addresses();
        let took = serving::all_serve(&redis, RECOVERY_MAX).await?;
        if let Some(slowest) = serving::slowest(&took) {
            return Ok(Some(slowest));
        }
        let said = stalls::described(&self.cluster.http_addresses()).await;
        self.screen.say(format!("  TOO LATE: nodes serve after {took:?}, and say:{said}"));
        self.cluster.check_alive()?;
        let took = serving::all_serve(&redis, GIVE_UP).await?;
        Ok(serving::slowest(&took).map(|slowest| slowest + RECOVERY_MAX))
    }

    /// Shows the load for a while. The end of a process is an error.
    async fn rest(&mut self, time: Duration) -> Result<()> {
        self.screen.watch(self.load, self.begun, self.begun.elapsed() + time).await;
        self.cluster.check_alive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As CI runs it: `xtask/src/ci.rs`.
    const SHORT: Duration = Duration::from_secs(30);
    const SHORT_SEED: u64 = 1299;
    /// An election or a start after each fault.
    const RECOVERY: Duration = Duration::from_secs(1);

    #[test]
    fn the_short_run_makes_every_kind_of_fault_and_stops_or_kills_a_leader() {
        let mut schedule = Schedule::new(fastrand::Rng::with_seed(SHORT_SEED), KINDS.to_vec(), SHORT);
        let (mut takes, mut made, mut leaders) = (Duration::ZERO, Vec::new(), 0);
        while takes < SHORT - CALM - Schedule::lasts_max(SHORT) {
            let Round { fault, lasts, pause, .. } = schedule.next().unwrap();
            takes += lasts + pause + RECOVERY;
            leaders +=
                u32::from(matches!(fault.kind, FaultKind::Kill | FaultKind::Stop) && fault.at == At::Leader);
            made.push(fault.kind);
        }
        assert!(KINDS.iter().all(|kind| made.contains(kind)) && leaders > 0, "{made:?}, {leaders} leaders");
    }
}
