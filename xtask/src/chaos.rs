//! `cargo xtask chaos`: a three-node cluster under load whose nodes are killed with kill -9 again and again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cluster::{self, Cluster};
use crate::load::Load;
use crate::watch::{Screen, conclude};
use crate::{Result, interruptible};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long the load runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=3600))]
    seconds: u64,
    /// Decides who is killed, when, and for how long; printed when not given
    #[arg(long)]
    seed: Option<u64>,
    /// Connections that write, each its own keys
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    writers: u16,
    /// Run this towline-kv rather than build one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

const NODES: usize = 3;
const LEADER_DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let binary = cluster::kv_binary(root, options.binary.as_deref())?;
    let data = tempfile::Builder::new().prefix("towline-chaos-").tempdir()?;
    let mut screen = Screen::new(options.seconds);
    let done = interruptible(chaos(binary, data.path(), options, &mut screen));
    screen.bar.finish_and_clear();
    if done.is_err() {
        println!("data and logs are kept in {}", data.keep().display());
    }
    done
}

async fn chaos(binary: PathBuf, data: &Path, options: &Options, screen: &mut Screen) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let mut random = fastrand::Rng::with_seed(seed);
    screen.say(format!("three nodes on loopback, {} writers, seed {seed}", options.writers));
    let mut cluster = Cluster::start(binary, data, NODES)?;
    let first = cluster.wait_leader(LEADER_DEADLINE).await?;
    let load = Load::start(cluster.redis_addresses(), first, options.writers.into(), seed);
    let begun = Instant::now();
    // The last seconds are quiet, so that the load proves that writes go on.
    let until = Duration::from_secs(options.seconds);
    let (mut leaders, mut followers) = (0, 0);
    while begun.elapsed() + Duration::from_secs(5) < until {
        let leader = cluster.wait_leader(LEADER_DEADLINE).await?;
        let victim = if random.bool() { leader } else { random.usize(..NODES) };
        if victim == leader {
            leaders += 1
        } else {
            followers += 1
        }
        cluster.kill(victim)?;
        let down = Duration::from_millis(random.u64(50..3_000));
        screen.watch(&load, begun, begun.elapsed() + down).await;
        cluster.restart(victim)?;
        let up = Duration::from_millis(random.u64(200..2_500));
        screen.watch(&load, begun, begun.elapsed() + up).await;
    }
    let acked_in_storm = load.acked();
    cluster.wait_leader(LEADER_DEADLINE).await?;
    let calm = (begun.elapsed() + Duration::from_secs(3)).max(until);
    screen.watch(&load, begun, calm).await;
    if load.acked() == acked_in_storm {
        return Err("no write was acknowledged after the last restart".into());
    }
    let outcome = conclude(screen, &mut cluster, load, begun).await?;
    screen.say(format!("{:<26}{leaders} leaders, {followers} followers", "kill -9"));
    outcome.judge()
}
