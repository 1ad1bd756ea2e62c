//! Strangers by the hundred at a real listener, and the memory of the process before and after. Alone in its file, so that
//! nobody else's memory is measured.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

mod wires;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use towline_engine::transport::{CertIdentity, Hello, Inbound, PeerSession, Refusal};
use towline_testkit::cluster::{node_id, until};
use wires::{AUTHORITY, Bounds, First, Heard, Wire, of_node};

type Refused = Arc<Mutex<Vec<Refusal>>>;

/// Is asked by nobody.
struct Nobody(Refused);

impl Inbound for Nobody {
    fn admit(&self, hello: &Hello, _: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        Err(Refusal::UnknownPeer { peer: hello.from.as_u64() })
    }

    fn refused(&self, refusal: &Refusal) {
        self.0.lock().unwrap().push(refusal.clone());
    }
}

/// Resident pages of this process, where the system tells them.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4_096)
}

/// Strangers with a certificate whose first frames mean nothing: each is refused by type, and nothing of it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_strange_first_frames_is_refused_and_leaves_nothing_behind() {
    const EACH: usize = 600;
    // Less than 60 KB each; it comes and goes with the buffers of the test's own sockets.
    const GROWTH_BYTES_MAX: u64 = 16 << 20;
    for wire in Wire::BOTH {
        let refused: Refused = Arc::default();
        let transport = wire.transport(&Bounds::default(), of_node(1));
        let listener = transport.listen(&wire.anywhere(), Arc::new(Nobody(refused.clone()))).await.unwrap();
        let (at, cert) = (listener.local_addr(), AUTHORITY.issue(node_id(9)).unwrap());
        let mut random = fastrand::Rng::with_seed(30);
        let mut settled = None;
        for n in 0..EACH {
            let length = random.usize(1..6_000);
            let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            // Field numbers of frames, so that some get further.
            bytes[0] = random.u8(0..16) << 3 | 2;
            let heard = wire.say(at, Some(&cert), First::Frame(Bytes::from(bytes))).await;
            assert!(matches!(heard, Heard::Refused(Refusal::Malformed { .. })), "{wire:?}: {heard:?}");
            if n == EACH / 2 {
                settled = resident_bytes();
            }
        }
        until("the count", || refused.lock().unwrap().len() >= EACH).await;
        let refused = refused.lock().unwrap();
        assert_eq!(refused.len(), EACH, "{wire:?}");
        assert!(refused.iter().all(|refusal| matches!(refusal, Refusal::Malformed { .. })), "{wire:?}");
        if let (Some(before), Some(now)) = (settled, resident_bytes()) {
            let grown = now.saturating_sub(before);
            assert!(grown < GROWTH_BYTES_MAX, "{wire:?}: {grown} bytes more after {EACH} strangers");
        }
    }
}
