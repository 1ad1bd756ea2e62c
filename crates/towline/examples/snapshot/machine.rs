//! A state machine whose state is so many MiB of noise, which nobody keeps.

use std::io::{self, Read, Write};

use towline::*;

const PART_BYTES: usize = 1 << 20;

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

/// A MiB that nothing below can compress.
pub(crate) fn noise() -> Vec<u8> {
    let mut seed = 1_u64;
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_be_bytes()[0]
    })
    .take(PART_BYTES)
    .collect()
}
