//! `cargo xtask demo`: kills the leader of a cluster under load, then leaves a follower behind until it needs a snapshot.
//!
//! The run passes if the follower catches up and no acknowledged write is lost.

mod latched;
mod peer;
mod rescue;
mod transfers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::cluster::{self, Cluster, LEADER_DEADLINE, NODES, Setup, Transport};
use crate::load::Load;
use crate::process::interruptible;
use crate::watch::{Screen, TICK, conclude};
use crate::{Result, svg};

use self::rescue::Rescue;

#[derive(clap::Args)]
pub(crate) struct DemoOptions {
    /// How long the load runs
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..))]
    seconds: u64,
    /// Keep the data directories after a run that passed
    #[arg(long)]
    keep: bool,
    /// Decides the order of writes and which follower is killed; random by default
    #[arg(long)]
    seed: Option<u64>,
    /// Connections that write, each to its own keys
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    writers: u16,
    /// How the nodes reach each other
    #[arg(long, value_enum, default_value_t = Transport::Grpc)]
    transport: Transport,
    /// How much is written while a follower is down
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(8..=4096))]
    megabytes: u64,
    /// The control: drop all reports about snapshots, so that the follower stays latched
    #[arg(long)]
    lose_reports: bool,
    /// Run this towline-kv instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Draw the lines of this run as an SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(crate) fn run(options: &DemoOptions) -> Result<()> {
    let binary = cluster::kv_binary(options.binary.as_deref())?;
    let data = tempfile::Builder::new().prefix("towline-demo-").tempdir()?;
    let mut screen = Screen::new(options.seconds);
    let done = interruptible(demo(binary, data.path(), options, &mut screen));
    screen.bar.finish_and_clear();

    if let Some(file) = options.svg.as_ref().filter(|_| done.is_ok()) {
        fs::write(file, svg::terminal("cargo xtask demo", &screen.lines))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    if options.keep || done.is_err() {
        println!("data and logs are kept in {}", data.keep().display());
    }
    done
}

async fn demo(binary: PathBuf, data: &Path, options: &DemoOptions, screen: &mut Screen) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let mut random = fastrand::Rng::with_seed(seed);
    let started = Instant::now();
    let over = match options.transport {
        Transport::Grpc => "gRPC",
        Transport::Quic => "QUIC",
    };
    screen.say(format!("three nodes on loopback over {over}, {} writers, seed {seed}", options.writers));
    let mut flags = rescue::settings(data, options.megabytes)?;
    if options.lose_reports {
        screen.say("control run: reports about snapshots are lost, those of the watchdog too".into());
        flags.push("--lose-reports".into());
    }
    // A proxy stalls the connection of a transfer. QUIC shares one connection among all lanes, so it gets no proxy.
    let proxied = options.transport == Transport::Grpc;
    let setup = Setup { transports: [options.transport; NODES], proxied, flags, ..Setup::default() };
    let mut cluster = Cluster::start_with(binary, data, setup)?;
    let first = cluster.wait_leader().await?;
    screen.say(format!("node {} leads after {} ms", first + 1, started.elapsed().as_millis()));

    let load = Load::start(cluster.redis_addresses(), first, options.writers.into(), seed);
    let half = Duration::from_secs(options.seconds) / 2;
    let begun = Instant::now();

    screen.watch(&load, begun, half).await;
    let leader = cluster.wait_leader().await?;
    load.watch_failover(leader);
    cluster.kill(leader)?;
    screen.say(format!("kill -9 of the leader, node {}, after {} writes", leader + 1, load.acked()));
    let failover = wait_failover(&load, screen, begun).await?;
    screen.say(format!(
        "another node took over: first write acknowledged {} ms after the kill",
        failover.as_millis()
    ));
    cluster.restart(leader)?;
    screen.say(format!("restart of node {} with the same command", leader + 1));

    screen.watch(&load, begun, half * 2).await;
    let now_leads = cluster.wait_leader().await?;
    let followers: Vec<usize> = (0..NODES).filter(|node| *node != now_leads).collect();
    let follower = random.choice(&followers).copied().ok_or("no follower")?;
    let acked_before = load.acked();
    let mut rescue = Rescue::new(&mut cluster, screen, &load, begun, now_leads, follower).await?;
    rescue.leave_behind(options.megabytes, seed).await?;
    if options.lose_reports {
        return rescue.stays_latched().await;
    }
    rescue.bring_back(options.transport).await?;
    if load.acked() == acked_before {
        return Err("no write was acknowledged while one follower of three was away".into());
    }

    let outcome = conclude(screen, &mut cluster, load, begun).await?;
    screen.say(format!("{:<26}1, first write after {} ms", "leader failovers", failover.as_millis()));
    outcome.judge()
}

async fn wait_failover(load: &Load, screen: &mut Screen, begun: Instant) -> Result<Duration> {
    let started = Instant::now();
    loop {
        if let Some(took) = load.failover() {
            return Ok(took);
        }
        if started.elapsed() > LEADER_DEADLINE {
            return Err(format!(
                "no write was acknowledged in {} s after the leader died",
                LEADER_DEADLINE.as_secs()
            )
            .into());
        }
        screen.show(load, begun);
        sleep(TICK / 10).await;
    }
}
