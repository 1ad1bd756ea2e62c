//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use towline::{ClusterId, NodeId, PeerAddr};

/// A Redis-protocol key-value cluster on Towline.
#[derive(Debug, Parser)]
#[command(name = "towline-kv", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs one node.
    Serve(Box<Serve>),
    /// Runs a whole cluster on this machine, one child process a node, until Ctrl-C.
    Cluster(Cluster),
    /// Writes a development authority and a certificate for each node. What is there already is kept.
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
    /// Where to listen for peers, if that is not where they call: behind a proxy, or in a container.
    #[arg(long, value_name = "RAFT")]
    pub(crate) listen: Option<PeerAddr>,
    /// Where Redis clients reach this node, such as 127.0.0.1:6001.
    #[arg(long)]
    pub(crate) redis: HostPort,
    /// Where /metrics, /status, /healthz and /digest are served.
    #[arg(long)]
    pub(crate) http: HostPort,
    /// A member of the cluster, this node among them: ID=grpc://HOST:PORT,REDIS_HOST:PORT, or quic://. Once for each.
    #[arg(long = "peer", required = true)]
    pub(crate) peers: Vec<PeerSpec>,
    /// Prove to peers who this node is, and demand it of them: a directory with ca.pem, node-ID.pem and node-ID.key, such
    /// as `towline-kv certs` makes. Read again at SIGHUP. quic:// needs it; grpc:// without it is plain text on loopback.
    #[arg(long, value_name = "DIR")]
    pub(crate) tls: Option<PathBuf>,
    /// The cluster's name.
    #[arg(long, default_value = "towline-kv")]
    pub(crate) cluster: ClusterId,
    /// Found the cluster if the data directory is empty. Give it to every node at the first start.
    #[arg(long, conflicts_with = "join")]
    pub(crate) bootstrap: bool,
    /// Join a cluster that exists.
    #[arg(long)]
    pub(crate) join: bool,
    /// Settings in TOML: tables `engine`, `store` and `kv`.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Loses reports about snapshots, as a service does that forgets to report. For the demo's control run.
    #[arg(long, hide = true)]
    pub(crate) lose_reports: bool,
    /// Stops when its standard input ends: so a node that `cluster` started notices that its parent is gone.
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cluster {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: u64,
    /// The first of the ports; each node takes three: Redis at +0.., peers at +100.., HTTP at +200...
    #[arg(long, default_value_t = 7000, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub(crate) base_port: u16,
    /// Where the nodes keep their data; a directory in the system's temporary folder, removed at the end, if not given.
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// How the nodes reach each other. For quic, certificates are made in the data directory.
    #[arg(long, value_enum, default_value_t = TransportKind::Grpc)]
    pub(crate) transport: TransportKind,
}

/// How nodes reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportKind {
    /// gRPC, in plain text on loopback.
    Grpc,
    /// QUIC, with certificates.
    Quic,
}

impl TransportKind {
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Quic => "quic",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Certs {
    /// Where to write them.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// For nodes 1 to this.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_names_id_and_both_addresses() {
        let peer: PeerSpec = "2=grpc://127.0.0.1:7102,localhost:7002".parse().unwrap();
        assert_eq!((peer.id.as_u64(), peer.raft.authority(), peer.redis.port), (2, "127.0.0.1:7102", 7002));
        for bad in ["2", "2=grpc://h:1", "0=grpc://h:1,h:2", "2=h:1,h:2", "2=grpc://h:1,h"] {
            let error = bad.parse::<PeerSpec>().unwrap_err();
            assert!(error.contains("is expected"), "{error}");
        }
    }
}
