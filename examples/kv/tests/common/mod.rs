//! Starts processes of the real program and talks to them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The time limit of every wait, generous for a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);
/// The longest election timeout that [`SETTINGS`] allows.
pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(1_200);
pub(crate) const SETTINGS: &str =
    "[engine]\nelection_timeout_min = '600ms'\nelection_timeout_max = '1200ms'\n";

/// [`SETTINGS`], and `more` in the section `[kv]`.
pub(crate) fn settings(more: &str) -> String {
    format!("{SETTINGS}[kv]\n{more}\n")
}

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits for a condition; panics with `what` at the deadline.
pub(crate) fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(POLL_INTERVAL); // not synchronisation: poll interval under a deadline
    }
}

/// A port such that it plus each of `offsets` is free. It is below the ports of outgoing connections, so the system takes
/// none of them. The tests of towline-testkit run at the same time and use 10,000 to 20,000.
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

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline-kv"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// The same command in a process that inherits from the shell command `setup`, such as a limit.
pub(crate) fn after(setup: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{setup} && exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    shell.env_remove("RUST_LOG").stdin(Stdio::null());
    shell
}

pub(crate) fn get(client: &mut redis::Connection, key: &str) -> redis::RedisResult<Option<String>> {
    redis::cmd("GET").arg(key).query(client)
}

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

/// A running process. Its drop kills it and waits for its end.
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

    /// Resident memory, on Linux.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1_024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
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

/// The addresses of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    /// The transport for peers.
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

    /// Applied index and digest. The node reads its whole state for them.
    pub(crate) fn digest(&self) -> Option<(u64, String)> {
        let (_, body) = self.page_within("/digest", DEADLINE)?;
        let digest: Value = serde_json::from_str(&body).ok()?;
        Some((digest["applied"].as_u64()?, digest["digest"].as_str()?.to_owned()))
    }

    /// The sum of a counter over all label sets that contain `labels`.
    pub(crate) fn counter(&self, name: &str, labels: &[&str]) -> u64 {
        let (_, text) = self.page("/metrics").unwrap_or_default();
        let has_all = |line: &&str| labels.iter().all(|label| line.contains(label));
        let lines = text.lines().filter(|line| line.starts_with(name)).filter(has_all);
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    /// A client of this node; `None` if the node does not answer.
    pub(crate) fn client(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.redis)).unwrap();
        let connection = client.get_connection_with_timeout(Duration::from_secs(2)).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        connection.set_write_timeout(Some(Duration::from_secs(8))).unwrap();
        Some(connection)
    }

    pub(crate) fn socket(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.redis)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

pub(crate) struct SoloNode {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ports: Ports,
}

impl SoloNode {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), ports: Ports::free() }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// `serve` without `--bootstrap`.
    pub(crate) fn command(&self, id: usize) -> Command {
        let mut command = self.ports.serve(id, &self.data());
        command.args(["--peer", &self.ports.peer(id)]);
        command
    }

    pub(crate) fn bootstrap(&self) -> Command {
        let mut command = self.command(1);
        command.arg("--bootstrap");
        command
    }

    pub(crate) fn with_settings(&self, settings: &str) -> Command {
        let file = self.dir.path().join("settings.toml");
        fs::write(&file, settings).unwrap();
        let mut command = self.bootstrap();
        command.arg("--config").arg(file);
        command
    }

    pub(crate) fn start(&self, command: &mut Command) -> Process {
        Process::start(command, &self.dir.path().join("log"))
    }

    /// Starts the node and waits until it leads.
    pub(crate) fn lead(&self, command: &mut Command) -> Process {
        let mut process = self.start(command);
        wait("the node to lead", || {
            assert!(process.ended().is_none(), "{}", process.log());
            self.ports.leads().then_some(())
        });
        process
    }
}

/// Processes of `towline-kv serve` that found one cluster. Positions count from 0, ids from 1.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ports: Vec<Ports>,
    pub(crate) running: Vec<Option<Process>>,
    /// The limit of file descriptors of every node, soft and hard.
    descriptors: Option<u32>,
    /// Whether each data directory is a file system of its own.
    has_disks: bool,
}

impl Cluster {
    pub(crate) fn start(nodes: usize) -> Self {
        Self::start_with(nodes, SETTINGS)
    }

    pub(crate) fn start_with(nodes: usize, settings: &str) -> Self {
        Self::prepare(&vec!["grpc"; nodes], settings, None).started()
    }

    pub(crate) fn start_with_descriptors(nodes: usize, descriptors: u32) -> Self {
        Self::prepare(&vec!["grpc"; nodes], SETTINGS, Some(descriptors)).started()
    }

    /// Starts nodes whose data directories are file systems in memory, of `bytes` at most. Needs the right to mount.
    pub(crate) fn start_on_disks(nodes: usize, settings: &str, bytes: u64) -> Self {
        let mut cluster = Self::prepare(&vec!["grpc"; nodes], settings, None);
        cluster.has_disks = true;
        for at in 0..nodes {
            let data = cluster.data(at);
            fs::create_dir(&data).unwrap();
            let out = run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
                .arg(data));
            assert!(out.status.success(), "{out:?}");
        }
        cluster.started()
    }

    /// Changes the size of a node's disk.
    pub(crate) fn resize(&self, at: usize, bytes: u64) {
        let out =
            run(Command::new("mount").args(["-o", &format!("remount,size={bytes}")]).arg(self.data(at)));
        assert!(out.status.success(), "{out:?}");
    }

    /// Leaves `bytes` of a node's disk free.
    pub(crate) fn leave(&self, at: usize, bytes: u64) {
        // The node may write meanwhile, and a size below what is in use is refused.
        wait("the smaller size", || {
            let out = run(Command::new("df").args(["--output=used", "-B1"]).arg(self.data(at)));
            let used: u64 = String::from_utf8(out.stdout).unwrap().lines().nth(1)?.trim().parse().ok()?;
            let size = format!("remount,size={}", used + bytes);
            run(Command::new("mount").args(["-o", &size]).arg(self.data(at))).status.success().then_some(())
        });
    }

    /// Starts nodes with certificates, each on the transport of its scheme.
    pub(crate) fn secure(schemes: &[&'static str], settings: &str) -> Self {
        let cluster = Self::prepare(schemes, settings, None);
        let certs = run(program().args(["certs", "--dir"]).arg(cluster.certs()));
        assert!(certs.status.success());
        cluster.started()
    }

    fn prepare(schemes: &[&'static str], settings: &str, descriptors: Option<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("settings.toml"), settings).unwrap();
        let ports = schemes.iter().map(|scheme| Ports { scheme, ..Ports::free() }).collect();
        let running = schemes.iter().map(|_| None).collect();
        Self { dir, ports, running, descriptors, has_disks: false }
    }

    fn started(mut self) -> Self {
        for at in 0..self.ports.len() {
            self.restart(at);
        }
        self.leader();
        self
    }

    /// The directory of certificates, if it exists.
    pub(crate) fn certs(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    pub(crate) fn data(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("node-{}", at + 1))
    }

    pub(crate) fn command(&self, at: usize) -> Command {
        let mut command = self.ports[at].serve(at + 1, &self.data(at));
        command.arg("--bootstrap").arg("--config").arg(self.dir.path().join("settings.toml"));
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

    pub(crate) fn kill(&mut self, at: usize) {
        drop(self.running[at].take().expect("it runs"));
    }

    pub(crate) fn process(&mut self, at: usize) -> &mut Process {
        self.running[at].as_mut().expect("it runs")
    }

    /// Waits for a leader that all running nodes know.
    pub(crate) fn leader(&mut self) -> usize {
        let all: Vec<usize> = (0..self.ports.len()).collect();
        self.leader_among(&all)
    }

    /// As [`leader`](Self::leader), but of some nodes.
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

    pub(crate) fn others(&self, at: usize) -> Vec<usize> {
        (0..self.ports.len()).filter(|other| *other != at).collect()
    }

    pub(crate) fn client(&mut self) -> redis::Connection {
        let leader = self.leader();
        self.ports[leader].client().expect("the leader answers")
    }

    /// Waits until one of `some` acknowledges a write.
    pub(crate) fn write_somewhere(&self, some: &[usize], key: &str, value: impl AsRef<[u8]>) {
        wait("an acknowledged write", || {
            some.iter().copied().find(|at| {
                self.ports[*at].client().is_some_and(|mut client| {
                    redis::cmd("SET").arg(key).arg(value.as_ref()).query::<String>(&mut client).is_ok()
                })
            })
        });
    }

    /// Waits until all nodes have the same applied index, and asserts equal digests.
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
        if self.has_disks {
            for at in 0..self.ports.len() {
                // Lazily: the node still runs. Its end frees the memory.
                let _ = Command::new("umount").arg("-l").arg(self.data(at)).status();
            }
        }
    }
}
