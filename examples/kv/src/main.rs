//! A Redis-protocol key-value cluster on Towline.
#![allow(clippy::print_stderr)] // a program that tells a person what is wrong

mod accept;
mod batch;
mod certs;
mod cli;
mod config;
mod descriptors;
mod gauges;
mod http;
mod lost;
mod machine;
mod node;
mod redis;
mod replica;
mod serve;
mod stop;
mod supervise;
mod ticks;
mod transports;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

/// Why the program ends.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was called wrongly: exit code 2, as clap does.
    Usage(String),
    /// It could not do what it was asked: exit code 1.
    Run(String),
}

impl Failure {
    /// With the chain of causes on one line.
    pub(crate) fn run(what: String, error: impl std::error::Error) -> Self {
        let mut text = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self::Run(text)
    }
}

/// Half of the cores: the other half is for the threads of the engine.
fn redis_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,raft=warn,raft_engine=warn"));
    // No colours in a file.
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        // Saying that the log cannot be written would panic in the thread that logs; and with a parent that was killed
        // the pipe is gone.
        .log_internal_errors(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(redis_threads())
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            return ExitCode::from(1);
        }
    };
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(*args).await,
            Command::Cluster(args) => supervise::run(args).await,
            Command::Certs(args) => certs::run(&args),
        }
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            eprintln!("error: {text}");
            ExitCode::from(2)
        }
        Err(Failure::Run(text)) => {
            eprintln!("error: {text}");
            ExitCode::from(1)
        }
    }
}
