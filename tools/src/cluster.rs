//! Three `towline-kv` processes on loopback, and their status pages.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::Result;
use crate::process::Process;
use crate::proxy::{Proxy, Stop};
use crate::relay::Relays;

const HTTP_BYTES_MAX: u64 = 1 << 20;
pub(crate) const NODES: usize = 3;
pub(crate) const LEADER_DEADLINE: Duration = Duration::from_secs(20);
const HTTP_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The step of a clock that is right, in the form that libfaketime reads.
pub(crate) const RIGHT_CLOCK: &str = "+0";

/// The binary that `named` names, or the example built in release mode.
pub(crate) fn kv_binary(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(binary) = named {
        return Ok(fs::canonicalize(binary).map_err(|error| format!("{}: {error}", binary.display()))?);
    }
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--locked", "--release", "-p", "towline-kv", "--bin", "towline-kv"]);
    build.args(["--message-format", "json-render-diagnostics"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    println!("$ cargo build --release -p towline-kv");
    let built = build.output()?;
    if !built.status.success() {
        return Err(format!("cargo build ended with {}", built.status).into());
    }
    let messages = String::from_utf8(built.stdout)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut executable =
        messages.filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from));
    Ok(executable.next_back().ok_or("cargo build names no executable")?)
}

/// Free addresses on loopback. All are bound at once before the first is released.
pub(crate) fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    Ok(held.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?)
}

/// Makes the certificates with `towline-kv certs`, as an operator does.
fn make_certs(binary: &Path, data: &Path) -> Result<PathBuf> {
    let dir = data.join("certs");
    let made =
        Command::new(binary).args(["certs", "--nodes", &NODES.to_string(), "--dir"]).arg(&dir).output()?;
    if !made.status.success() {
        return Err(format!("no certificates: {}", String::from_utf8_lossy(&made.stderr).trim()).into());
    }
    Ok(dir)
}

struct Node {
    id: u64,
    transport: Transport,
    /// Where the node listens for its peers. With a proxy, peers call the proxy.
    raft: SocketAddr,
    proxy: Option<Proxy>,
    redis: SocketAddr,
    http: SocketAddr,
    log: PathBuf,
    process: Option<Process>,
}

impl Node {
    fn called_at(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.raft, Proxy::address)
    }

    /// The address of a transport, with its scheme.
    fn url(&self, address: SocketAddr) -> String {
        let scheme = match self.transport {
            Transport::Grpc => "grpc",
            Transport::Quic => "quic",
        };
        format!("{scheme}://{address}")
    }

    fn data(&self, data: &Path) -> PathBuf {
        data.join(format!("node-{}", self.id))
    }
}

/// A node's own state at `/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) leader: bool,
    pub(crate) applied: u64,
}

/// How the nodes reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Transport {
    /// gRPC, in plain text unless another node uses QUIC
    #[default]
    Grpc,
    /// QUIC, with certificates made for the run
    Quic,
}

/// How the nodes are started, beyond the defaults.
#[derive(Default)]
pub(crate) struct Setup {
    /// How each node is called.
    pub(crate) transports: [Transport; NODES],
    /// A proxy before each node, which only gRPC in plain text can have.
    pub(crate) proxied: bool,
    /// A relay between each two nodes, in place of proxies.
    pub(crate) relayed: bool,
    /// Further flags of every node.
    pub(crate) flags: Vec<String>,
    /// libfaketime: each node gets a clock of its own, which [`Cluster::set_clock`] moves.
    pub(crate) clock_library: Option<PathBuf>,
}

/// Nodes are named by their position, 0 to 2; their ids are one more.
pub(crate) struct Cluster {
    binary: PathBuf,
    data: PathBuf,
    /// Further flags of every node.
    flags: Vec<String>,
    certs: Option<PathBuf>,
    clock_library: Option<PathBuf>,
    relays: Option<Relays>,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts three nodes over gRPC in plain text.
    pub(crate) fn start(binary: PathBuf, data: &Path) -> Result<Self> {
        Self::start_with(binary, data, Setup::default())
    }

    pub(crate) fn start_with(binary: PathBuf, data: &Path, setup: Setup) -> Result<Self> {
        let Setup { transports, proxied, relayed, flags, clock_library } = setup;
        let certs =
            if transports.contains(&Transport::Quic) { Some(make_certs(&binary, data)?) } else { None };
        let mut addresses = free_addresses(NODES * 3)?.into_iter();
        let mut next = || addresses.next().ok_or("too few addresses");
        let mut nodes = Vec::new();
        for (id, transport) in (1_u64..).zip(transports) {
            let (raft, redis, http) = (next()?, next()?, next()?);
            let proxy = if proxied { Some(Proxy::start(raft)?) } else { None };
            nodes.push(Node {
                id,
                transport,
                raft,
                proxy,
                redis,
                http,
                log: data.join(format!("node-{id}.log")),
                process: None,
            });
        }
        let targets = nodes.iter().map(|node| (node.raft, node.transport)).collect();
        let relays = if relayed { Some(Relays::start(targets)?) } else { None };
        let data = data.to_path_buf();
        let mut cluster = Self { binary, data, certs, flags, clock_library, relays, nodes };
        for position in 0..NODES {
            cluster.set_clock(position, RIGHT_CLOCK)?;
            cluster.restart(position)?;
        }
        Ok(cluster)
    }

    pub(crate) fn redis_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.redis).collect()
    }

    pub(crate) fn process_ids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).map(|process| process.id()).collect()
    }

    pub(crate) fn http_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.http).collect()
    }

    /// The process of one node; an error if it does not run.
    pub(crate) fn process_id(&self, position: usize) -> Result<u32> {
        let process = self.nodes.get(position).and_then(|node| node.process.as_ref());
        Ok(process.ok_or_else(|| format!("node {} does not run", position + 1))?.id())
    }

    pub(crate) fn relays(&self) -> Option<&Relays> {
        self.relays.as_ref()
    }

    /// Moves a node's wall clock by a number of seconds, such as `+3600`. Without `clock_library` it has no effect.
    pub(crate) fn set_clock(&self, position: usize, seconds: &str) -> Result<()> {
        write_clock(&self.clock_file(position), seconds)
    }

    /// The file that [`write_clock`] writes.
    pub(crate) fn clock_file(&self, position: usize) -> PathBuf {
        self.data.join(format!("clock-{position}"))
    }

    /// Kills a node with SIGKILL and returns once the process is gone.
    pub(crate) fn kill(&mut self, position: usize) -> Result<()> {
        let node = self.nodes.get_mut(position).ok_or("no such node")?;
        node.process.take().map(drop).ok_or_else(|| format!("node {} does not run", node.id).into())
    }

    /// Starts a node, at any time with the same command.
    pub(crate) fn restart(&mut self, position: usize) -> Result<()> {
        let mut command = Command::new(&self.binary);
        let node = self.nodes.get(position).ok_or("no such node")?;
        command
            .args(["serve", "--cluster", "demo", "--bootstrap"])
            .args(["--id", &node.id.to_string()])
            .arg("--data")
            .arg(node.data(&self.data))
            .args(["--raft", &node.url(node.called_at())])
            .args(["--redis", &node.redis.to_string(), "--http", &node.http.to_string()])
            .args(&self.flags);
        for (to, peer) in self.nodes.iter().enumerate() {
            let relay = self.relays.as_ref().and_then(|relays| relays.address(position, to));
            let address = peer.url(relay.unwrap_or_else(|| peer.called_at()));
            command.args(["--peer", &format!("{}={address},{}", peer.id, peer.redis)]);
        }
        if node.proxy.is_some() {
            command.args(["--listen", &node.url(node.raft)]);
        }
        if let Some(certs) = &self.certs {
            command.arg("--tls").arg(certs);
        }
        if let Some(library) = &self.clock_library {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.clock_file(position));
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let process = Process::start(command, &node.log)?;
        if let Some(node) = self.nodes.get_mut(position) {
            node.process = Some(process);
        }
        Ok(())
    }

    pub(crate) fn resident_bytes(&self) -> Vec<Option<u64>> {
        self.nodes.iter().map(|node| node.process.as_ref().and_then(Process::resident_bytes)).collect()
    }

    /// Returns an error with the last lines of the log of a node that ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if let Some(status) = node.process.as_mut().and_then(Process::exit_status) {
                let log = fs::read_to_string(&node.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n  ");
                return Err(format!("node {} ended by itself with {status}:\n  {tail}", node.id).into());
            }
        }
        Ok(())
    }

    /// Stops the connection to a node that carried most bytes. Returns its bytes, and those of the next busiest.
    pub(crate) fn stop_the_busiest(&self, position: usize, stop: Stop) -> Result<(u64, u64)> {
        let proxy = self.nodes.get(position).and_then(|node| node.proxy.as_ref());
        proxy.ok_or("the node has no proxy")?.stop_the_busiest(stop)
    }

    /// The sum of a counter over the series whose labels contain all of `labels`, each as `name=\"value\"`.
    pub(crate) async fn counter(&self, position: usize, name: &str, labels: &[&str]) -> Result<u64> {
        let node = self.nodes.get(position).ok_or("no such node")?;
        Ok(sum(&String::from_utf8_lossy(&http_get(node.http, "/metrics", HTTP_TIMEOUT).await?), name, labels))
    }

    /// The page `/status` of a node.
    pub(crate) async fn page(&self, position: usize) -> Result<Value> {
        let node = self.nodes.get(position).ok_or("no such node")?;
        http_json(node.http, "/status").await
    }

    /// The text of a node's log.
    pub(crate) fn log(&self, position: usize) -> Result<String> {
        let node = self.nodes.get(position).ok_or("no such node")?;
        Ok(String::from_utf8_lossy(&fs::read(&node.log)?).into_owned())
    }

    async fn status(&self, position: usize) -> Result<Status> {
        let node = self.nodes.get(position).ok_or("no such node")?;
        status_of(&http_json(node.http, "/status").await?)
    }

    /// Waits until a node says that it leads, and returns its position.
    pub(crate) async fn wait_leader(&mut self) -> Result<usize> {
        let started = Instant::now();
        loop {
            self.check_alive()?;
            for position in 0..NODES {
                let running = self.nodes.get(position).is_some_and(|node| node.process.is_some());
                if running && self.status(position).await.is_ok_and(|status| status.leader) {
                    return Ok(position);
                }
            }
            if started.elapsed() > LEADER_DEADLINE {
                return Err(format!("no node leads after {} s", LEADER_DEADLINE.as_secs()).into());
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until all nodes have one applied index, then compares their data.
    pub(crate) async fn wait_equal(&mut self, deadline: Duration) -> Result<Agreement> {
        let started = Instant::now();
        loop {
            self.check_alive()?;
            let seen = match self.digests(deadline.saturating_sub(started.elapsed())).await {
                Ok(digests) => match agreement(&digests) {
                    Some(agreement) => return Ok(agreement),
                    None => format!("{digests:?}"),
                },
                Err(error) => error.to_string(),
            };
            if started.elapsed() > deadline {
                return Err(format!(
                    "nodes differ in what they applied after {} s: {seen}",
                    deadline.as_secs()
                )
                .into());
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Applied index and digest of each node. A digest reads all data: it may take all the time that is `left`, and equal
    /// indexes at `/status` come first.
    async fn digests(&self, left: Duration) -> Result<Vec<(u64, String)>> {
        let mut applied = Vec::new();
        for position in 0..NODES {
            applied.push(self.status(position).await?.applied);
        }
        if applied.windows(2).any(|pair| matches!(pair, [a, b] if a != b)) {
            return Err(format!("applied indexes {applied:?}").into());
        }
        let all = self.nodes.iter().map(|node| tokio::spawn(digest(node.http, left.max(HTTP_TIMEOUT))));
        let mut digests = Vec::new();
        for one in all.collect::<Vec<_>>() {
            digests.push(one.await??);
        }
        Ok(digests)
    }
}

/// Whether all nodes at one applied index hold equal data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    Equal { applied: u64, digest: String },
    Differ(String),
}

/// `None` while the applied indexes differ: the data cannot be compared.
fn agreement(digests: &[(u64, String)]) -> Option<Agreement> {
    let ((applied, digest), rest) = digests.split_first()?;
    if rest.iter().any(|(other, _)| other != applied) {
        return None;
    }
    Some(if rest.iter().all(|(_, other)| other == digest) {
        Agreement::Equal { applied: *applied, digest: digest.clone() }
    } else {
        Agreement::Differ(format!("at applied index {applied}: {digests:?}"))
    })
}

pub(crate) fn status_of(value: &Value) -> Result<Status> {
    // A leader's page has the applied indexes of its peers too.
    let value = value.get("state").unwrap_or(value);
    let role = find(value, "role").and_then(Value::as_str).ok_or("/status names no role")?;
    let applied = find(value, "applied").ok_or("/status names no applied index")?;
    // {"index": .., "term": ..} or the index alone.
    let applied = applied.as_u64().or_else(|| applied.get("index")?.as_u64()).ok_or("applied is no index")?;
    Ok(Status { leader: role.eq_ignore_ascii_case("leader"), applied })
}

/// Finds a key at any depth: the group may stand in a list of groups.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|inner| find(inner, key))),
        Value::Array(list) => list.iter().find_map(|inner| find(inner, key)),
        _ => None,
    }
}

/// Writes the file by which libfaketime moves a clock.
pub(crate) fn write_clock(file: &Path, seconds: &str) -> Result<()> {
    let written = file.with_extension("new");
    fs::write(&written, seconds)?;
    // A node reads the file whenever it reads its clock; the rename keeps it from half a file.
    Ok(fs::rename(written, file)?)
}

pub(crate) async fn http_json(address: SocketAddr, path: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&http_get(address, path, HTTP_TIMEOUT).await?)?)
}

/// Applied index and digest of one node.
async fn digest(address: SocketAddr, limit: Duration) -> Result<(u64, String)> {
    let value: Value = serde_json::from_slice(&http_get(address, "/digest", limit).await?)?;
    let applied = value.get("applied").and_then(Value::as_u64).ok_or("/digest names no applied index")?;
    let digest = value.get("digest").and_then(Value::as_str).ok_or("/digest has no digest")?;
    Ok((applied, digest.to_owned()))
}

async fn http_get(address: SocketAddr, path: &str, limit: Duration) -> Result<Vec<u8>> {
    let body = timeout(limit, http_body(address, path)).await;
    let body =
        body.map_err(|_| format!("http://{address}{path}: no answer in {:.1} s", limit.as_secs_f64()))?;
    Ok(body.map_err(|error| format!("http://{address}{path}: {error}"))?)
}

/// The sum of a counter on a page of metrics.
fn sum(page: &str, name: &str, labels: &[&str]) -> u64 {
    page.lines()
        .filter(|line| line.split_once('{').is_some_and(|(of, _)| of == name))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

/// Asks with HTTP/1.0: the body then ends with the connection and is never chunked.
async fn http_body(address: SocketAddr, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(HTTP_BYTES_MAX).read_to_end(&mut answer).await?;
    let head_end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or("no HTTP answer")?;
    let body = answer.split_off(head_end + 4);
    let head = String::from_utf8_lossy(&answer);
    let line = head.lines().next().unwrap_or_default();
    match line.split_whitespace().nth(1) {
        Some("200") => Ok(body),
        _ => Err(line.to_owned().into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digests(of: &[(u64, &str)]) -> Vec<(u64, String)> {
        of.iter().map(|(applied, digest)| (*applied, (*digest).to_owned())).collect()
    }

    #[test]
    fn nodes_with_one_index_and_other_data_differ() {
        assert!(matches!(agreement(&digests(&[(7, "a"), (7, "b"), (7, "a")])), Some(Agreement::Differ(_))));
        let equal = Some(Agreement::Equal { applied: 7, digest: "a".to_owned() });
        assert_eq!(agreement(&digests(&[(7, "a"), (7, "a")])), equal);
    }

    #[test]
    fn nodes_with_different_indexes_are_not_compared() {
        assert_eq!(agreement(&digests(&[(7, "a"), (8, "b")])), None);
    }

    #[test]
    fn a_counter_is_summed_over_the_series_with_the_labels() {
        let page = "# TYPE sent_total counter\nsent_total{node=\"1\",peer=\"2\"} 3\nsent_total{node=\"1\",peer=\"3\"} 4\n\
                    sent_total_other{node=\"1\",peer=\"2\"} 5\n";
        assert_eq!(sum(page, "sent_total", &["peer=\"2\""]), 3);
        assert_eq!(sum(page, "sent_total", &[]), 7);
    }

    #[test]
    fn a_status_is_read_flat_or_in_a_list_of_groups() {
        let leader = Status { leader: true, applied: 9 };
        assert_eq!(status_of(&json!({"id": 1, "role": "leader", "applied": 9})).unwrap(), leader);
        let nested = json!({"node": 1, "groups": [{"role": "Leader", "applied": {"index": 9, "term": 2}}]});
        assert_eq!(status_of(&nested).unwrap(), leader);
        let of_peers = json!({"peers": [{"applied": 7}], "state": {"role": "leader", "applied": 9}});
        assert_eq!(status_of(&of_peers).unwrap(), leader);
        assert!(status_of(&json!({"role": "leader"})).is_err());
    }
}
