//! `cargo xtask ci`: timed steps, the fastest to fail first. Some compile beside the tests.
//!
//! The steps build two families of artifacts: one debug build of everything, and check metadata of the libraries. Clippy
//! compiles our crates in both. No step changes RUSTFLAGS, which would rebuild all dependencies.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::api::ApiOptions;
use crate::packages::{CONSUMERS, LIBRARIES, UNPUBLISHED};
use crate::{Result, api, cargo, codegen, deny, msrv, suites, tidy};

/// The exit code of a tool that needs a program which is not installed.
const MISSING: i32 = 3;

#[derive(clap::Args)]
pub(crate) struct CiOptions {
    /// Run only this step (may be given several times)
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// List the steps
    #[arg(long)]
    list: bool,
    /// Run the long steps too
    #[arg(long)]
    long: bool,
    /// Run the remaining steps after a failure
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
    /// Passed, except for a part that could not be checked here.
    Partly(String),
    Skipped(String),
}

const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        what: "the tree is formatted",
        run: |root| passed(cargo::run(root, &["fmt", "--all", "--check"], &[])),
    },
    Step {
        name: "tidy",
        what: "layering, confinement, manifests, names of types, test rules, prose",
        run: |root| passed(tidy::run(root)),
    },
    Step {
        name: "codegen",
        what: "generated code is what the schema makes",
        run: |root| passed(codegen::check_or_write(root, true)),
    },
    Step {
        name: "api",
        what: "the public items are those of docs/public-api.txt",
        run: |root| passed(api::run(root, &ApiOptions::default())),
    },
    Step { name: "seams", what: "no runtime under the core, no raft under a transport", run: seams },
    Step {
        name: "msrv",
        what: "no dependency needs a newer Rust than its crate states",
        run: |root| passed(msrv::run(root)),
    },
    Step { name: "deny", what: "licenses, bans, sources, yanked versions, advisories", run: deny_step },
    Step {
        name: "build",
        what: "everything builds under clippy, examples and benches too, warnings denied",
        run: build,
    },
    Step { name: "clippy", what: "the libraries as consumers have them, warnings denied", run: clippy },
    Step { name: "doc", what: "documentation builds, warnings denied", run: doc },
    Step { name: "package", what: "each library crate packs", run: package },
    Step { name: "hello", what: "examples/hello runs", run: hello },
    Step {
        name: "redis",
        what: "redis-benchmark against three nodes, no error reply",
        run: |root| tool(root, &["redis-benchmark"]),
    },
    Step {
        name: "clients",
        what: "redis-py and ioredis against three nodes, leader killed",
        run: |root| tool(root, &["clients"]),
    },
    Step {
        name: "clock",
        what: "keys expire in time while clocks of the day jump by an hour",
        run: |root| tool(root, &["clock"]),
    },
    Step {
        name: "chaos",
        what: "processes, disks, links and clocks broken: no write lost, no stale read, no unexplained stall",
        run: |root| tool(root, &["chaos", "--seconds", "30", "--seed", "1299", "--writers", "8"]),
    },
    Step { name: "demo", what: "the demo in small, and its control: a latched follower", run: demo },
    Step { name: "test", what: "all other tests and doctests", run: |root| passed(suites::run(root)) },
    Step {
        name: "measure",
        what: "tests of speed and time, alone",
        run: |root| passed(suites::measure(root)),
    },
];

/// Steps that compile. A run of all steps gives them to a process of the lowest priority after `build`: the steps from
/// `hello` to `test` mostly wait.
const BESIDE: &[&str] = &["clippy", "doc", "package"];

/// Steps that only `--long` runs, or `--only` with their name.
const LONG_STEPS: &[Step] =
    &[Step { name: "storm", what: "thirty minutes of chaos, in a release build", run: storm }];

pub(crate) fn run(root: &Path, options: &CiOptions) -> Result<()> {
    if options.list {
        for step in STEPS.iter().chain(LONG_STEPS) {
            println!("{:8} {}", step.name, step.what);
        }
        return Ok(());
    }
    let all = STEPS.iter().chain(LONG_STEPS);
    if let Some(unknown) = options.only.iter().find(|name| !all.clone().any(|step| step.name == **name)) {
        return Err(format!("no step is called {unknown}; `cargo xtask ci --list` names them").into());
    }
    let named = |step: &&Step| options.only.iter().any(|name| name == step.name);
    let chosen: Vec<&Step> = STEPS
        .iter()
        .filter(|step| options.only.is_empty() || named(step))
        .chain(LONG_STEPS.iter().filter(|step| options.long || named(step)))
        .collect();

    let (begun, is_full) = (Instant::now(), options.only.is_empty());
    let mut report = Report { keep_going: options.keep_going, rows: Vec::new(), first_failure: None };
    let mut beside = None;
    for step in chosen {
        if is_full && BESIDE.contains(&step.name) {
            continue;
        }
        if step.name == "measure" {
            end_beside(&mut beside, &mut report);
        }
        report.run(step.name, step.what, || (step.run)(root));
        if is_full && step.name == "build" && !report.is_over() {
            println!("\n=== begins beside the next steps: {}", BESIDE.join(", "));
            beside = Some(Beside::start(root)?);
        }
    }
    end_beside(&mut beside, &mut report);
    let Report { rows, first_failure, .. } = report;

    println!("\n{:8} {:>8} {:>9}  ", "step", "result", "seconds");
    for (name, result, took, note) in &rows {
        let note = note.lines().next().unwrap_or_default();
        println!("{name:8} {result:>8} {:>9.1}  {note}", took.as_secs_f64());
    }
    println!("{:8} {:>8} {:>9.1}", "total", "", begun.elapsed().as_secs_f64());
    match first_failure {
        None => Ok(()),
        Some((name, error)) => Err(format!("ci failed first at `{name}`: {error}").into()),
    }
}

/// What the steps did so far.
struct Report {
    keep_going: bool,
    /// Step, result, time, note.
    rows: Vec<(&'static str, String, Duration, String)>,
    first_failure: Option<(&'static str, String)>,
}

impl Report {
    /// Whether the remaining steps are not run.
    fn is_over(&self) -> bool {
        self.first_failure.is_some() && !self.keep_going
    }

    fn run(&mut self, name: &'static str, what: &str, step: impl FnOnce() -> Result<Outcome>) {
        if self.is_over() {
            self.rows.push((name, "not run".to_owned(), Duration::ZERO, what.to_owned()));
            return;
        }
        println!("\n=== {name}: {what}");
        let started = Instant::now();
        let outcome = step();
        let took = started.elapsed();
        let (result, note) = match outcome {
            Ok(Outcome::Passed) => ("ok", what.to_owned()),
            Ok(Outcome::Partly(why)) => ("ok", why),
            Ok(Outcome::Skipped(why)) => {
                println!("skipped: {why}");
                ("skipped", why)
            }
            Err(error) => {
                println!("FAILED {name}: {error}");
                self.first_failure.get_or_insert((name, error.to_string()));
                ("FAILED", error.to_string())
            }
        };
        self.rows.push((name, result.to_owned(), took, note));
    }
}

/// The process that runs [`BESIDE`], with its output in a file.
struct Beside {
    process: Child,
    log: File,
}

impl Beside {
    fn start(root: &Path) -> Result<Self> {
        let log = tempfile::tempfile()?;
        let mut command = Command::new("nice");
        // The build step may have replaced the file of this process.
        command.args(["-n", "19"]).arg(built(root, "xtask")?).arg("ci");
        for step in BESIDE {
            command.args(["--only", step]);
        }
        command.current_dir(root).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        Ok(Self { process: command.spawn().map_err(|error| format!("nice: {error}"))?, log })
    }

    fn end(mut self) -> Result<Outcome> {
        let status = self.process.wait()?;
        let mut said = String::new();
        self.log.rewind()?;
        self.log.read_to_string(&mut said)?;
        println!("{}", said.trim());
        if status.success() { Ok(Outcome::Passed) } else { Err("one of them failed: see its output".into()) }
    }
}

/// Waits for the process even if another step has failed: its compilers must not outlive this run.
fn end_beside(beside: &mut Option<Beside>, report: &mut Report) {
    let Some(running) = beside.take() else { return };
    let over = report.first_failure.take();
    report.run("beside", "clippy, doc and package", || running.end());
    report.first_failure = over.or(report.first_failure.take());
}

/// Packages that a crate must not depend on: crate, its features, packages.
const ABSENT: &[(&str, &[&str], &[&str])] = &[
    // A simulator replaces time and network.
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
        let tree = cargo::captured(root, &arguments)?;
        let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        if !names.contains(package) {
            return Err(format!("cargo tree does not show {package}: the check is void").into());
        }
        if let Some(found) = names.iter().find(|name| absent.contains(name)) {
            return Err(format!("{package} {} depends on {found}", features.join(" ")).into());
        }
    }
    Ok(Outcome::Passed)
}

fn deny_step(root: &Path) -> Result<Outcome> {
    if cargo::captured(root, &["deny", "--version"]).is_err() {
        return without("cargo-deny is not installed (.ci/run installs it)");
    }
    Ok(match deny::run(root)? {
        deny::Checked::All => Outcome::Passed,
        deny::Checked::AllButAdvisories => Outcome::Partly("advisories not checked: no database".to_owned()),
    })
}

/// The libraries as a consumer has them: features unify across a workspace and hide a missing one. `--lib` keeps
/// dev-dependencies out for that reason. The build step lints the workspace.
fn clippy(root: &Path) -> Result<Outcome> {
    for &(libraries, features) in CONSUMERS {
        let together = named(libraries);
        if libraries.len() > 1 {
            let shared = with_features(root, &together, features)?;
            for &library in libraries {
                let alone = with_features(root, &["-p", library, "--depth", "1"], features)?;
                if let Some(line) = alone.difference(&shared).next() {
                    return Err(format!("{library} needs a run of its own in CONSUMERS, for {line}").into());
                }
            }
        }
        cargo::run(
            root,
            &[&["check", "--locked", "--lib"], &together[..], features].concat(),
            cargo::LINTED,
        )?;
    }
    Ok(Outcome::Passed)
}

fn named<'a>(libraries: &[&'a str]) -> Vec<&'a str> {
    libraries.iter().flat_map(|&library| ["-p", library]).collect()
}

/// The packages of a dependency tree, each with its features.
fn with_features(root: &Path, packages: &[&str], features: &[&str]) -> Result<BTreeSet<String>> {
    let shape = ["tree", "--locked", "-e", "normal", "--prefix", "none", "-f", "{p} {f}"];
    let tree = cargo::captured(root, &[&shape[..], packages, features].concat())?;
    // `default` only enables others, which have their own names.
    let words = |line: &str| {
        let words = line.trim_end_matches("(*)").trim_end().split([' ', ',']);
        words.filter(|word| *word != "default").collect::<Vec<_>>().join(" ")
    };
    Ok(tree.lines().map(words).collect())
}

fn doc(root: &Path) -> Result<Outcome> {
    let mut arguments = vec!["doc", "--locked", "--no-deps"];
    for library in LIBRARIES {
        arguments.extend(["-p", library]);
    }
    // As docs.rs does it; the flags of rustdoc do not touch what the compiler built.
    arguments.push("--all-features");
    passed(cargo::run(root, &arguments, &[cargo::LINTED, &[("RUSTDOCFLAGS", "-D warnings")]].concat()))
}

/// One call for all libraries: cargo then resolves their versions among themselves.
fn package(root: &Path) -> Result<Outcome> {
    let mut arguments = vec!["package", "--locked", "--workspace", "--no-verify", "--allow-dirty"];
    for member in UNPUBLISHED {
        arguments.extend(["--exclude", member]);
    }
    passed(cargo::run(root, &arguments, &[]))
}

/// `--all-targets` resolves the same features as the tests, so finding them rebuilds nothing. The test step must find them
/// here: later the lints hold cargo's lock.
fn build(root: &Path) -> Result<Outcome> {
    cargo::run(root, &["build", "--locked", "--workspace", "--all-targets"], cargo::LINTED)?;
    passed(suites::find(root).map(|_| ()))
}

/// Builds in release mode first: a debug build is too slow to fall behind as a service does.
fn storm(root: &Path) -> Result<Outcome> {
    cargo::run(root, &["build", "--locked", "--release", "-p", "towline-kv", "-p", "towline-tools"], &[])?;
    run_tool(root, "release", &["chaos", "--seconds", "1800", "--seed", "18"])
}

/// A binary of the build step. `cargo run -p` would resolve other features and rebuild the dependencies.
fn built(root: &Path, name: &str) -> Result<PathBuf> {
    built_in(root, "debug", name)
}

fn built_in(root: &Path, profile: &str, name: &str) -> Result<PathBuf> {
    let binary = cargo::target_directory(root)?.join(profile).join(name);
    if binary.exists() {
        Ok(binary)
    } else {
        Err(format!("{} does not exist: run the build step first", binary.display()).into())
    }
}

fn hello(root: &Path) -> Result<Outcome> {
    let binary = built(root, "towline-hello")?;
    match run_built(root, &binary, &[])?.success() {
        true => Ok(Outcome::Passed),
        false => Err("towline-hello failed".into()),
    }
}

/// Runs a tool of `tools/` against the `towline-kv` that the build step made.
fn tool(root: &Path, arguments: &[&str]) -> Result<Outcome> {
    run_tool(root, "debug", arguments)
}

fn run_tool(root: &Path, profile: &str, arguments: &[&str]) -> Result<Outcome> {
    let (tools, kv) = (built_in(root, profile, "towline-tools")?, built_in(root, profile, "towline-kv")?);
    let kv = kv.to_str().ok_or("the target directory has no UTF-8 name")?;
    let status = run_built(root, &tools, &[arguments, &["--binary", kv]].concat())?;
    match status.code() {
        Some(0) => Ok(Outcome::Passed),
        Some(MISSING) => without("a program that this step needs is missing: see its output"),
        _ => Err(format!("towline-tools {} ended with {status}", arguments.join(" ")).into()),
    }
}

fn run_built(root: &Path, binary: &Path, arguments: &[&str]) -> Result<ExitStatus> {
    println!("$ {} {}", binary.display(), arguments.join(" "));
    let status = Command::new(binary).current_dir(root).args(arguments).stdin(Stdio::null()).status();
    Ok(status.map_err(|error| format!("{}: {error}", binary.display()))?)
}

/// Skips a step on a developer's machine. In CI a step that never runs would look like one that passes, so it fails.
fn without(missing: &str) -> Result<Outcome> {
    if std::env::var_os("CI").is_some() {
        Err(missing.into())
    } else {
        Ok(Outcome::Skipped(missing.to_owned()))
    }
}

fn demo(root: &Path) -> Result<Outcome> {
    let small = ["demo", "--seconds", "2", "--writers", "8", "--megabytes", "8"];
    tool(root, &small)?;
    tool(root, &[&small[..], &["--lose-reports"]].concat())
}

fn passed(done: Result<()>) -> Result<Outcome> {
    done.map(|()| Outcome::Passed)
}
