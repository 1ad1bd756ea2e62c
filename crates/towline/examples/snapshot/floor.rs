//! The floors, disk and wire alone, and the figures of a transfer beside them.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::bare_tonic::{self, Error};
use crate::machine::noise;

/// Measures disk and wire with the bytes and pieces of one transfer.
pub(crate) struct Floor {
    dir: PathBuf,
    mib: u64,
    piece: Bytes,
    /// All written files, which stay as the snapshots do. The host allocates a guest's memory at its first use. So a new file
    /// in the memory of a removed one would cost a sixth of a file in new memory.
    files: Vec<File>,
}

impl Floor {
    /// Measures the wire once without a result, to allocate its buffers.
    pub(crate) async fn new(dir: PathBuf, mib: u64, piece: usize) -> Result<Self, Error> {
        let piece = Bytes::from(noise().repeat(piece.div_ceil(1 << 20))).slice(..piece);
        let floor = Self { dir, mib, piece, files: Vec::new() };
        floor.wire().await?;
        Ok(floor)
    }

    /// The rate of write and `fdatasync`, in MiB/s.
    pub(crate) fn disk(&mut self) -> Result<f64, Error> {
        let (part, began) = (noise(), Instant::now());
        let mut file = tempfile::tempfile_in(&self.dir)?;
        (0..self.mib).try_for_each(|_| file.write_all(&part))?;
        file.sync_data()?;
        let took = began.elapsed();
        self.files.push(file);
        Ok(self.rate(took))
    }

    /// The rate of bare tonic, in MiB/s.
    pub(crate) async fn wire(&self) -> Result<f64, Error> {
        Ok(self.rate(bare_tonic::stream(&self.piece, self.mib << 20).await?))
    }

    fn rate(&self, took: Duration) -> f64 {
        self.mib as f64 / took.as_secs_f64()
    }
}

/// A transfer and the floors just before it. Rates are in MiB/s.
pub(crate) struct Round {
    pub(crate) rate: f64,
    pub(crate) disk: f64,
    pub(crate) wire: f64,
    /// Processor time of the process in seconds.
    pub(crate) processor: f64,
    pub(crate) grown_mib: u64,
}

impl Round {
    /// The rate divided by the slower floor.
    pub(crate) fn ratio(&self) -> f64 {
        self.rate / self.disk.min(self.wire)
    }

    /// The median of each figure, and the maximum of the memory.
    pub(crate) fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            let mut all: Vec<_> = rounds.iter().map(figure).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
        };
        Self {
            rate: of(|r| r.rate),
            disk: of(|r| r.disk),
            wire: of(|r| r.wire),
            processor: of(|r| r.processor),
            grown_mib: rounds.iter().map(|r| r.grown_mib).max().unwrap_or(u64::MAX),
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, disk, wire, processor, grown_mib } = self;
        write!(
            f,
            "{rate:.0} MiB/s, {processor:.2} s of processor time, +{grown_mib} MiB; write + fsync alone {disk:.0}, bare tonic \
             alone {wire:.0} MiB/s; ratio {:.2}",
            self.ratio()
        )
    }
}
