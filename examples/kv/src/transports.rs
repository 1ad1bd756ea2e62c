//! How a node listens for its peers and calls them: each address names its transport.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use towline::{
    GrpcConfig, GrpcTransport, NodeBuilder, NodeId, PeerAddr, QuicConfig, QuicTransport, TlsConfig, TlsFiles,
    Transport,
};

use crate::Failure;
use crate::cli::Serve;

/// The node's identity, if it was given one.
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

/// Listens with the transport of `--raft`, there or at `--listen`, and calls peers with those of their addresses.
pub(crate) fn add(
    mut builder: NodeBuilder,
    args: &Serve,
    tls: Option<&TlsConfig>,
) -> Result<NodeBuilder, Failure> {
    let mut made: BTreeMap<String, Arc<dyn Transport>> = BTreeMap::new();
    for address in [&args.raft].into_iter().chain(args.peers.iter().map(|peer| &peer.raft)) {
        if !made.contains_key(address.scheme()) {
            made.insert(address.scheme().to_owned(), transport(address, tls)?);
        }
    }
    if let Some(listens) = made.remove(args.raft.scheme()) {
        builder = builder.transport(listens, args.listen.as_ref().unwrap_or(&args.raft).clone());
    }
    Ok(made.into_values().fold(builder, NodeBuilder::dialler))
}

fn transport(address: &PeerAddr, tls: Option<&TlsConfig>) -> Result<Arc<dyn Transport>, Failure> {
    match (address.scheme(), tls) {
        ("grpc", None) => Ok(Arc::new(GrpcTransport::new(GrpcConfig::default()))),
        ("grpc", Some(tls)) => Ok(Arc::new(GrpcTransport::with_tls(GrpcConfig::default(), tls.clone()))),
        ("quic", Some(tls)) => Ok(Arc::new(QuicTransport::new(QuicConfig::default(), tls.clone()))),
        ("quic", None) => Err(Failure::Usage(format!(
            "{address}: QUIC needs certificates: give --tls DIR (`towline-kv certs --dir DIR` makes some)"
        ))),
        (scheme, _) => Err(Failure::Usage(format!(
            "{address}: there is no transport `{scheme}`; grpc:// and quic:// are known"
        ))),
    }
}

/// Reads the certificates again at each SIGHUP. It says itself how that went; a failure changes nothing.
pub(crate) async fn reload_at_hangup(tls: TlsConfig) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        let tls = tls.clone();
        let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
    }
}
