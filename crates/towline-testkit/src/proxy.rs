//! Proxies in this process that stand between a real transport and its peer and break what goes through them.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! use towline_testkit::proxy::{Direction, Flow, TcpProxy};
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let proxy = TcpProxy::to(listener.local_addr()?).await?;
//! let dial = proxy.local_addr(); // instead of the listener's own
//! proxy.set(Direction::Back, Flow { black_hole: true, ..Flow::default() }); // answers never arrive
//! proxy.clear();
//! proxy.cut(); // breaks what is open
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

/// One of the two ways through a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the dialler to the listener.
    Forth,
    /// From the listener to the dialler.
    Back,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Forth, Self::Back];
}

/// What happens to bytes on their way. The default changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// They arrive this much later, without being fewer.
    pub delay: Duration,
    /// No more than this many in a second, all connections together. What does not pass yet is not read: the sender
    /// feels it once the buffers of two sockets are full, 64 KiB or so each.
    pub bytes_per_s: Option<u64>,
    /// None is read, so that the sender feels flow control, until it is over.
    pub stall: bool,
    /// All are read and none arrives. A connection that lost some breaks when it is over: a stream has no holes.
    pub black_hole: bool,
    /// Flips a bit in each byte whose number in its connection is a multiple of this.
    pub corrupt_every: Option<u64>,
    /// Breaks a connection once that many have gone through it this way.
    pub cut_after: Option<u64>,
}
