#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::cluster::within;

const NOT_YET: Duration = Duration::from_millis(100);

/// A proxy, and both ends of a connection through it.
async fn tcp() -> (TcpProxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = TcpProxy::to(listener.local_addr().unwrap()).await.unwrap();
    let near = TcpStream::connect(proxy.local_addr()).await.unwrap();
    let (far, _) = within(listener.accept()).await.unwrap();
    (proxy, near, far)
}

async fn get(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    within(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

async fn broken(stream: &mut TcpStream) {
    let mut byte = [0];
    assert!(!matches!(within(stream.read(&mut byte)).await, Ok(1..)));
}

#[tokio::test]
async fn tcp_bytes_and_ends_pass_in_both_directions() {
    let (proxy, mut near, mut far) = tcp().await;
    near.write_all(b"forth").await.unwrap();
    assert_eq!(get(&mut far, 5).await, b"forth");
    far.write_all(b"back!!").await.unwrap();
    assert_eq!(get(&mut near, 6).await, b"back!!");
    assert_eq!((proxy.bytes(ProxyDirection::Forth), proxy.bytes(ProxyDirection::Back)), (5, 6));
    assert_eq!(proxy.connections(), 1);
    near.shutdown().await.unwrap();
    assert_eq!(within(far.read(&mut [0])).await.unwrap(), 0);
    far.write_all(b"late").await.unwrap();
    assert_eq!(get(&mut near, 4).await, b"late");
}

#[tokio::test]
async fn a_tcp_delay_concerns_one_direction_and_keeps_the_throughput() {
    let (proxy, mut near, mut far) = tcp().await;
    let delay = Duration::from_millis(200);
    proxy.set(ProxyDirection::Forth, Flow { delay, ..Flow::default() });
    let since = Instant::now();
    for _ in 0..20 {
        near.write_all(b"x").await.unwrap();
        tokio::task::yield_now().await;
    }
    far.write_all(b"y").await.unwrap();
    get(&mut near, 1).await;
    assert!(since.elapsed() < delay);
    get(&mut far, 20).await;
    assert!((delay..delay * 10).contains(&since.elapsed()), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_tcp_stall_holds_everything_and_loses_nothing() {
    let (proxy, mut near, mut far) = tcp().await;
    proxy.set(ProxyDirection::Forth, Flow { stall: true, ..Flow::default() });
    near.write_all(b"held").await.unwrap();
    assert!(timeout(NOT_YET, far.read(&mut [0])).await.is_err());
    proxy.clear();
    assert_eq!(get(&mut far, 4).await, b"held");
}

#[tokio::test]
async fn a_tcp_black_hole_concerns_one_direction_and_breaks_when_it_ends() {
    let (proxy, mut near, mut far) = tcp().await;
    proxy.set(ProxyDirection::Forth, Flow { black_hole: true, ..Flow::default() });
    near.write_all(b"lost").await.unwrap();
    far.write_all(b"back").await.unwrap();
    assert_eq!(get(&mut near, 4).await, b"back");
    // The proxy forwarded an end.
    near.shutdown().await.unwrap();
    assert!(timeout(NOT_YET, far.read(&mut [0])).await.is_err());
    proxy.clear();
    broken(&mut far).await;
}

#[tokio::test]
async fn tcp_bytes_are_corrupted_and_a_connection_is_cut_after_its_bytes() {
    let (proxy, mut near, mut far) = tcp().await;
    let flow = Flow { corrupt_every: Some(3), cut_after: Some(7), ..Flow::default() };
    proxy.set(ProxyDirection::Forth, flow);
    near.write_all(&[0; 20]).await.unwrap();
    let mut came = Vec::new();
    let _ = within(far.read_to_end(&mut came)).await;
    // The break may lose bytes that had not passed yet.
    assert!([0, 0, 0x10, 0, 0, 0x10, 0].starts_with(&came), "{came:?}");
    broken(&mut near).await;
}

#[tokio::test]
async fn a_tcp_rate_bounds_the_throughput() {
    let (proxy, mut near, mut far) = tcp().await;
    proxy.set(ProxyDirection::Forth, Flow { bytes_per_s: Some(64 << 10), ..Flow::default() });
    let since = Instant::now();
    near.write_all(&vec![1; 32 << 10]).await.unwrap();
    get(&mut far, 32 << 10).await;
    assert!(since.elapsed() >= Duration::from_millis(200), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_tcp_cut_breaks_open_connections_and_refuse_closes_new_ones() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = TcpProxy::to(listener.local_addr().unwrap()).await.unwrap();
    let mut near = TcpStream::connect(proxy.local_addr()).await.unwrap();
    let (mut far, _) = within(listener.accept()).await.unwrap();
    proxy.cut();
    broken(&mut near).await;
    broken(&mut far).await;
    let _near = TcpStream::connect(proxy.local_addr()).await.unwrap();
    within(listener.accept()).await.unwrap();
    proxy.refuse(true);
    let mut refused = TcpStream::connect(proxy.local_addr()).await.unwrap();
    broken(&mut refused).await;
}

/// A proxy, a dialler connected to it, and the socket it leads to.
async fn udp() -> (UdpProxy, UdpSocket, UdpSocket) {
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let proxy = UdpProxy::to(far.local_addr().unwrap(), 1).await.unwrap();
    let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    near.connect(proxy.local_addr()).await.unwrap();
    (proxy, near, far)
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, std::net::SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = within(socket.recv_from(&mut buffer)).await.unwrap();
    (buffer[..length].to_vec(), from)
}

#[tokio::test]
async fn udp_datagrams_pass_in_both_directions_and_a_cut_changes_the_port() {
    let (proxy, near, far) = udp().await;
    near.send(b"one").await.unwrap();
    let (bytes, from) = receive(&far).await;
    assert_eq!(bytes, b"one");
    far.send_to(b"answer", from).await.unwrap();
    assert_eq!(receive(&near).await.0, b"answer");
    assert_eq!((proxy.passed(ProxyDirection::Forth), proxy.passed(ProxyDirection::Back)), (1, 1));
    proxy.cut();
    near.send(b"two").await.unwrap();
    let (bytes, again) = receive(&far).await;
    assert_eq!(bytes, b"two");
    assert_ne!(from, again);
}

#[tokio::test]
async fn each_udp_chance_works() {
    let (proxy, near, far) = udp().await;
    let mut one = DatagramFlow { duplicate: 1.0, ..DatagramFlow::default() };
    proxy.set(ProxyDirection::Forth, one);
    near.send(b"twice").await.unwrap();
    assert_eq!([receive(&far).await.0, receive(&far).await.0], [b"twice", b"twice"]);

    one = DatagramFlow { reorder: 1.0, ..DatagramFlow::default() };
    proxy.set(ProxyDirection::Forth, one);
    near.send(b"first").await.unwrap();
    near.send(b"later").await.unwrap();
    assert_eq!([receive(&far).await.0, receive(&far).await.0], [b"later", b"first"]);

    one = DatagramFlow { corrupt: 1.0, ..DatagramFlow::default() };
    proxy.set(ProxyDirection::Forth, one);
    near.send(&[0; 8]).await.unwrap();
    let flipped: u32 = receive(&far).await.0.iter().map(|byte| byte.count_ones()).sum();
    assert_eq!(flipped, 1);

    proxy.set(ProxyDirection::Forth, DatagramFlow { lose: 1.0, ..DatagramFlow::default() });
    let lost = proxy.lost();
    near.send(b"gone").await.unwrap();
    within(async {
        while proxy.lost() == lost {
            tokio::task::yield_now().await;
        }
    })
    .await;
    proxy.clear();
    near.send(b"after").await.unwrap();
    assert_eq!(receive(&far).await.0, b"after");
}

#[tokio::test]
async fn udp_delay_stall_rate_and_black_hole_concern_one_direction() {
    let (proxy, near, far) = udp().await;
    let delay = Duration::from_millis(150);
    proxy.set(ProxyDirection::Forth, DatagramFlow { delay, ..DatagramFlow::default() });
    let since = Instant::now();
    near.send(b"late").await.unwrap();
    let (_, dialler) = receive(&far).await;
    assert!(since.elapsed() >= delay);

    proxy.set(ProxyDirection::Forth, DatagramFlow { stall: true, ..DatagramFlow::default() });
    near.send(b"held").await.unwrap();
    far.send_to(b"answer", dialler).await.unwrap();
    assert_eq!(receive(&near).await.0, b"answer");
    assert!(timeout(NOT_YET, far.recv(&mut [0; 9])).await.is_err());
    proxy.set(ProxyDirection::Forth, DatagramFlow { bytes_per_s: Some(4_000), ..DatagramFlow::default() });
    let since = Instant::now();
    assert_eq!(receive(&far).await.0, b"held");
    for _ in 0..3 {
        near.send(&[0; 500]).await.unwrap();
    }
    for _ in 0..3 {
        receive(&far).await;
    }
    assert!(since.elapsed() >= Duration::from_millis(240), "{:?}", since.elapsed());

    proxy.set(ProxyDirection::Back, DatagramFlow { black_hole: true, ..DatagramFlow::default() });
    far.send_to(b"answer", dialler).await.unwrap();
    assert!(timeout(NOT_YET, near.recv(&mut [0; 9])).await.is_err());
}
