//! Processes of the real program, and how to talk to them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything that must happen may take on a machine that is busy with other work.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);
/// The longest election timeout that [`SETTINGS`] allows.
pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(1_200);
/// Elections are quicker than by default, so that the tests are.
pub(crate) const SETTINGS: &str =
    "[engine]\nelection_timeout_min = '600ms'\nelection_timeout_max = '1200ms'\n";

/// [`SETTINGS`] and `more` of the section for the server.
pub(crate) fn settings(more: &str) -> String {
    format!("{SETTINGS}[kv]\n{more}\n")
}

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One cluster at a time: their election timeouts are measured.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a condition; panics with `what` at the deadline.
pub(crate) fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(POLL_INTERVAL); // not synchronisation: paces the look at a condition
    }
}

/// A first port such that nobody listens at it plus each of `offsets`. Below those the system gives to outgoing
/// connections, so that none is taken before its process binds it. Tests of other packages run at the same time: those of
/// towline-testkit use 10,000 to 20,000.
pub(crate) fn free_ports(offsets: &[u16]) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 1_000).unwrap() * 19;
    let span = offsets.iter().max().unwrap() + 1;
    for _ in 0..1_000 {
        let port = 20_000 + (start + NEXT.fetch_add(span, Ordering::Relaxed) % 10_000) % 10_000;
        if offsets.iter().all(|offset| TcpListener::bind(("127.0.0.1", port + offset)).is_ok()) {
            return port;
        }
    }
    panic!("no free ports");
}

/// The program, not yet with arguments.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline-kv"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// The same command, with what the shell command `setup` has a process inherit, such as a limit.
pub(crate) fn after(setup: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{setup} && exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    shell.env_remove("RUST_LOG").stdin(Stdio::null());
    shell
}

/// Sends a signal by name.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// Whether the process exists and is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let out = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
    let stat = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    !stat.is_empty() && !stat.starts_with('Z')
}

/// A running process; dropping it kills it and waits for its end.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let out: File = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        Self { child, log: log.into() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Both streams.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    pub(crate) fn wait_end(&mut self) -> ExitStatus {
        wait("the end of the process", || self.child.try_wait().unwrap())
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Resident memory, where the system tells it.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1_024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL; an error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command that must end by itself.
pub(crate) fn run(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut process = Process { child, log: PathBuf::new() };
    let status = process.wait_end();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    process.child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    process.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    Output { status, stdout, stderr }
}

/// Where a node is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    /// Of the address for peers.
    pub(crate) scheme: &'static str,
    pub(crate) redis: u16,
    pub(crate) raft: u16,
    pub(crate) http: u16,
}

impl Ports {
    pub(crate) fn free() -> Self {
        let first = free_ports(&[0, 1, 2]);
        Self { scheme: "grpc", redis: first, raft: first + 1, http: first + 2 }
    }

    pub(crate) fn raft_uri(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.raft)
    }

    /// What `--peer` takes.
    pub(crate) fn peer(&self, id: usize) -> String {
        format!("{id}={},127.0.0.1:{}", self.raft_uri(), self.redis)
    }

    /// `serve` with everything but `--peer`, `--bootstrap` and `--config`.
    pub(crate) fn serve(&self, id: usize, data: &Path) -> Command {
        let mut command = program();
        command.args(["serve", "--id", &id.to_string(), "--data"]).arg(data);
        command.args(["--raft", &self.raft_uri(), "--redis", &format!("127.0.0.1:{}", self.redis)]);
        command.args(["--http", &format!("127.0.0.1:{}", self.http)]);
        command
    }

    /// Status code and body of a page.
    pub(crate) fn page(&self, path: &str) -> Option<(u16, String)> {
        self.page_within(path, Duration::from_secs(5))
    }

    fn page_within(&self, path: &str, read_timeout: Duration) -> Option<(u16, String)> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.http));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(read_timeout)).ok()?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
            )
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let code = answer.get(9..12)?.parse().ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some((code, body.to_owned()))
    }

    pub(crate) fn json(&self, path: &str) -> Option<Value> {
        let (code, body) = self.page(path)?;
        if code == 200 { serde_json::from_str(&body).ok() } else { None }
    }

    pub(crate) fn leads(&self) -> bool {
        self.json("/status").is_some_and(|status| status["state"]["role"] == "leader")
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.page("/healthz").is_some_and(|(code, _)| code == 200)
    }

    /// Index and digest of what is applied. The node reads its whole state for it.
    pub(crate) fn digest(&self) -> Option<(u64, String)> {
        let (_, body) = self.page_within("/digest", DEADLINE)?;
        let digest: Value = serde_json::from_str(&body).ok()?;
        Some((digest["applied"].as_u64()?, digest["digest"].as_str()?.to_owned()))
    }

    /// The sum of a counter over all label sets that contain `label`.
    pub(crate) fn counter(&self, name: &str, label: &str) -> u64 {
        let (_, text) = self.page("/metrics").unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    /// A client of this node alone; `None` if it does not answer.
    pub(crate) fn client(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.redis)).unwrap();
        let connection = client.get_connection_with_timeout(Duration::from_secs(2)).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        connection.set_write_timeout(Some(Duration::from_secs(8))).unwrap();
        Some(connection)
    }

    /// A socket to the Redis port.
    pub(crate) fn socket(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.redis)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

/// Processes of `towline-kv serve` that found one cluster. Positions count from 0, ids from 1.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ports: Vec<Ports>,
    pub(crate) running: Vec<Option<Process>>,
    /// Further flags of every node.
    pub(crate) flags: Vec<&'static str>,
    /// The limit of file descriptors of every node, soft and hard.
    pub(crate) descriptors: Option<u32>,
}

impl Cluster {
    pub(crate) fn start(nodes: usize) -> Self {
        Self::start_with(nodes, SETTINGS)
    }

    pub(crate) fn start_with(nodes: usize, settings: &str) -> Self {
        Self::start_with_flags(nodes, settings, &[])
    }

    pub(crate) fn start_with_flags(nodes: usize, settings: &str, flags: &[&'static str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("settings.toml"), settings).unwrap();
        let ports = (0..nodes).map(|_| Ports::free()).collect();
        let running = (0..nodes).map(|_| None).collect();
        let mut cluster = Self { dir, ports, running, flags: flags.to_vec(), descriptors: None };
        cluster.start_all();
        cluster
    }

    /// The most file descriptors that each node may have.
    pub(crate) fn start_with_descriptors(nodes: usize, settings: &str, descriptors: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("settings.toml"), settings).unwrap();
        let ports = (0..nodes).map(|_| Ports::free()).collect();
        let running = (0..nodes).map(|_| None).collect();
        let descriptors = Some(descriptors);
        let mut cluster = Self { dir, ports, running, flags: Vec::new(), descriptors };
        cluster.start_all();
        cluster
    }

    /// With certificates, and for each node the transport that its address names.
    pub(crate) fn secure(schemes: &[&'static str]) -> Self {
        Self::secure_with(schemes, SETTINGS)
    }

    pub(crate) fn secure_with(schemes: &[&'static str], settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("settings.toml"), settings).unwrap();
        let ports = schemes.iter().map(|scheme| Ports { scheme, ..Ports::free() }).collect();
        let running = schemes.iter().map(|_| None).collect();
        let mut cluster = Self { dir, ports, running, flags: Vec::new(), descriptors: None };
        let certs = run(program().args(["certs", "--dir"]).arg(cluster.certs()));
        assert!(certs.status.success());
        cluster.start_all();
        cluster
    }

    /// Nodes take their certificates from here, if it is there.
    pub(crate) fn certs(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    fn start_all(&mut self) {
        for at in 0..self.ports.len() {
            self.restart(at);
        }
        self.leader();
    }

    pub(crate) fn data(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("node-{}", at + 1))
    }

    /// The command a node is started with, first and later.
    pub(crate) fn command(&self, at: usize) -> Command {
        let mut command = self.ports[at].serve(at + 1, &self.data(at));
        command.arg("--bootstrap").arg("--config").arg(self.dir.path().join("settings.toml"));
        command.args(&self.flags);
        if self.certs().exists() {
            command.arg("--tls").arg(self.certs());
        }
        for (other, ports) in self.ports.iter().enumerate() {
            command.args(["--peer", &ports.peer(other + 1)]);
        }
        command
    }

    pub(crate) fn restart(&mut self, at: usize) {
        let log = self.dir.path().join(format!("node-{}.log", at + 1));
        let mut command = self.command(at);
        if let Some(descriptors) = self.descriptors {
            command = after(&format!("ulimit -n {descriptors}"), &command);
        }
        self.running[at] = Some(Process::start(&mut command, &log));
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, at: usize) {
        drop(self.running[at].take().expect("it runs"));
    }

    pub(crate) fn process(&mut self, at: usize) -> &mut Process {
        self.running[at].as_mut().expect("it runs")
    }

    /// Waits for a leader, and for all that run to know one.
    pub(crate) fn leader(&mut self) -> usize {
        let all: Vec<usize> = (0..self.ports.len()).collect();
        self.leader_among(&all)
    }

    /// As [`leader`](Self::leader), looking at some nodes only.
    pub(crate) fn leader_among(&mut self, some: &[usize]) -> usize {
        wait("a leader", || {
            for at in 0..self.running.len() {
                if let Some(status) = self.running[at].as_mut().and_then(Process::ended) {
                    panic!("node {} ended with {status}:\n{}", at + 1, self.process(at).log());
                }
            }
            let up: Vec<usize> = some.iter().copied().filter(|at| self.running[*at].is_some()).collect();
            let leader = up.iter().copied().find(|at| self.ports[*at].leads())?;
            up.iter().all(|at| self.ports[*at].is_healthy()).then_some(leader)
        })
    }

    /// The nodes that are not `at`.
    pub(crate) fn others(&self, at: usize) -> Vec<usize> {
        (0..self.ports.len()).filter(|other| *other != at).collect()
    }

    /// A client of the leader.
    pub(crate) fn client(&mut self) -> redis::Connection {
        let leader = self.leader();
        self.ports[leader].client().expect("the leader answers")
    }

    /// Waits until one of `some` acknowledges a write.
    pub(crate) fn write_somewhere(&self, some: &[usize], key: &str, value: &str) {
        wait("an acknowledged write", || {
            some.iter().copied().find(|at| {
                self.ports[*at].client().is_some_and(|mut client| {
                    redis::cmd("SET").arg(key).arg(value).query::<String>(&mut client).is_ok()
                })
            })
        });
    }

    /// Waits until all nodes have applied as much, and asserts that it is the same.
    pub(crate) fn assert_equal(&self) {
        wait("equal applied indexes", || {
            let digests: Option<Vec<_>> = self.ports.iter().map(Ports::digest).collect();
            let digests = digests?;
            if digests.iter().any(|(applied, _)| *applied != digests[0].0) {
                return None;
            }
            assert!(digests.iter().all(|digest| *digest == digests[0]), "digests differ: {digests:?}");
            Some(())
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in self.running.iter().flatten() {
                let log = process.log();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                eprintln!("--- {}\n{tail}", process.log.display());
            }
        }
    }
}
