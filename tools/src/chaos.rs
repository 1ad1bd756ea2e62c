//! `cargo xtask chaos`: kills the nodes of a cluster under load, or stops them for a while, again and again.
//!
//! The run then proves that no acknowledged write is lost and that the answers to clients are linearizable.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Result;
use crate::cluster::{self, Cluster, NODES};
use crate::linear::clients::{Break, Clients};
use crate::linear::report::Report;
use crate::load::Load;
use crate::process::run_in_directory;
use crate::watch::{Screen, conclude};

#[derive(clap::Args)]
pub(crate) struct ChaosOptions {
    /// How long the load runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=3600))]
    seconds: u64,
    /// Decides which nodes are killed or stopped, when and for how long, and what clients call; random by default
    #[arg(long)]
    seed: Option<u64>,
    /// Connections that write, each to its own keys
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    writers: u16,
    /// Run this towline-kv instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Falsify notes of clients; the run passes only if the checker finds exactly those keys
    #[arg(long = "break", value_name = "WHAT")]
    broken: Option<Break>,
}

const CALM: Duration = Duration::from_secs(5);

pub(crate) fn run(options: &ChaosOptions) -> Result<()> {
    let binary = cluster::kv_binary(options.binary.as_deref())?;
    run_in_directory("chaos", async |data| {
        let mut screen = Screen::new(options.seconds);
        let done = chaos(binary, data, options, &mut screen).await;
        screen.bar.finish_and_clear();
        done
    })
}

async fn chaos(binary: PathBuf, data: &Path, options: &ChaosOptions, screen: &mut Screen) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let random = fastrand::Rng::with_seed(seed);
    screen.say(format!("three nodes on loopback, {} writers, seed {seed}", options.writers));
    let mut cluster = Cluster::start(binary, data)?;
    let first = cluster.wait_leader().await?;
    let load = Load::start(cluster.redis_addresses(), first, options.writers.into(), seed);
    let until = Duration::from_secs(options.seconds);
    let clients = Clients::start(cluster.redis_addresses(), first, seed, until, options.broken);
    let begun = Instant::now();
    // The last seconds are quiet: writes must go on.
    let storm = until.saturating_sub(CALM);
    let blows =
        Storm { random, blows: Blows::default() }.run(&mut cluster, &load, begun, storm, screen).await?;
    let acked_in_storm = load.acked();
    cluster.wait_leader().await?;
    let calm = (begun.elapsed() + Duration::from_secs(3)).max(until);
    screen.watch(&load, begun, calm).await;
    if load.acked() == acked_in_storm {
        return Err("no write was acknowledged after the last restart".into());
    }
    // The load goes on while the clients end and read all keys once more.
    let noted = clients.stop().await?;
    let outcome = conclude(screen, &mut cluster, load, begun).await?;
    let report = tokio::task::block_in_place(|| Report::of(&noted, data))?;
    report.lines().into_iter().for_each(|line| screen.say(line));
    let Blows { killed, stopped } = blows;
    screen.say(format!("{:<26}{} leaders, {} followers", "kill -9", killed.leaders, killed.followers));
    screen.say(format!(
        "{:<26}{} leaders, {} followers",
        "stopped for a while", stopped.leaders, stopped.followers
    ));
    // If both are wrong, both are reported.
    let (linear, kept) = (report.judge(options.broken.is_some()), outcome.judge());
    match (linear, kept) {
        (Err(linear), Err(kept)) => Err(format!("{kept}; {linear}").into()),
        (linear, kept) => linear.and(kept),
    }
}

/// How many nodes were hit.
#[derive(Clone, Copy, Default)]
struct Hit {
    leaders: u32,
    followers: u32,
}

#[derive(Clone, Copy, Default)]
struct Blows {
    killed: Hit,
    stopped: Hit,
}

/// One fault of one node.
struct Blow {
    /// `None` is the current leader.
    at: Option<usize>,
    /// Stop the node instead of killing it. A stopped leader that continues still believes that it leads.
    stop: bool,
    down: Duration,
    /// Time until the next fault.
    up: Duration,
}

impl Blow {
    fn next(random: &mut fastrand::Rng) -> Self {
        Self {
            at: (!random.bool()).then(|| random.usize(..NODES)),
            stop: random.u8(..3) == 0,
            down: Duration::from_millis(random.u64(50..3_000)),
            up: Duration::from_millis(random.u64(200..2_500)),
        }
    }
}

struct Storm {
    random: fastrand::Rng,
    blows: Blows,
}

impl Storm {
    async fn run(
        mut self,
        cluster: &mut Cluster,
        load: &Load,
        begun: Instant,
        until: Duration,
        screen: &mut Screen,
    ) -> Result<Blows> {
        while begun.elapsed() < until {
            let leader = cluster.wait_leader().await?;
            let Blow { at, stop, down, up } = Blow::next(&mut self.random);
            let victim = at.unwrap_or(leader);
            let hit = if stop { &mut self.blows.stopped } else { &mut self.blows.killed };
            if victim == leader {
                hit.leaders += 1
            } else {
                hit.followers += 1
            }
            if stop {
                cluster.pause(victim, true)?;
                screen.watch(load, begun, begun.elapsed() + down).await;
                cluster.pause(victim, false)?;
            } else {
                cluster.kill(victim)?;
                screen.watch(load, begun, begun.elapsed() + down).await;
                cluster.restart(victim)?;
            }
            screen.watch(load, begun, begun.elapsed() + up).await;
        }
        Ok(self.blows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As CI runs it: `xtask/src/ci.rs`.
    const SHORT_SECONDS: u64 = 15;
    const SHORT_SEED: u64 = 49;

    #[test]
    fn the_short_run_kills_and_stops_leaders() {
        let mut random = fastrand::Rng::with_seed(SHORT_SEED);
        let mut begins = Duration::ZERO;
        let mut at_leaders = Vec::new();
        // Elections delay the schedule, so the run reaches only the first half for certain.
        while begins < (Duration::from_secs(SHORT_SECONDS) - CALM) / 2 {
            let blow = Blow::next(&mut random);
            begins += blow.down + blow.up;
            at_leaders.extend(blow.at.is_none().then_some(blow.stop));
        }
        assert!(at_leaders.contains(&true) && at_leaders.contains(&false), "{at_leaders:?}");
    }
}
