//! `cargo xtask ci`: named steps in the order of what fails fastest, timed, the first failure named.
//!
//! Two families of artifacts are built: check metadata (clippy, then docs from the same) and one debug build of
//! everything (tests, examples, doctests). No step changes RUSTFLAGS, which would build the dependency tree anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Result, chaos, clients, clock, codegen, demo, deny, msrv, redis_benchmark, suites, tidy};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only this step (may be given several times)
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Name the steps and stop
    #[arg(long)]
    list: bool,
    /// Run the later steps although one failed
    #[arg(long)]
    keep_going: bool,
}

struct Step {
    name: &'static str,
    what: &'static str,
    run: fn(&Path) -> Result<Outcome>,
}

#[derive(Debug)]
enum Outcome {
    Passed,
    /// Passed, but a part of it could not be checked here.
    Partly(String),
    Skipped(String),
}

const STEPS: &[Step] = &[
    Step { name: "fmt", what: "the tree is formatted", run: fmt },
    Step { name: "tidy", what: "layering, confinement, manifests, test rules, prose", run: tidy_step },
    Step { name: "codegen", what: "generated code is what the schema makes", run: codegen_step },
    Step { name: "seams", what: "no runtime under the core, no raft under a transport", run: seams },
    Step { name: "msrv", what: "no dependency needs a newer Rust than its crate states", run: msrv_step },
    Step { name: "deny", what: "licenses, bans, sources, yanked versions, advisories", run: deny_step },
    Step {
        name: "clippy",
        what: "warnings denied: workspace, then each crate and feature set alone",
        run: clippy,
    },
    Step { name: "doc", what: "documentation builds, warnings denied", run: doc },
    Step { name: "package", what: "each library crate packs", run: package },
    Step { name: "build", what: "everything builds, examples and benches too", run: build },
    Step { name: "hello", what: "examples/hello runs", run: hello },
    Step { name: "redis", what: "redis-benchmark against three nodes, no error reply", run: redis },
    Step {
        name: "clients",
        what: "redis-py and ioredis against three nodes, leader killed",
        run: clients_step,
    },
    Step { name: "clock", what: "expiry while clocks of the day jump by an hour", run: clock_step },
    Step { name: "chaos", what: "nodes killed and stopped: nothing lost, no stale read", run: chaos_step },
    Step { name: "demo", what: "the demo in small, and its control: a latched follower", run: demo_step },
    Step { name: "test", what: "all tests and doctests", run: test },
];

/// The crates that are published, lowest first.
pub(crate) const LIBRARIES: &[&str] = &[
    "towline-metrics",
    "towline-engine",
    "towline-wire",
    "towline-tls",
    "towline-storage",
    "towline-grpc",
    "towline-quic",
    "towline-testkit",
    "towline",
];

/// Workspace members that are not published.
pub(crate) const UNPUBLISHED: &[&str] = &["xtask", "towline-hello", "towline-kv", "towline-custom-transport"];

/// Feature sets that a consumer can pick and that no other invocation covers: crate, arguments.
const FEATURE_SETS: &[(&str, &[&str])] = &[
    ("towline-engine", &["--lib", "--no-default-features"]),
    ("towline-engine", &["--lib", "--no-default-features", "--features", "core"]),
    ("towline-engine", &["--lib", "--features", "prometheus"]),
    ("towline-metrics", &["--all-targets", "--features", "prometheus"]),
    ("towline-tls", &["--all-targets", "--features", "dev-certs"]),
    ("towline-storage", &["--all-targets", "--features", "faults"]),
    ("towline", &["--lib", "--no-default-features"]),
    ("towline", &["--all-targets", "--all-features"]),
];

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    if options.list {
        for step in STEPS {
            println!("{:8} {}", step.name, step.what);
        }
        return Ok(());
    }
    if let Some(unknown) = options.only.iter().find(|name| !STEPS.iter().any(|step| step.name == **name)) {
        return Err(format!("no step is called {unknown}; `cargo xtask ci --list` names them").into());
    }
    let chosen: Vec<&Step> = STEPS
        .iter()
        .filter(|step| options.only.is_empty() || options.only.iter().any(|name| name == step.name))
        .collect();

    let mut rows = Vec::new();
    let mut first_failure: Option<(&str, String)> = None;
    for step in chosen {
        if first_failure.is_some() && !options.keep_going {
            rows.push((step.name, "not run".to_owned(), Duration::ZERO, step.what.to_owned()));
            continue;
        }
        println!("\n=== {}: {}", step.name, step.what);
        let started = Instant::now();
        let outcome = (step.run)(root);
        let took = started.elapsed();
        match outcome {
            Ok(Outcome::Passed) => rows.push((step.name, "ok".to_owned(), took, step.what.to_owned())),
            Ok(Outcome::Partly(why)) => rows.push((step.name, "ok".to_owned(), took, why)),
            Ok(Outcome::Skipped(why)) => {
                println!("skipped: {why}");
                rows.push((step.name, "skipped".to_owned(), took, why));
            }
            Err(error) => {
                println!("FAILED {}: {error}", step.name);
                rows.push((step.name, "FAILED".to_owned(), took, error.to_string()));
                first_failure.get_or_insert((step.name, error.to_string()));
            }
        }
    }

    println!("\n{:8} {:>8} {:>9}  ", "step", "result", "seconds");
    for (name, result, took, note) in &rows {
        let note = note.lines().next().unwrap_or_default();
        println!("{name:8} {result:>8} {:>9.1}  {note}", took.as_secs_f64());
    }
    let total: Duration = rows.iter().map(|row| row.2).sum();
    println!("{:8} {:>8} {:>9.1}", "total", "", total.as_secs_f64());
    match first_failure {
        None => Ok(()),
        Some((name, error)) => Err(format!("ci failed first at `{name}`: {error}").into()),
    }
}

fn fmt(root: &Path) -> Result<Outcome> {
    cargo(root, &["fmt", "--all", "--check"], &[])?;
    Ok(Outcome::Passed)
}

fn tidy_step(root: &Path) -> Result<Outcome> {
    tidy::run(root, &tidy::Options::default())?;
    Ok(Outcome::Passed)
}

fn codegen_step(root: &Path) -> Result<Outcome> {
    codegen::check_or_write(root, true)?;
    Ok(Outcome::Passed)
}

fn msrv_step(root: &Path) -> Result<Outcome> {
    msrv::run(root)?;
    Ok(Outcome::Passed)
}

/// What must not be among the dependencies of a package: crate, its features, packages.
const ABSENT: &[(&str, &[&str], &[&str])] = &[
    // A simulator owns time and network.
    ("towline-engine", &["--no-default-features", "--features", "core"], RUNTIME),
    ("towline-engine", &["--no-default-features"], RUNTIME),
    ("towline-engine", &["--no-default-features"], CONSENSUS),
    // A transport needs the seams, and no build script that runs protoc.
    ("towline-wire", &[], CONSENSUS),
    ("towline-tls", &[], CONSENSUS),
    ("towline-grpc", &[], CONSENSUS),
    ("towline-quic", &[], CONSENSUS),
    ("towline-custom-transport", &[], CONSENSUS),
];
const RUNTIME: &[&str] = &["tokio", "mio"];
const CONSENSUS: &[&str] = &["raft", "raft-proto", "protobuf", "protobuf-build", "slog"];

fn seams(root: &Path) -> Result<Outcome> {
    for (package, features, absent) in ABSENT {
        let mut arguments = vec!["tree", "-p", package, "-e", "normal,build", "--prefix", "none", "--locked"];
        arguments.extend(*features);
        let tree = captured(root, &arguments)?;
        let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        if !names.contains(package) {
            return Err(format!("cargo tree does not show {package}: this check sees nothing").into());
        }
        if let Some(found) = names.iter().find(|name| absent.contains(name)) {
            return Err(format!("{package} {} depends on {found}", features.join(" ")).into());
        }
    }
    Ok(Outcome::Passed)
}

fn deny_step(root: &Path) -> Result<Outcome> {
    if captured(root, &["deny", "--version"]).is_err() {
        return without("cargo-deny is not installed (.ci/run installs it)".to_owned());
    }
    Ok(match deny::run(root)? {
        deny::Checked::All => Outcome::Passed,
        deny::Checked::AllButAdvisories => Outcome::Partly("advisories not checked: no database".to_owned()),
    })
}

/// The workspace first: one pass finds most. Then each library alone, because features unify across a workspace and
/// hide a missing one; `--lib` for the same reason against its own dev-dependencies.
fn clippy(root: &Path) -> Result<Outcome> {
    let denied = ["--", "-D", "warnings"];
    cargo(root, &[&["clippy", "--locked", "--workspace", "--all-targets"], &denied[..]].concat(), &[])?;
    for library in LIBRARIES {
        for targets in ["--all-targets", "--lib"] {
            cargo(root, &[&["clippy", "--locked", "-p", library, targets], &denied[..]].concat(), &[])?;
        }
    }
    for (library, features) in FEATURE_SETS {
        cargo(root, &[&["clippy", "--locked", "-p", library], *features, &denied[..]].concat(), &[])?;
    }
    Ok(Outcome::Passed)
}

fn doc(root: &Path) -> Result<Outcome> {
    let mut arguments = vec!["doc", "--locked", "--no-deps"];
    for library in LIBRARIES {
        arguments.extend(["-p", library]);
    }
    // As docs.rs does it; the flags of rustdoc do not touch what the compiler built.
    arguments.push("--all-features");
    cargo(root, &arguments, &[("RUSTDOCFLAGS", "-D warnings")])?;
    Ok(Outcome::Passed)
}

/// All library crates in one call: cargo resolves their versions among themselves before any is published.
fn package(root: &Path) -> Result<Outcome> {
    let mut arguments = vec!["package", "--locked", "--workspace", "--no-verify", "--allow-dirty"];
    for member in UNPUBLISHED {
        arguments.extend(["--exclude", member]);
    }
    cargo(root, &arguments, &[])?;
    Ok(Outcome::Passed)
}

/// `--all-targets` picks the same features as the tests do, so the test step builds nothing again.
fn build(root: &Path) -> Result<Outcome> {
    cargo(root, &["build", "--locked", "--workspace", "--all-targets"], &[])?;
    Ok(Outcome::Passed)
}

/// A binary of the build step; `cargo run -p` would resolve other features and build the tree again.
fn built(root: &Path, name: &str) -> Result<PathBuf> {
    let binary = target_directory(root)?.join("debug").join(name);
    if binary.exists() {
        Ok(binary)
    } else {
        Err(format!("{} is not there: the build step makes it", binary.display()).into())
    }
}

fn hello(root: &Path) -> Result<Outcome> {
    let binary = built(root, "towline-hello")?;
    println!("$ {}", binary.display());
    let status = Command::new(&binary)
        .current_dir(root)
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("{}: {error}", binary.display()))?;
    if !status.success() {
        return Err(format!("towline-hello ended with {status}").into());
    }
    Ok(Outcome::Passed)
}

fn redis(root: &Path) -> Result<Outcome> {
    if redis_benchmark::installed() {
        redis_benchmark::run(&built(root, "towline-kv")?)?;
        return Ok(Outcome::Passed);
    }
    without("redis-benchmark is not installed (package redis-tools)".to_owned())
}

/// A person may do without; where CI runs, a step that is skipped for ever would look like one that passes.
fn without(missing: String) -> Result<Outcome> {
    if std::env::var_os("CI").is_some() { Err(missing.into()) } else { Ok(Outcome::Skipped(missing)) }
}

fn clients_step(root: &Path) -> Result<Outcome> {
    if let Some(missing) = clients::missing() {
        return without(missing);
    }
    clients::run(root, &built(root, "towline-kv")?)?;
    Ok(Outcome::Passed)
}

fn clock_step(root: &Path) -> Result<Outcome> {
    let Some(library) = clock::library() else {
        return without("libfaketime is not installed (package libfaketime)".to_owned());
    };
    clock::run(&built(root, "towline-kv")?, library)?;
    Ok(Outcome::Passed)
}

fn chaos_step(root: &Path) -> Result<Outcome> {
    let binary = built(root, "towline-kv")?;
    chaos::run(root, &chaos::Options::short(binary))?;
    Ok(Outcome::Passed)
}

fn demo_step(root: &Path) -> Result<Outcome> {
    let binary = built(root, "towline-kv")?;
    for lose_reports in [false, true] {
        demo::run(root, &demo::Options::short(binary.clone(), lose_reports))?;
    }
    Ok(Outcome::Passed)
}

fn test(root: &Path) -> Result<Outcome> {
    suites::run(root)?;
    Ok(Outcome::Passed)
}

/// Where cargo puts what it builds, whatever the environment and the configuration say.
pub(crate) fn target_directory(root: &Path) -> Result<PathBuf> {
    let metadata = captured(root, &["metadata", "--no-deps", "--format-version", "1"])?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let directory = metadata.get("target_directory").and_then(|value| value.as_str());
    Ok(directory.ok_or("cargo metadata names no target directory")?.into())
}

/// Runs cargo with its output on ours.
pub(crate) fn cargo(root: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    println!("$ cargo {}", arguments.join(" "));
    let status = command(root, arguments).envs(environment.iter().copied()).stdin(Stdio::null()).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`cargo {}` ended with {status}", arguments.join(" ")).into())
    }
}

/// Runs cargo and gives what it printed; an error has what it said about it.
pub(crate) fn captured(root: &Path, arguments: &[&str]) -> Result<String> {
    output(command(root, arguments), arguments)
}

/// Runs cargo with its messages on ours, and gives what it printed.
pub(crate) fn captured_stdout(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = command(root, arguments);
    command.stderr(Stdio::inherit());
    output(command, arguments)
}

fn output(mut command: Command, arguments: &[&str]) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`cargo {}` ended with {}: {said}", arguments.join(" "), output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) fn command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set by the cargo that runs us; inherited, they would make the inner cargo rebuild crates that read them.
    for variable in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(variable);
    }
    command.current_dir(root).args(arguments);
    command
}

#[cfg(test)]
mod tests;
