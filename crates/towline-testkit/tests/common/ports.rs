//! Addresses for nodes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where nobody listens. A node that is down must find its port free again, so none of those that the system gives to whoever
/// dials, and none of 20,000 to 30,000: the tests of examples/kv use those at the same time.
pub(crate) fn free_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let offset = std::process::id().wrapping_mul(64).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000 + (offset % 10_000) as u16));
        if TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok() {
            return at;
        }
    }
}
