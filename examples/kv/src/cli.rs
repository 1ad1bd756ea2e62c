//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use towline::{ClusterId, NodeId, PeerAddr};

/// A Redis-protocol key-value cluster on Towline.
#[derive(Debug, Parser)]
#[command(name = "towline-kv", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) task: Task,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Runs one node.
    Serve(Box<Serve>),
    /// Runs a whole cluster on this machine, each node as a child process, until Ctrl-C.
    Cluster(Cluster),
    /// Writes a development authority and a certificate for each node. Keeps the files that exist.
    Certs(Certs),
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// This node's id, a whole number from 1.
    #[arg(long)]
    pub(crate) id: NodeId,
    /// The data directory.
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Where peers reach this node, such as grpc://127.0.0.1:7001 or quic://127.0.0.1:7001. Each address names its
    /// transport, and a cluster may mix them.
    #[arg(long)]
    pub(crate) raft: PeerAddr,
    /// Where to listen for peers, if they call another address: behind a proxy, or in a container.
    #[arg(long, value_name = "RAFT")]
    pub(crate) listen: Option<PeerAddr>,
    /// Where Redis clients reach this node, such as 127.0.0.1:6001.
    #[arg(long)]
    pub(crate) redis: HostPort,
    /// Where to serve /metrics, /status, /healthz and /digest.
    #[arg(long)]
    pub(crate) http: HostPort,
    /// A member of the cluster: ID=grpc://HOST:PORT,REDIS_HOST:PORT, or quic://. Give it for each member, this node too.
    #[arg(long = "peer", required = true)]
    pub(crate) peers: Vec<PeerSpec>,
    /// Use TLS in both directions: a directory with ca.pem, node-ID.pem and node-ID.key, as `towline-kv certs` makes.
    /// SIGHUP reads it again. quic:// needs it; grpc:// without it is plain text on loopback.
    #[arg(long, value_name = "DIR")]
    pub(crate) tls: Option<PathBuf>,
    /// The cluster's name.
    #[arg(long, default_value = "towline-kv")]
    pub(crate) cluster: ClusterId,
    /// Found the cluster if the data directory is empty. Give it to every node at the first start.
    #[arg(long)]
    pub(crate) bootstrap: bool,
    /// Settings in TOML: tables `engine`, `store` and `kv`.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Lose the reports about snapshots, as a service that forgets to report. For the demo's control run.
    #[arg(long, hide = true)]
    pub(crate) lose_reports: bool,
    /// Stop when standard input ends. A node that `cluster` started notices so that its parent is gone.
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cluster {
    /// The number of nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: u64,
    /// The base of the ports. Node N takes three: Redis at +N, peers at +100+N, HTTP at +200+N.
    #[arg(long, default_value_t = 7000, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub(crate) base_port: u16,
    /// Where the nodes keep their data. Default: a temporary directory, removed at the end.
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// How the nodes reach each other: in plain text over gRPC, or over QUIC with certificates in the data directory.
    #[arg(long, value_parser = ["grpc", "quic"], default_value = "grpc")]
    pub(crate) transport: String,
}

#[derive(Debug, Args)]
pub(crate) struct Certs {
    /// Where to write the files.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The number of nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub(crate) nodes: u64,
}

/// `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("invalid address `{s}`: expected `host:port`, such as 127.0.0.1:6001");
        let (host, port) = s.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Self { host: host.into(), port })
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// `ID=grpc://HOST:PORT,REDIS_HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerSpec {
    pub(crate) id: NodeId,
    pub(crate) raft: PeerAddr,
    pub(crate) redis: HostPort,
}

impl FromStr for PeerSpec {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let form = "`ID=grpc://HOST:PORT,REDIS_HOST:PORT` is expected, such as 1=grpc://127.0.0.1:7101,127.0.0.1:7001";
        let bad = |why: String| format!("{why}; {form}");
        let (id, rest) = s.split_once('=').ok_or_else(|| bad(format!("`{s}` has no `=`")))?;
        let (raft, redis) = rest.split_once(',').ok_or_else(|| bad(format!("`{s}` has no Redis address")))?;
        Ok(Self {
            id: id.parse().map_err(|e: towline::IdError| bad(e.to_string()))?,
            raft: raft.parse().map_err(|e: towline::IdError| bad(e.to_string()))?,
            redis: redis.parse().map_err(bad)?,
        })
    }
}
