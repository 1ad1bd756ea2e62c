//! The entry of CI, `cargo xtask ci`, with one file per check. The tools that run a cluster stand in `tools/`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool prints")]

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod api;
mod cargo;
mod ci;
mod codegen;
mod deny;
mod msrv;
mod packages;
mod suites;
mod tidy;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks, generates, shows and measures Towline")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every check that a change must pass
    Ci(ci::CiOptions),
    /// Generate the messages of the protobuf schema, without protoc
    Codegen(codegen::CodegenOptions),
    /// Compare the public items of the libraries with docs/public-api.txt
    Api(api::ApiOptions),
    /// Check layering, confinement, manifests, names of types, test rules and prose; also a step of ci
    Tidy,
    /// Kill the leader of three nodes under load, then prove that no acknowledged write is lost
    #[command(disable_help_flag = true)]
    Demo(Forwarded),
    /// Break processes, disks, links and clocks under load, then check that no write is lost, no read is stale, and each stall is explained
    #[command(disable_help_flag = true)]
    Chaos(Forwarded),
    /// Measure durable SETs of a release cluster against the disk's floor, and etcd where it is installed
    #[command(disable_help_flag = true)]
    Bench(Forwarded),
}

/// What follows the name of a tool; the tool itself parses it.
#[derive(clap::Args)]
struct Forwarded {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    let root = workspace_root();
    let done = match Cli::parse().command {
        Task::Ci(options) => ci::run(&root, &options),
        Task::Codegen(options) => codegen::run(&root, &options),
        Task::Api(options) => api::run(&root, &options),
        Task::Tidy => tidy::run(&root),
        Task::Demo(forwarded) => run_tool("demo", &forwarded.arguments),
        Task::Chaos(forwarded) => run_tool("chaos", &forwarded.arguments),
        Task::Bench(forwarded) => run_tool("bench", &forwarded.arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Builds `towline-tools` and runs one of its subcommands in the current directory.
fn run_tool(name: &str, arguments: &[OsString]) -> Result<()> {
    let status =
        cargo::command(Path::new("."), &["run", "--quiet", "--locked", "-p", "towline-tools", "--", name])
            .args(arguments)
            .status()?;
    if status.success() { Ok(()) } else { Err(format!("{name} ended with {status}").into()) }
}

/// The directory of the workspace's Cargo.toml: cargo names xtask's own while it runs xtask.
fn workspace_root() -> PathBuf {
    let manifest_dir =
        std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let xtask = PathBuf::from(manifest_dir);
    xtask.parent().map(Path::to_path_buf).unwrap_or(xtask)
}
