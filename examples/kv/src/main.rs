//! A Redis-protocol key-value cluster on Towline.
#![allow(clippy::print_stderr)] // a program that tells a person what is wrong

mod accept;
mod batch;
mod certs;
mod cli;
mod config;
mod descriptors;
mod failure;
mod gauges;
mod http;
mod machine;
mod redis;
mod replica;
mod serve;
mod starter;
mod stop;
mod supervise;
mod ticks;
mod transports;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Task};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,raft=warn,raft_engine=warn"));
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        // Reporting a failed write panics in the thread that logs. If the parent was killed, its pipe is gone.
        .log_internal_errors(false)
        .init();
    let Err(failure) = run(cli.task) else { return ExitCode::SUCCESS };
    eprintln!("error: {failure}");
    ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
}

fn run(task: Task) -> Result<(), Failure> {
    // The other half of the cores is for the threads of the engine.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.map_err(|error| Failure::run("cannot start the runtime", error))?.block_on(async {
        match task {
            Task::Serve(args) => serve::run(*args).await,
            Task::Cluster(args) => supervise::run(args).await,
            Task::Certs(args) => certs::make(&args.dir, args.nodes),
        }
    })
}
