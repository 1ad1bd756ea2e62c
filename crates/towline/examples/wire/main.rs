//! Snapshots on the wire alone: each transport against the library under it, from memory to a sink that only checks, in
//! turns, in one run.
//!
//! `cargo run --release -p towline --features quic,dev-certs --example wire -- [MIB] [ROUNDS]`
#![allow(clippy::print_stdout)] // a program that talks to a person

mod bare_quinn;
mod bare_tonic;
mod ours;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use towline::dev_certs::DevAuthority;
use towline::{Config, GrpcConfig, GrpcTransport, NodeId, QuicConfig, QuicTransport, TlsConfig};

pub(crate) type Error = Box<dyn std::error::Error>;

pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// `bytes` in pieces.
pub(crate) fn pieces(piece: &Bytes, bytes: u64) -> impl Iterator<Item = Bytes> + Send + 'static {
    let piece = piece.clone();
    (0..bytes / piece.len() as u64).map(move |_| piece.clone())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let mib: u64 = arguments.next().map_or(Ok(1024), |mib| mib.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(3), |rounds| rounds.parse())?;
    let (bytes, piece) = (mib << 20, Bytes::from(vec![7; Config::default().snapshot_chunk_bytes.as_usize()]));

    let grpc = GrpcTransport::new(GrpcConfig::default());
    let authority = DevAuthority::new()?;
    let quic = |id: u64| -> Result<QuicTransport, Error> {
        let issued = authority.issue(NodeId::new(id).ok_or("zero")?)?;
        let (ca, cert, key) = (authority.ca_pem().as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes());
        Ok(QuicTransport::new(QuicConfig::default(), TlsConfig::from_pem(ca, cert, key)?))
    };
    let (dialler, accepter) = (quic(1)?, quic(2)?);

    let mut took: [Vec<Duration>; 4] = Default::default();
    for round in 0..=rounds {
        let times = [
            bare_tonic::stream(&piece, bytes).await?,
            ours::transfer(&grpc, &grpc, &piece, bytes).await?,
            bare_quinn::stream(&piece, bytes).await?,
            ours::transfer(&dialler, &accepter, &piece, bytes).await?,
        ];
        // The first round finds out how much memory there is.
        if round > 0 {
            took.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
        }
    }
    let rate = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).map_or(0.0, |time| mib as f64 / time.as_secs_f64())
    };
    let [tonic, grpc, quinn, quic] = took.each_mut().map(rate);
    println!("{mib} MiB in pieces of {} KiB, median of {rounds}, MiB/s", piece.len() >> 10);
    println!("bare tonic {tonic:6.0}   towline-grpc {grpc:6.0}   ratio {:.2}", grpc / tonic);
    println!("bare quinn {quinn:6.0}   towline-quic {quic:6.0}   ratio {:.2}", quic / quinn);
    Ok(())
}
