//! A state machine whose snapshot is noise of a given size. It keeps no state.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpListener;

use towline::*;

const PART_BYTES: usize = 1 << 20;

/// The size of the snapshot in MiB.
pub(crate) struct Large(pub(crate) u64);

impl StateMachine for Large {
    type Response = ();
    type View = ();

    fn view(&self) {}

    fn durable(&self) -> LogId {
        LogId::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<()>) -> Result<(), Fatal> {
        batch.commands().for_each(|_| replies.push(()));
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(Noise(self.0)))
    }

    fn restore(&mut self, _: &SnapshotMeta, body: &mut dyn Read) -> Result<(), Fatal> {
        io::copy(body, &mut io::sink())?;
        Ok(())
    }
}

struct Noise(u64);

impl SnapshotSource for Noise {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        let part = noise();
        (0..self.0).try_for_each(|_| out.write_all(&part))
    }
}

/// Three nodes at free ports of the loopback interface.
pub(crate) fn members() -> Result<Vec<(NodeId, PeerAddr)>, Box<dyn Error>> {
    // All sockets are open at the same time, so each has its own port.
    let sockets = (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<Vec<_>>>()?;
    let member = |(id, socket): (u64, &TcpListener)| {
        Ok((NodeId::new(id).ok_or("zero")?, format!("grpc://{}", socket.local_addr()?).parse()?))
    };
    (1..).zip(&sockets).map(member).collect()
}

/// One MiB that no layer below can compress.
pub(crate) fn noise() -> Vec<u8> {
    let mut seed = 1_u64;
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_be_bytes()[0]
    })
    .take(PART_BYTES)
    .collect()
}
