//! The transports of a node. Each address names its transport.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use towline::{
    GrpcConfig, GrpcTransport, NodeBuilder, NodeId, PeerAddr, QuicConfig, QuicTransport, TlsConfig, TlsFiles,
    Transport,
};

use crate::cli::Serve;
use crate::failure::Failure;

/// Connections of peers at a time, if the file descriptors suffice.
pub(crate) const PEERS_MAX: usize = 256;

/// The node's certificate and key, if `--tls` names some.
pub(crate) fn identity(dir: Option<&Path>, node: NodeId) -> Result<Option<TlsConfig>, Failure> {
    let Some(dir) = dir else { return Ok(None) };
    let tls = TlsConfig::from_files(TlsFiles::in_dir(dir, node))
        .map_err(|e| Failure::run(format!("--tls {}", dir.display()), e))?;
    if tls.node() != node {
        return Err(Failure::Run(format!(
            "--tls {}: the certificate is of node {}, but this is node {node}",
            dir.display(),
            tls.node()
        )));
    }
    Ok(Some(tls))
}

/// Adds the transport of `--raft`, which also listens, and those of the peers' addresses. At most `connections_max` peers
/// may be connected.
pub(crate) fn add(
    mut builder: NodeBuilder,
    args: &Serve,
    tls: Option<&TlsConfig>,
    connections_max: usize,
) -> Result<NodeBuilder, Failure> {
    let mut made: BTreeMap<String, Arc<dyn Transport>> = BTreeMap::new();
    for address in [&args.raft].into_iter().chain(args.peers.iter().map(|peer| &peer.raft)) {
        if !made.contains_key(address.scheme()) {
            made.insert(address.scheme().to_owned(), transport(address, tls, connections_max)?);
        }
    }
    if let Some(listens) = made.remove(args.raft.scheme()) {
        builder = builder.transport(listens, args.listen.as_ref().unwrap_or(&args.raft).clone());
    }
    Ok(made.into_values().fold(builder, NodeBuilder::dialler))
}

fn transport(
    address: &PeerAddr,
    tls: Option<&TlsConfig>,
    connections_max: usize,
) -> Result<Arc<dyn Transport>, Failure> {
    // QUIC needs no bound: its connections share one descriptor.
    let grpc = || GrpcConfig { connections_max, ..GrpcConfig::default() };
    match (address.scheme(), tls) {
        ("grpc", None) => Ok(Arc::new(GrpcTransport::new(grpc()))),
        ("grpc", Some(tls)) => Ok(Arc::new(GrpcTransport::with_tls(grpc(), tls.clone()))),
        ("quic", Some(tls)) => Ok(Arc::new(QuicTransport::new(QuicConfig::default(), tls.clone()))),
        ("quic", None) => Err(Failure::Usage(format!(
            "{address}: QUIC needs certificates: give --tls DIR (`towline-kv certs --dir DIR` makes some)"
        ))),
        (scheme, _) => Err(Failure::Usage(format!(
            "{address}: there is no transport `{scheme}`; grpc:// and quic:// are known"
        ))),
    }
}
