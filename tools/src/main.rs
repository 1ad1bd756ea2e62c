//! Tools that run `towline-kv`: the demo, chaos, the benchmark, and the checks of CI that need a cluster.
//!
//! `cargo xtask demo`, `chaos` and `bench` call this program. One file holds one subcommand.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool prints")]

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod chaos;
mod clients;
mod clock;
mod cluster;
mod demo;
mod etcd;
mod linear;
mod load;
mod process;
mod proxy;
mod redis_benchmark;
mod relay;
mod resp;
mod svg;
mod watch;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The exit code of a check that needs a program which is not installed. `cargo xtask ci` knows it.
const MISSING: u8 = 3;

/// The error of such a check: what is missing.
#[derive(Debug)]
struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Missing {}

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Shows, breaks and measures a cluster of towline-kv")]
struct Cli {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Subcommand)]
enum Tool {
    /// Kill the leader of three nodes under load, then prove that no acknowledged write is lost
    Demo(demo::DemoOptions),
    /// Break processes, disks, links and clocks under load, then check that no write is lost, no read is stale, and each stall is explained
    Chaos(chaos::ChaosOptions),
    /// Measure durable SETs of a release cluster against the disk's floor, and etcd where it is installed
    Bench(bench::BenchOptions),
    /// Run redis-benchmark against three nodes, without an error reply
    RedisBenchmark(Binary),
    /// Run redis-py and ioredis against three nodes and kill the leader
    Clients(Binary),
    /// Check that keys expire in time while the clocks of the nodes jump
    Clock(Binary),
}

#[derive(clap::Args)]
struct Binary {
    /// The towline-kv to run
    #[arg(long = "binary", value_name = "FILE")]
    path: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().tool {
        Tool::Demo(options) => demo::run(&options),
        Tool::Chaos(options) => chaos::run(&options),
        Tool::Bench(options) => bench::run(&options),
        Tool::RedisBenchmark(binary) => redis_benchmark::run(&binary.path),
        Tool::Clients(binary) => clients::run(&binary.path),
        Tool::Clock(binary) => clock::run(&binary.path),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if error.is::<Missing>() { ExitCode::from(MISSING) } else { ExitCode::FAILURE }
        }
    }
}
