//! Runs the tests of the workspace, doctests included, three programs at a time. The programs that measure follow alone.
//!
//! `cargo test` runs one program after another, and most tests wait for elections and deadlines while cores idle.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Result, cargo};

/// Programs that run at the same time, on two cores. The longest, that of `towline-kv`, uses a third of one core.
const SIDE_BY_SIDE: usize = 3;
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Programs that start first because they take longest: package, target.
const FIRST: &[(&str, &str)] = &[("towline-kv", "main"), ("towline-testkit", "main")];

/// The programs of [`FIRST`] mostly wait, so they run this many tests at the same time.
const TESTS_AT_A_TIME: &str = "4";

/// Programs that measure speed or time. They run one at a time at the end.
const ALONE: &[(&str, &str)] = &[("towline-testkit", "transport_throughput"), ("towline-engine", "main")];

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    package: String,
    target: String,
    /// The kind of target, as cargo names it. A library may share its name with a test target.
    kind: String,
    executable: PathBuf,
    /// The working directory, as under cargo.
    directory: PathBuf,
}

impl Binary {
    /// The position in a list of integration tests.
    fn rank(&self, list: &[(&str, &str)]) -> Option<usize> {
        let listed = |(package, target): &(&str, &str)| *package == self.package && *target == self.target;
        list.iter().position(listed).filter(|_| self.kind == "test")
    }

    fn title(&self) -> String {
        format!("{} {} {}", self.package, self.kind, self.target)
    }

    fn job(&self) -> Job {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        if self.rank(FIRST).is_some() {
            command.args(["--test-threads", TESTS_AT_A_TIME]);
        }
        Job { title: self.title(), command }
    }

    /// Runs only `tests`, or the whole program without any.
    fn again(&self, tests: &[String]) -> Job {
        let mut job = self.job();
        if !tests.is_empty() {
            job.command.arg("--exact").args(tests);
        }
        job
    }
}

/// A program that runs tests.
struct Job {
    title: String,
    command: Command,
}

/// A job that failed.
struct Failure {
    title: String,
    /// The tests that failed. Empty if the program ended before it told.
    tests: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.title, self.tests.join(" "))
    }
}

struct Running {
    title: String,
    process: Child,
    started: Instant,
    log: PathBuf,
}

impl Drop for Running {
    /// Kills the process; without effect if it has ended.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Default)]
struct Totals {
    jobs: usize,
    passed: usize,
    failed: Vec<Failure>,
}

/// The test binaries of the workspace, built if they are not.
pub(crate) fn find(root: &Path) -> Result<&'static [Binary]> {
    static FOUND: OnceLock<Vec<Binary>> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let build =
        ["test", "--locked", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"];
    println!("$ cargo {}", build.join(" "));
    let mut found = binaries(&cargo::captured_stdout(root, &build)?)?;
    for (package, target) in FIRST.iter().chain(ALONE) {
        if !found.iter().any(|binary| binary.rank(&[(package, target)]).is_some()) {
            return Err(
                format!("{package} has no test target {target}: correct the lists in suites.rs").into()
            );
        }
    }
    found.sort_by_key(|binary| binary.rank(FIRST).unwrap_or(FIRST.len()));
    Ok(FOUND.get_or_init(|| found))
}

/// Runs all tests but those of [`ALONE`].
pub(crate) fn run(root: &Path) -> Result<()> {
    let binaries: Vec<&Binary> = find(root)?.iter().filter(|binary| binary.rank(ALONE).is_none()).collect();
    let mut doctests = cargo::command(root, &["test", "--locked", "--workspace", "--doc", "--no-fail-fast"]);
    doctests.envs(cargo::LINTED.iter().copied());
    let doctests = Job { title: "doctests".to_owned(), command: doctests };
    let jobs = binaries.iter().map(|binary| binary.job()).chain([doctests]).collect();
    let again = |failure: &Failure| {
        let binary = binaries.iter().find(|binary| binary.title() == failure.title)?;
        Some(binary.again(&failure.tests))
    };
    counted(jobs, SIDE_BY_SIDE, again)
}

/// Runs the tests of [`ALONE`].
pub(crate) fn measure(root: &Path) -> Result<()> {
    let alone = find(root)?.iter().filter(|binary| binary.rank(ALONE).is_some());
    counted(alone.map(Binary::job).collect(), 1, |_| None)
}

fn counted(jobs: Vec<Job>, width: usize, again: impl Fn(&Failure) -> Option<Job>) -> Result<()> {
    let (logs, started, mut totals) = (tempfile::tempdir()?, Instant::now(), Totals::default());
    run_all(jobs, width, logs.path(), &mut totals)?;
    run_again(again, logs.path(), &mut totals)?;
    let Totals { jobs, passed, failed } = totals;
    println!("{passed} tests of {jobs} programs passed in {:.1} s", started.elapsed().as_secs_f64());
    if failed.is_empty() {
        return Ok(());
    }
    let failed: Vec<String> = failed.iter().map(ToString::to_string).collect();
    Err(format!("failed: {}", failed.join(", ")).into())
}

/// The test binaries among the messages of cargo.
fn binaries(messages: &str) -> Result<Vec<Binary>> {
    let mut found = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line)?;
        let text = |pointer| message.pointer(pointer).and_then(Value::as_str);
        let tests = message.pointer("/profile/test").and_then(Value::as_bool) == Some(true);
        let (Some(executable), true) = (text("/executable"), tests) else { continue };
        let manifest = Path::new(text("/manifest_path").ok_or("an artifact without a manifest")?);
        let directory = manifest.parent().ok_or("a manifest without a directory")?;
        // `path+file:///…/towline-wire#0.1.0`, or `…/wire#towline-wire@0.1.0` where the directory has another name.
        let id = text("/package_id").ok_or("an artifact without a package")?;
        let (path, version) = id.rsplit_once('#').ok_or("a package without a version")?;
        let package = match version.split_once('@') {
            Some((name, _)) => name,
            None => path.rsplit('/').next().unwrap_or(path),
        };
        found.push(Binary {
            package: package.to_owned(),
            target: text("/target/name").ok_or("a target without a name")?.to_owned(),
            kind: text("/target/kind/0").ok_or("a target without a kind")?.to_owned(),
            executable: executable.into(),
            directory: directory.to_owned(),
        });
    }
    Ok(found)
}

/// Runs alone what failed, by the job that `again` makes: a busy machine may delay a test past its deadline. Failures that
/// remain, or that cannot be repeated, stay in `totals`.
fn run_again(again: impl Fn(&Failure) -> Option<Job>, logs: &Path, totals: &mut Totals) -> Result<()> {
    for failure in std::mem::take(&mut totals.failed) {
        let Some(job) = again(&failure) else {
            totals.failed.push(failure);
            continue;
        };
        println!("--- failed beside other programs, runs again alone: {failure}");
        let (passed, failed) = (totals.passed, totals.failed.len());
        run_all(vec![job], 1, logs, totals)?;
        // A program passes if no test has the name.
        let all_ran = totals.passed - passed >= failure.tests.len();
        if totals.failed.len() == failed && !all_ran {
            totals.failed.push(failure);
        }
    }
    Ok(())
}

/// Runs all jobs, at most `width` at a time, and prints the output of each when it ends.
fn run_all(jobs: Vec<Job>, width: usize, logs: &Path, totals: &mut Totals) -> Result<()> {
    let mut waiting = jobs.into_iter();
    let mut running: Vec<Running> = Vec::new();
    loop {
        while running.len() < width {
            let Some(job) = waiting.next() else { break };
            let log = logs.join(totals.jobs.to_string());
            totals.jobs += 1;
            running.push(start(job, log)?);
        }
        if running.is_empty() {
            return Ok(());
        }
        let mut still = Vec::new();
        for mut one in running {
            let Some(status) = one.process.try_wait()? else {
                still.push(one);
                continue;
            };
            let said = String::from_utf8_lossy(&std::fs::read(&one.log)?).into_owned();
            let seconds = one.started.elapsed().as_secs_f64();
            println!("--- {}: {seconds:.1} s, {status}\n{}", one.title, said.trim());
            let passed = passed(&said);
            totals.passed += passed.unwrap_or(0);
            if !status.success() || passed.is_none() {
                // Without a result the program died in a test that printed no line.
                let tests = if passed.is_some() { failed(&said) } else { Vec::new() };
                totals.failed.push(Failure { title: one.title.clone(), tests });
            }
        }
        running = still;
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn start(Job { title, mut command }: Job, log: PathBuf) -> Result<Running> {
    let file = std::fs::File::create(&log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let process = command.spawn().map_err(|error| format!("{title}: {error}"))?;
    Ok(Running { title, process, started: Instant::now(), log })
}

/// The number of passed tests, by the last line of each suite; `None` without one, if a test exited its process.
fn passed(said: &str) -> Option<usize> {
    let results = said.lines().filter_map(|line| line.strip_prefix("test result: "));
    let counts = results.map(|line| line.split_once(" passed")?.0.rsplit(' ').next()?.parse::<usize>().ok());
    let counts = counts.collect::<Option<Vec<usize>>>()?;
    (!counts.is_empty()).then(|| counts.iter().sum())
}

/// The names of the failed tests, by the line of each.
fn failed(said: &str) -> Vec<String> {
    let names = said.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    names.map(|name| name.strip_suffix(" - should panic").unwrap_or(name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> Job {
        Job { title: name.to_owned(), command: Command::new(name) }
    }

    #[test]
    fn test_binaries_are_found_in_the_messages_of_cargo() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///r/examples/kv#towline-kv@0.1.0","manifest_path":"/r/examples/kv/Cargo.toml","target":{"kind":["test"],"name":"main"},"profile":{"test":true},"executable":"/t/main-1"}"#;
        let found = binaries(&format!(
            "{line}\n{}\n{}\n{{\"reason\":\"build-finished\",\"success\":true}}\n",
            line.replace("kv#towline-kv@", "towline-wire#").replace("\"test\"]", "\"lib\"]"),
            line.replace("true", "false"),
        ))
        .unwrap();
        let titles: Vec<String> = found.iter().map(|binary| binary.job().title).collect();
        assert_eq!(titles, ["towline-kv test main", "towline-wire lib main"]);
        assert_eq!(found[0].rank(FIRST), Some(0));
        assert_eq!(found[1].rank(FIRST), None);
        let again = found[0].again(&["a::late".to_owned()]).command;
        assert!(again.get_args().eq(["--test-threads", TESTS_AT_A_TIME, "--exact", "a::late"]));
        assert_eq!(found[0].directory, Path::new("/r/examples/kv"));
    }

    #[test]
    fn passed_tests_are_counted() {
        assert_eq!(passed("test a ... ok\n\ntest result: ok. 12 passed; 0 failed; 0 ignored\n"), Some(12));
        assert_eq!(passed("test result: FAILED. 3 passed; 1 failed; 0 ignored\n"), Some(3));
        assert_eq!(passed("test result: ok. 2 passed; 0\n\ntest result: ok. 3 passed; 0\n"), Some(5));
        assert_eq!(passed("test a ... "), None);
    }

    #[test]
    fn a_binary_fails_by_its_status_or_without_a_result() {
        let (logs, mut totals) = (tempfile::tempdir().unwrap(), Totals::default());
        run_all(vec![program("false"), program("true")], 2, logs.path(), &mut totals).unwrap();
        let mut failed: Vec<String> = totals.failed.iter().map(|failure| failure.title.clone()).collect();
        failed.sort();
        assert_eq!(failed, ["false", "true"]);
        assert_eq!((totals.jobs, totals.passed), (2, 0));
    }

    #[test]
    fn failed_tests_are_named() {
        let said =
            "test a::b ... ok\ntest a::c ... FAILED\ntest d - should panic ... FAILED\nfailures:\n    a::c\n";
        assert_eq!(failed(said), ["a::c", "d"]);
    }

    fn script(text: &str) -> Job {
        let mut job = program("sh");
        job.command.args(["-c", text]);
        job
    }

    #[test]
    fn a_failed_test_passes_if_it_passes_alone() {
        let failing =
            "echo 'test a::late ... FAILED'; echo 'test result: FAILED. 3 passed; 1 failed'; exit 101";
        let not_found = "echo 'test result: ok. 0 passed; 0 failed'";
        let passing = "echo 'test result: ok. 1 passed; 0 failed'";
        for (again, remain) in [(passing, 0), (failing, 1), (not_found, 1), ("exit 1", 1)] {
            let (logs, mut totals) = (tempfile::tempdir().unwrap(), Totals::default());
            run_all(vec![script(failing)], 1, logs.path(), &mut totals).unwrap();
            assert_eq!(totals.failed[0].tests, ["a::late"]);
            run_again(|_| Some(script(again)), logs.path(), &mut totals).unwrap();
            assert_eq!((totals.jobs, totals.failed.len()), (2, remain), "{again}");
        }
    }
}
