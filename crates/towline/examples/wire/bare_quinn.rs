//! The floor of QUIC: bare quinn streams the same pieces to a receiver that counts them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::rustls::pki_types::PrivatePkcs8KeyDer;
use quinn::rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::bare_tonic::{Error, LOOPBACK, pieces};

/// The windows of our transport, so that the comparison is fair.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// Streams over one QUIC stream with quinn's default settings, except the windows.
pub(crate) async fn stream(piece: &Bytes, bytes: u64) -> Result<Duration, Error> {
    let issued = rcgen::generate_simple_self_signed(["localhost".into()])?;
    let chain = vec![issued.cert.der().clone()];
    let key = PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der()).into();
    let provider = Arc::new(quinn::rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(issued.cert.der().clone())?;
    let accepting = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let dialling = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();

    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window((16 * STREAM_WINDOW_BYTES).into())
        .send_window(u64::from(16 * STREAM_WINDOW_BYTES));
    let transport = Arc::new(transport);
    let accepting = quinn::crypto::rustls::QuicServerConfig::try_from(accepting)?;
    let mut accepting = quinn::ServerConfig::with_crypto(Arc::new(accepting));
    accepting.transport_config(transport.clone());
    let dialling = quinn::crypto::rustls::QuicClientConfig::try_from(dialling)?;
    let mut dialling = quinn::ClientConfig::new(Arc::new(dialling));
    dialling.transport_config(transport);

    let server = quinn::Endpoint::server(accepting, LOOPBACK)?;
    let client = quinn::Endpoint::client(LOOPBACK)?;
    let connecting = client.connect_with(dialling, server.local_addr()?, "localhost")?;
    let counting = tokio::spawn(count(server));
    let connection = connecting.await?;
    let began = Instant::now();
    let (mut send, mut receive) = connection.open_bi().await?;
    for piece in pieces(piece, bytes) {
        send.write_chunk(piece).await?;
    }
    send.finish()?;
    let counted = receive.read_to_end(8).await?;
    let took = began.elapsed();
    counting.await?.map_err(|error| error.to_string())?;
    match counted == bytes.to_be_bytes() {
        true => Ok(took),
        false => Err("bare quinn lost bytes".into()),
    }
}

async fn count(server: quinn::Endpoint) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let connection = server.accept().await.ok_or("no connection")?.await?;
    let (mut send, mut receive) = connection.accept_bi().await?;
    let (mut bytes, mut parts) = (0, [const { Bytes::new() }; 32]);
    while let Some(read) = receive.read_chunks(&mut parts).await? {
        bytes += parts.iter().take(read).map(|part| part.len() as u64).sum::<u64>();
    }
    send.write_all(&bytes.to_be_bytes()).await?;
    send.finish()?;
    let _ = send.stopped().await;
    Ok(())
}
