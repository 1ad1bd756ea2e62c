//! Proxies between a real transport and its peer that damage what they carry.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! use towline_testkit::proxy::{ProxyDirection, Flow, TcpProxy};
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let proxy = TcpProxy::to(listener.local_addr()?).await?;
//! let dial = proxy.local_addr(); // instead of the listener's address
//! proxy.set(ProxyDirection::Back, Flow { black_hole: true, ..Flow::default() }); // answers never arrive
//! proxy.clear();
//! proxy.cut(); // breaks open connections
//! # let _ = dial;
//! # Ok(())
//! # }
//! ```

mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::time::Duration;

pub use tcp::TcpProxy;
pub use udp::{DatagramFlow, UdpProxy};

/// One value for each direction.
#[derive(Debug, Clone, Copy, Default)]
struct PerDirection<T> {
    forth: T,
    back: T,
}

impl<T> PerDirection<T> {
    fn get(&self, direction: ProxyDirection) -> &T {
        match direction {
            ProxyDirection::Forth => &self.forth,
            ProxyDirection::Back => &self.back,
        }
    }

    fn get_mut(&mut self, direction: ProxyDirection) -> &mut T {
        match direction {
            ProxyDirection::Forth => &mut self.forth,
            ProxyDirection::Back => &mut self.back,
        }
    }
}

/// A direction through a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyDirection {
    /// From the dialler to the listener.
    Forth,
    /// From the listener to the dialler.
    Back,
}

impl ProxyDirection {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::Forth, Self::Back];
}

/// The faults of one direction of a [`TcpProxy`]; none by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// Bytes arrive later by this time, at the same rate.
    pub delay: Duration,
    /// The most bytes per second, over all connections. The proxy reads no more, so that the sender blocks once the buffers
    /// of two sockets are full, about 64 KiB each.
    pub bytes_per_s: Option<u64>,
    /// The proxy reads nothing, so that the sender blocks.
    pub stall: bool,
    /// The proxy drops all bytes. A connection that lost bytes breaks when the fault ends.
    pub black_hole: bool,
    /// Flips a bit in each byte whose number in its connection is a multiple of this.
    pub corrupt_every: Option<u64>,
    /// Breaks a connection after this number of bytes.
    pub cut_after: Option<u64>,
}
