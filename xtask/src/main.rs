//! The tools of this repository: `cargo xtask ci` is the whole of CI, `cargo xtask demo` shows what the library is for.
//!
//! One file per subcommand; what two of them share stands in a file of its own. It depends on none of the crates here.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool speaks by printing")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod chaos;
mod ci;
mod clients;
mod clock;
mod cluster;
mod codegen;
mod demo;
mod deny;
mod etcd;
mod linear;
mod load;
mod msrv;
mod proxy;
mod redis_benchmark;
mod resp;
mod suites;
mod svg;
mod tidy;
mod watch;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks, generates, shows and measures Towline")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that must hold before a change is taken
    Ci(ci::Options),
    /// Messages and stubs from the protobuf schema, without protoc
    Codegen(codegen::Options),
    /// Three nodes under load, the leader killed, and the proof that nothing was lost
    Demo(demo::Options),
    /// Kills and stops nodes again and again under load, then proves that nothing was lost and no read was stale
    Chaos(chaos::Options),
    /// Durable SETs of a release cluster against the disk's floor, and etcd where it is installed
    Bench(bench::Options),
    /// Layering, confinement, manifests, test rules, prose; also part of ci
    Tidy(tidy::Options),
}

fn main() -> ExitCode {
    let root = workspace_root();
    let done = match Cli::parse().command {
        Command::Ci(options) => ci::run(&root, &options),
        Command::Codegen(options) => codegen::run(&root, &options),
        Command::Demo(options) => demo::run(&root, &options),
        Command::Chaos(options) => chaos::run(&root, &options),
        Command::Bench(options) => bench::run(&root, &options),
        Command::Tidy(options) => tidy::run(&root, &options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the work on a runtime of its own until it is done or someone ends us; dropping it ends the processes it started.
fn interruptible(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = work => done,
            signal = ended_from_outside() => Err(format!("ended by {}", signal?).into()),
        }
    })
}

#[cfg(unix)]
async fn ended_from_outside() -> Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}

#[cfg(not(unix))]
async fn ended_from_outside() -> Result<&'static str> {
    tokio::signal::ctrl_c().await?;
    Ok("Ctrl-C")
}

/// The directory of the workspace's Cargo.toml: cargo names xtask's own while it runs it.
fn workspace_root() -> PathBuf {
    let manifest_dir =
        std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let xtask = PathBuf::from(manifest_dir);
    xtask.parent().map(Path::to_path_buf).unwrap_or(xtask)
}
